"""The classes of the published data sets: ids, names, synonyms and colours, from the files in classes/."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from goca.imaging.palette import palette
from goca.text.nouns import Category


@dataclass(frozen=True)
class PublishedClass:
    """A class as published: its names, value in the files, super-category, and colour, "#rrggbb" or ""."""

    id: int
    name: str
    synonyms: tuple[str, ...] = ()
    group: str = ""
    colour: str = ""


@cache
def published_classes(file: str, member: str = "classes") -> tuple[PublishedClass, ...]:
    """The classes of classes/FILE.json, in the order of their labels."""
    text = (Path(__file__).parent / "classes" / f"{file}.json").read_text(encoding="utf-8")
    entries = json.loads(text)[member]
    return tuple(PublishedClass(**entry | {"synonyms": tuple(entry.get("synonyms", ()))}) for entry in entries)


def categories(classes: Sequence[PublishedClass]) -> tuple[Category, ...]:
    """One category for each class. A synonym that is another's name is dropped, such as "table" of "dining table"."""
    names = {entry.name for entry in classes}
    return tuple(Category(entry.name, tuple(word for word in entry.synonyms if word not in names)) for entry in classes)


def colours(classes: Sequence[PublishedClass]) -> UInt8[np.ndarray, "label 3"]:
    """The official colours, after black for background; goca's own for classes without one."""
    out = palette(len(classes))
    for label, entry in enumerate(classes, start=1):
        if entry.colour:
            out[label] = list(bytes.fromhex(entry.colour[1:]))
    return out


def voc_colours(labels: int) -> UInt8[np.ndarray, "label 3"]:
    """Pascal VOC's colour map: a label's bits, lowest first, go to red, green and blue, from their highest bit down."""
    bits = (np.arange(labels)[:, None] >> np.arange(24) & 1).reshape(labels, 8, 3)
    return (bits << np.arange(7, -1, -1)[:, None]).sum(1).astype(np.uint8)
