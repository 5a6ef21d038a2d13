"""Scores of a tagger: the classes that it names against those that images show."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MultilabelScores:
    """Numbers of classes that are predicted, shown, and both, summed over images.

    A ratio with a zero denominator is 0.
    """

    correct: int
    predicted: int
    actual: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[Collection[str], Collection[str]]]) -> "MultilabelScores":
        """From (classes that are named, classes that are shown) of each image."""
        sets = [(set(predicted), set(actual)) for predicted, actual in pairs]
        return cls(
            correct=sum(len(predicted & actual) for predicted, actual in sets),
            predicted=sum(len(predicted) for predicted, _ in sets),
            actual=sum(len(actual) for _, actual in sets),
        )

    @property
    def precision(self) -> float:
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.correct / self.actual if self.actual else 0.0

    @property
    def f1(self) -> float:
        total = self.predicted + self.actual
        return 2 * self.correct / total if total else 0.0

    def __str__(self) -> str:
        return f"precision {self.precision:.3f}, recall {self.recall:.3f}, F1 {self.f1:.3f}"
