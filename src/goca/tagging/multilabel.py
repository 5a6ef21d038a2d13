"""How well a tagger does: what it said of images against what they show."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Classes said rightly, said, and true, summed over images; 0 where there is nothing to divide by."""

    right: int
    said: int
    true: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[Collection[str], Collection[str]]]) -> "Agreement":
        """From (what was said, what is true) of each image."""
        sets = [(set(said), set(true)) for said, true in pairs]
        return cls(*(sum(map(len, some)) for some in zip(*((a & b, a, b) for a, b in sets), strict=True)))

    @property
    def precision(self) -> float:
        return self.right / self.said if self.said else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.true if self.true else 0.0

    @property
    def f1(self) -> float:
        both = self.said + self.true
        return 2 * self.right / both if both else 0.0

    def __str__(self) -> str:
        return f"precision {self.precision:.3f}, recall {self.recall:.3f}, F1 {self.f1:.3f}"
