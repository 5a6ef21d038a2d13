"""COCO's annotation files: read once, in pieces, and kept as places in the file, for some have half a gigabyte."""

import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Int64

from goca.errors import GocaError

PIECE = 1 << 22  # bytes
BLANK = " \t\n\r"


@dataclass(frozen=True)
class CocoImage:
    """An image as a COCO file lists it."""

    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Index:
    """A COCO file: its images by id, its categories, and where each image's annotations lie.

    owners, starts, ends: the image's id and the range of bytes of each annotation, sorted by image.
    """

    path: Path
    images: dict[int, CocoImage]
    categories: tuple[dict[str, Any], ...]
    owners: Int64[np.ndarray, "annotation"]
    starts: Int64[np.ndarray, "annotation"]
    ends: Int64[np.ndarray, "annotation"]

    def annotations(self, image: int) -> list[dict[str, Any]]:
        """An image's annotations, read from the file."""
        first, past = np.searchsorted(self.owners, [image, image + 1])
        with self.path.open("rb") as file:
            return [self._read(file, int(self.starts[i]), int(self.ends[i])) for i in range(first, past)]

    def _read(self, file: IO[bytes], start: int, end: int) -> dict[str, Any]:
        file.seek(start)
        try:
            return json.loads(file.read(end - start))
        except ValueError:
            raise GocaError(f"{self.path} has changed since it was opened: start again") from None


def index(path: Path) -> Index:
    """Read a COCO file once; GocaError where it is incomplete or of another kind."""
    images: dict[int, CocoImage] = {}
    categories: list[dict[str, Any]] = []
    owners, starts, ends = array("q"), array("q"), array("q")
    try:
        with path.open("rb") as file:
            for key, start, text, value in _elements(file):
                # The text has one character a byte: names are decoded anew.
                if key == "annotations":
                    owners.append(value["image_id"])
                    starts.append(start)
                    ends.append(start + len(text))
                elif key == "images":
                    entry = json.loads(text.encode("latin-1"))
                    images[entry["id"]] = CocoImage(entry["file_name"], entry["height"], entry["width"])
                elif key == "categories":
                    categories.append(json.loads(text.encode("latin-1")))
    except ValueError:
        raise GocaError(f"{path} is no complete JSON file: download it again") from None
    except (KeyError, TypeError):
        images.clear()
    if not images or not categories:
        raise GocaError(f"{path} lists no images and categories as COCO does: is it this data set's?")
    order = np.argsort(np.array(owners, np.int64), kind="stable")
    columns = (np.array(column, np.int64)[order] for column in (owners, starts, ends))
    return Index(path, images, tuple(categories), *columns)


def _elements(file: IO[bytes]) -> Iterator[tuple[str, int, str, Any]]:
    """Key, first byte, text (a character a byte) and value of each element of each list in the file's object."""
    text = _Text(file)
    text.expect("{")
    while text.peek() != "}":
        _, key = text.value()
        text.expect(":")
        if text.peek() != "[":
            text.value()
        else:
            text.expect("[")
            while text.peek() != "]":
                element, value = text.value()
                yield key, text.place - len(element), element, value
                if text.peek() != "]":
                    text.expect(",")
            text.expect("]")
        if text.peek() != "}":
            text.expect(",")


class _Text:
    """A file's text from a moving place on, never much more of it than one piece."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._held = ""
        self._at = 0
        self._before = 0  # bytes that are no longer held

    @property
    def place(self) -> int:
        return self._before + self._at

    def peek(self) -> str:
        """The next character that is not blank; ValueError at the end of the file."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in BLANK:
                self._at += 1
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._more():
                raise ValueError("the file ends too early")

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise ValueError(f"no {character}")
        self._at += 1

    def value(self) -> tuple[str, Any]:
        """The text of the value that comes next, and the value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._held, self._at)
            except ValueError:
                # Broken, or cut by the end of the piece.
                if not self._more():
                    raise
                continue
            # A number may go on in the next piece.
            if end < len(self._held) or not self._more():
                break
        start, self._at = self._at, end
        return self._held[start:end], value

    def _more(self) -> bool:
        piece = self._file.read(PIECE).decode("latin-1")
        self._before += self._at
        self._held = self._held[self._at :] + piece
        self._at = 0
        return bool(piece)
