"""The classes that a user wants as candidates of a tagger: which of them does an image show?"""

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
    """The classes that a tagger names of an image, in the order of the request; tagger: its name."""

    tagger: str
    classes: tuple[str, ...]

    def indices(self, classes: Sequence[str]) -> tuple[int, ...]:
        """Where they are among the classes of the request."""
        return tuple(index for index, name in enumerate(classes) if name in self.classes)

    def to_json(self) -> dict[str, Any]:
        """As a result's JSON file holds it."""
        return {"tagger": self.tagger, "kept": list(self.classes)}


@dataclass(frozen=True)
class Candidates:
    """A user's classes, as taggers read those of a data set; see `ImageCollection`."""

    categories: tuple[Category, ...]
    background: bool = True

    @classmethod
    def of(cls, classes: Classes, background: bool) -> "Candidates":
        """background: whether an image may show none. Raises GocaError for a name that a tagger could not say."""
        nouns, _ = parse_nouns(classes)
        write((noun.name,) for noun in nouns)
        return cls(tuple(Category(noun.name, noun.words[1:]) for noun in nouns), background)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @cached_property
    def name(self) -> str:
        """Differs for other classes, because a vision-language model is told them: its captions are of this list."""
        digest = blake2b(repr(self.class_names).encode(), digest_size=4).hexdigest()
        return f"the list of {len(self.categories)} classes {digest}"

    def kept(self, tagger: Tagger, sources: Sequence[str | os.PathLike[str] | Image.Image]) -> list[Kept | GocaError]:
        """Which of the classes each image shows, by a tagger, or why it is not tagged.

        What the tagger says is read as captions of a data set with these classes are (`captioned`). If it names none of
        them, and an image has to show one, all are kept.

        Raises:
            GocaError: the tagger cannot go on with any image.
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
    """An image that is of no data set: its id is its path, as the user wrote it, or a digest of its pixels."""

    id: str
    image: Path | Image.Image

    @classmethod
    def of(cls, image: str | os.PathLike[str] | Image.Image) -> "UserImage":
        """A file, which is not opened, or an image in memory."""
        if isinstance(image, Image.Image):
            return cls(blake2b(image.tobytes(), digest_size=16).hexdigest(), image)
        return cls(escaped(os.fspath(image)), Path(image))
