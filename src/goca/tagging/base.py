"""The interface of taggers, which say which nouns an image shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from goca.errors import GocaError
from goca.text.nouns import Category

if TYPE_CHECKING:
    from goca.imaging.images import ImageLike

Prices = tuple[float, float]
"""Prices per million tokens, (input, output), in any currency."""


class DeclinedError(GocaError):
    """This image gets no caption, although others may."""


@runtime_checkable
class TaggableImage(Protocol):
    """An image for taggers: an id, unique in its collection, and the image, usually a path."""

    @property
    def id(self) -> str: ...

    @property
    def image(self) -> "ImageLike": ...


@runtime_checkable
class ImageCollection(Protocol):
    """An image's data set, or a user's list of classes, which may be empty, for taggers."""

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
        """The tagger's name in reports, such as "vlm gpt-4o"."""
        ...

    # Any, because a tagger may need more than the protocols have: the oracle reads the ground truth.
    def tag(self, sample: Any, dataset: Any) -> str:
        """Describe one image.

        Args:
            sample: A `TaggableImage`.
            dataset: The `ImageCollection` that it belongs to.

        Returns:
            A caption for `goca.tagging.answers.parse`; parts of one object may share parentheses:
            "(person, clothes), grass".

        Raises:
            GocaError: The image cannot be tagged.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The estimated use of tagging: input and output tokens, and the cost, None without prices."""

    images: int
    read: int
    written: int
    cost: float | None

    def __str__(self) -> str:
        if self.cost is None:
            cost = "give prices to see the cost"
        else:
            cost = "less than 0.01" if 0 < self.cost < 0.01 else f"about {self.cost:.2f}"
        count = "1 image" if self.images == 1 else f"{self.images} images"
        return f"{count}, about {self.read:,} tokens to read and {self.written:,} to write: {cost}"


@runtime_checkable
class PaidTagger(Tagger, Protocol):
    """A tagger whose requests cost money."""

    def ready(self) -> None:
        """Raise GocaError if the tagger cannot work, for example without a key; sends no request."""
        ...

    def estimate(self, samples: Sequence[TaggableImage], dataset: ImageCollection) -> Estimate:
        """The estimated use of tagging these images; sends no request."""
        ...


@runtime_checkable
class BatchTagger(Tagger, Protocol):
    """A tagger that is faster with many images at a time."""

    def prepare(self, samples: Sequence[TaggableImage], dataset: ImageCollection) -> None:
        """Tag images in advance, so that `tag` has their captions, or raises for those that cannot be tagged.

        Raises:
            GocaError: Tagging cannot continue; captions made so far are kept.
        """
        ...
