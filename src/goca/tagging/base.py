"""What a tagger is: something that says which nouns an image shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from goca.errors import GocaError
from goca.text.nouns import Category

if TYPE_CHECKING:
    from goca.imaging.images import ImageLike

Prices = tuple[float, float]
"""The price of a million tokens, (input, output), in any currency."""


class DeclinedError(GocaError):
    """This one image gets no caption, and others may well."""


@runtime_checkable
class TaggableImage(Protocol):
    """What taggers read of an image: an id, unique in its collection, and the image, which usually is a path."""

    @property
    def id(self) -> str: ...

    @property
    def image(self) -> "ImageLike": ...


@runtime_checkable
class ImageCollection(Protocol):
    """What taggers read of the data set that an image is from, or of a user's list of classes, which may be empty."""

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes with their synonyms."""
        ...

    @property
    def background(self) -> bool:
        """Whether an image may show none of the classes."""
        ...


@runtime_checkable
class Tagger(Protocol):
    """Says what is in an image, as a list of nouns: "person, clothes, grass"."""

    @property
    def name(self) -> str:
        """How reports name the tagger, such as "vlm gpt-4o"."""
        ...

    # Any, because a tagger may want more than the protocols promise: the oracle reads the ground truth.
    def tag(self, sample: Any, dataset: Any) -> str:
        """Describe one image.

        Args:
            sample: a `TaggableImage`.
            dataset: the `ImageCollection` that it is from.

        Returns:
            A caption, as `goca.tagging.answers.parse` reads it; parts of one object may share parentheses:
            "(person, clothes), grass".

        Raises:
            GocaError: the image cannot be tagged.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What tagging will take, roughly: input and output tokens, and the cost, None without prices."""

    images: int
    read: int
    written: int
    cost: float | None

    def __str__(self) -> str:
        if self.cost is None:
            cost = "name prices to see the cost"
        else:
            cost = "less than 0.01" if 0 < self.cost < 0.01 else f"about {self.cost:.2f}"
        count = "1 image" if self.images == 1 else f"{self.images} images"
        return f"{count}, about {self.read:,} tokens to read and {self.written:,} to write: {cost}"


@runtime_checkable
class PaidTagger(Tagger, Protocol):
    """A tagger whose requests cost money."""

    def ready(self) -> None:
        """Raise GocaError if the tagger cannot work, for example because no key is set; sends no request."""
        ...

    def estimate(self, samples: Sequence[TaggableImage], dataset: ImageCollection) -> Estimate:
        """What tagging these images will take; sends no request."""
        ...


@runtime_checkable
class BatchTagger(Tagger, Protocol):
    """A tagger that handles many images faster than one after the other."""

    def prepare(self, samples: Sequence[TaggableImage], dataset: ImageCollection) -> None:
        """Tag images ahead, so that `tag` has their captions; it raises for those that cannot be tagged.

        Raises:
            GocaError: tagging cannot go on; captions made so far are kept.
        """
        ...
