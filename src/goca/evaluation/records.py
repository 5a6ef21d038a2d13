"""What is written down of each image: its caption, what was asked, and its confusion counts under each labelling."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Int64, UInt16

from goca.evaluation.datasets.base import VOID
from goca.evaluation.metrics import Tally

Counts = tuple[tuple[int, int, int], ...]
"""(true label, label found, pixels), of the pairs that occur."""
Labels = UInt16[np.ndarray, "height width"]


@dataclass(frozen=True)
class ImageRecord:
    """One image, done: or left out, and then why.

    caption: what the tagger said. classes, background_classes: what was asked for, in the prompt's order. notes: what the protocol
    and the model had to do. counts: of each labelling; void pixels are in none.
    """

    id: str
    caption: str | None = None
    classes: tuple[str, ...] = ()
    background_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    counts: Mapping[str, Counts] | None = None
    left_out: str = ""

    def line(self) -> str:
        """As one line of JSON, without its end."""
        told = {name: value for name, value in asdict(self).items() if value not in ((), None)}
        return json.dumps({name: value for name, value in told.items() if name != "left_out" or value})

    @classmethod
    def read(cls, line: str | bytes) -> "ImageRecord":
        """From its line; ValueError for what is none."""
        told = json.loads(line)
        try:
            counts = told.get("counts")
            if counts is not None:
                counts = {name: tuple((int(a), int(b), int(n)) for a, b, n in some) for name, some in counts.items()}
            elif not told.get("left_out"):
                raise ValueError("it was neither counted nor left out")
            lists = {name: tuple(told.get(name, ())) for name in ("classes", "background_classes", "notes")}
            return cls(told["id"], told.get("caption"), **lists, counts=counts, left_out=told.get("left_out", ""))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None


def count(truth: Labels, found: Labels, labels: int) -> Counts:
    """Pairs of labels in 0 .. labels - 1 and how often they occur; pixels whose truth is void do not count."""
    kept = truth != VOID
    true, said = truth[kept].astype(np.int64), found[kept].astype(np.int64)
    pairs, pixels = np.unique(true * labels + said, return_counts=True)
    rows, columns = np.divmod(pairs, labels)
    return tuple(zip(rows.tolist(), columns.tolist(), pixels.tolist(), strict=True))


def tally(images: Sequence[ImageRecord], labelling: str, labels: int) -> Tally:
    """The counts of images that were not left out, by label, under one labelling."""
    hit, truth, found = (np.zeros((len(images), labels), np.int64) for _ in range(3))
    for index, image in enumerate(images):
        for true, said, pixels in (image.counts or {})[labelling]:
            truth[index, true] += pixels
            found[index, said] += pixels
            if true == said:
                hit[index, true] += pixels
    return Tally(*(torch.from_numpy(some) for some in (hit, truth, found)))


def matrix(images: Sequence[ImageRecord], labelling: str, labels: int) -> Int64[np.ndarray, "label label"]:
    """The confusion matrix of all images together, truth first."""
    out = np.zeros((labels, labels), np.int64)
    for image in images:
        for true, said, pixels in (image.counts or {})[labelling]:
            out[true, said] += pixels
    return out
