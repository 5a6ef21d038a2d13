"""The record of each image: its caption, its classes, and its confusion counts under each labelling."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from goca.evaluation.datasets.base import VOID, LabelMap
from goca.evaluation.metrics import Tally
from goca.storage.reading import whole

Counts = tuple[tuple[int, int, int], ...]
"""(true label, predicted label, pixels), for the pairs that occur."""


@dataclass(frozen=True)
class ImageRecord:
    """An evaluated image, or one that was left out with the reason.

    Attributes:
        caption: The tagger's caption; None if it gave none.
        classes: Classes that the model was asked for, in the prompt's order.
        background_classes: Further nouns of the prompt, in order.
        notes: Changes that the protocol or the model made.
        counts: {labelling: counts}; void pixels are not counted.
        left_out: Why the image has no counts.
    """

    id: str
    caption: str | None = None
    classes: tuple[str, ...] = ()
    background_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    counts: Mapping[str, Counts] | None = None
    left_out: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields that are not empty, as JSON."""
        fields = asdict(self)
        if not self.left_out:
            del fields["left_out"]
        return {name: value for name, value in fields.items() if value not in ((), None)}

    @classmethod
    def from_json(cls, value: Any) -> "ImageRecord":
        """The inverse of `to_json`. Raises ValueError for what is not a record."""
        try:
            counts = value.get("counts")
            if counts is not None:
                counts = {
                    name: tuple(
                        (whole(true), whole(predicted), whole(pixels, 1)) for true, predicted, pixels in triples
                    )
                    for name, triples in counts.items()
                }
            elif not value.get("left_out"):
                raise ValueError("it was neither counted nor left out")
            lists = {name: tuple(value.get(name, ())) for name in ("classes", "background_classes", "notes")}
            record = cls(value["id"], value.get("caption"), **lists, counts=counts, left_out=value.get("left_out", ""))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        texts = (
            record.id,
            record.caption or "",
            record.left_out,
            *(text for texts in lists.values() for text in texts),
        )
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("what should be text is not")
        return record


def count(truth: LabelMap, predicted: LabelMap, labels: int) -> Counts:
    """Pairs of labels in 0 .. labels - 1 and how often they occur; pixels whose truth is void are skipped."""
    kept = truth != VOID
    pairs, pixels = np.unique(
        truth[kept].astype(np.int64) * labels + predicted[kept].astype(np.int64), return_counts=True
    )
    rows, columns = np.divmod(pairs, labels)
    return tuple(zip(rows.tolist(), columns.tolist(), pixels.tolist(), strict=True))


def tally(images: Sequence[ImageRecord], labelling: str, labels: int) -> Tally:
    """The counts by label, under one labelling, of the images that were not left out."""
    hit, truth, predicted_pixels = (np.zeros((len(images), labels), np.int64) for _ in range(3))
    for index, image in enumerate(images):
        for true, predicted, pixels in (image.counts or {})[labelling]:
            truth[index, true] += pixels
            predicted_pixels[index, predicted] += pixels
            if true == predicted:
                hit[index, true] += pixels
    return Tally(*map(torch.from_numpy, (hit, truth, predicted_pixels)))


def matrix(images: Sequence[ImageRecord], labelling: str, labels: int) -> Int64[np.ndarray, "label label"]:
    """The confusion matrix of all images together, truth first."""
    out = np.zeros((labels, labels), np.int64)
    for image in images:
        for true, predicted, pixels in (image.counts or {})[labelling]:
            out[true, predicted] += pixels
    return out
