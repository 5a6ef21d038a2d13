"""The classes of the published data sets: ids, names, synonyms and colours, from the files in classes/."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from goca.evaluation.datasets.base import Category
from goca.imaging.palette import palette


@dataclass(frozen=True)
class Row:
    """A class as its data set publishes it.

    id: what stands for it in the ground truth's files. group: the super-category. colour: "#rrggbb", where official.
    """

    id: int
    name: str
    synonyms: tuple[str, ...] = ()
    group: str = ""
    colour: str = ""


@cache
def rows(file: str, member: str = "classes") -> tuple[Row, ...]:
    """The classes of classes/FILE.json, in the order of their labels."""
    text = (Path(__file__).parent / "classes" / f"{file}.json").read_text(encoding="utf-8")
    return tuple(Row(**entry | {"synonyms": tuple(entry.get("synonyms", ()))}) for entry in json.loads(text)[member])


def categories(rows: Sequence[Row]) -> tuple[Category, ...]:
    """One category a row. A synonym that is another row's name is that row's: "table" beside "dining table"."""
    names = {row.name for row in rows}
    return tuple(Category(row.name, tuple(word for word in row.synonyms if word not in names)) for row in rows)


def colours(rows: Sequence[Row]) -> UInt8[np.ndarray, "label 3"]:
    """The rows' official colours, after black for background; our own for those that have none."""
    out = palette(len(rows))
    for label, row in enumerate(rows, start=1):
        if row.colour:
            out[label] = list(bytes.fromhex(row.colour[1:]))
    return out


def voc_colours(labels: int) -> UInt8[np.ndarray, "label 3"]:
    """Pascal VOC's colour map: a label's bits, lowest first, dealt to red, green and blue from their highest bit on."""
    label = np.arange(labels)
    channels = np.zeros((labels, 3), np.int64)
    for place in range(8):
        for channel in range(3):
            channels[:, channel] |= (label >> (3 * place + channel) & 1) << (7 - place)
    return channels.astype(np.uint8)
