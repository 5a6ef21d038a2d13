"""What a tagger is to the bench: who says which nouns an image shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from goca.evaluation.datasets.base import Dataset, Sample

Done = Callable[[], None]
"""Called once for every image that is done with."""
Prices = tuple[float, float]
"""For a million tokens, (read, written), in any currency."""


@runtime_checkable
class Tagger(Protocol):
    """Says what is in an image, as a list of nouns: "person, clothes, grass".

    name: what a score says of it, such as "oracle" or "vlm gpt-4o".
    """

    @property
    def name(self) -> str: ...

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        """The caption of one image; parts of one object may stand in parentheses: "(person, clothes), grass".

        Raises GocaError where the image cannot be tagged.
        """
        ...


@dataclass(frozen=True)
class Estimate:
    """What the images that were not tagged yet will take, about.

    read, written: tokens. cost: in the currency of the prices, None without prices.
    """

    images: int
    read: int
    written: int
    cost: float | None

    def __str__(self) -> str:
        cost = "name prices to see the cost" if self.cost is None else f"about {self.cost:.2f}"
        if self.cost is not None and 0 < self.cost < 0.01:
            cost = "less than 0.01"
        count = "1 image" if self.images == 1 else f"{self.images} images"
        return f"{count}, about {self.read:,} tokens to read and {self.written:,} to write: {cost}"


@runtime_checkable
class Costing(Tagger, Protocol):
    """A tagger that somebody has to pay for."""

    def ready(self) -> None:
        """Raises GocaError where it cannot be asked, as far as that can be told without asking."""
        ...

    def estimate(self, samples: Sequence[Sample], dataset: Dataset) -> Estimate:
        """What tagging will take; nothing is asked for it."""
        ...


@runtime_checkable
class Preparing(Tagger, Protocol):
    """A tagger that does many images faster than one after the other."""

    def prepare(self, samples: Sequence[Sample], dataset: Dataset, done: Done) -> None:
        """Tag images ahead, so that `tag` knows their captions.

        Raises GocaError where it cannot go on; what is done is kept. An image that alone is at fault is left to `tag`.
        """
        ...
