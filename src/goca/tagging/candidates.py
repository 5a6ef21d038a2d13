"""A user's classes as candidates of a tagger, which says which of them an image shows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from goca.errors import GocaError
from goca.storage.reading import escaped
from goca.tagging.answers import write
from goca.tagging.base import BatchTagger, Tagger
from goca.tagging.caption_nouns import captioned
from goca.text.nouns import Category, Classes, parse_nouns


@dataclass(frozen=True)
class Kept:
    """The classes that a tagger names for an image, in the order of the request. tagger: its name."""

    tagger: str
    classes: tuple[str, ...]

    def indices(self, classes: Sequence[str]) -> tuple[int, ...]:
        """Their indices among the classes of the request."""
        return tuple(index for index, name in enumerate(classes) if name in self.classes)

    def to_json(self) -> dict[str, Any]:
        """The form in a result's JSON file."""
        return {"tagger": self.tagger, "kept": list(self.classes)}


@dataclass(frozen=True)
class Candidates:
    """A user's classes in the form of a data set, see `ImageCollection`."""

    categories: tuple[Category, ...]
    background: bool = True

    @classmethod
    def of(cls, classes: Classes, background: bool) -> "Candidates":
        """Make candidates. background: whether an image may show none. Raises GocaError for unusable names."""
        nouns, _ = parse_nouns(classes)
        write((noun.name,) for noun in nouns)
        return cls(tuple(Category(noun.name, noun.words[1:]) for noun in nouns), background)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @cached_property
    def name(self) -> str:
        """A name that depends on the classes, because a vision-language model's captions depend on them."""
        digest = blake2b(repr(self.class_names).encode(), digest_size=4).hexdigest()
        return f"the list of {len(self.categories)} classes {digest}"

    def kept(self, tagger: Tagger, sources: Sequence[str | os.PathLike[str] | Image.Image]) -> list[Kept | GocaError]:
        """The classes that each image shows according to a tagger, or why it is not tagged.

        The tagger's captions are read like those of a data set with these classes (`captioned`). If it names none of
        them, but an image must show one, all are kept.

        Raises:
            GocaError: The tagger fails for all images.
        """
        samples = [UserImage.of(image) for image in sources]
        if isinstance(tagger, BatchTagger):
            tagger.prepare(samples, self)
        return [self._kept(tagger, sample) for sample in samples]

    def _kept(self, tagger: Tagger, sample: "UserImage") -> Kept | GocaError:
        try:
            named = captioned(tagger.tag(sample, self), self.categories).classes
        except GocaError as error:
            return error
        kept = tuple(name for name in self.class_names if name in named)
        return Kept(tagger.name, kept if kept or self.background else self.class_names)


@dataclass(frozen=True)
class UserImage:
    """An image outside data sets: its id is its path, as the user wrote it, or a digest of its pixels."""

    id: str
    image: Path | Image.Image

    @classmethod
    def of(cls, image: str | os.PathLike[str] | Image.Image) -> "UserImage":
        """A file, which is not opened, or an image in memory."""
        if isinstance(image, Image.Image):
            return cls(blake2b(image.tobytes(), digest_size=16).hexdigest(), image)
        return cls(escaped(os.fspath(image)), Path(image))
