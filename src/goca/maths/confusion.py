"""Confusion matrices: a sum over images, so that shards add; every score is a function of the sum."""

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from goca.errors import GocaError


def confusion(
    truth: Integer[Tensor, "*pixels"], predicted: Integer[Tensor, "*pixels"], classes: int, void: int | None = None
) -> Int[Tensor, "classes classes"]:
    """Counts of (truth, predicted) label pairs in 0 .. classes - 1; pixels whose truth is `void` do not count.

    Raises GocaError for any other label: a mistake in a label map must not pass for another class.
    """
    if void is not None:
        kept = truth != void
        truth, predicted = truth[kept], predicted[kept]
    truth, predicted = truth.long().flatten(), predicted.long().flatten()
    for labels in (truth, predicted):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise GocaError(f"labels {int(labels.min())} to {int(labels.max())} are not all in 0 to {classes - 1}")
    return torch.bincount(truth * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def iou(matrix: Int[Tensor, "classes classes"]) -> Float[Tensor, " classes"]:
    """Intersection over union of each class, 0 to 1; NaN for a class that is neither there nor predicted."""
    hit = matrix.diagonal().double()
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return hit / union


def mean_iou(matrix: Int[Tensor, "classes classes"]) -> float:
    """Mean of `iou` over the classes that occur in the truth, 0 to 1; a class only ever predicted is left out."""
    return float(iou(matrix)[matrix.sum(1) > 0].mean())


def pixel_accuracy(matrix: Int[Tensor, "classes classes"]) -> float:
    """Share of pixels labelled right, 0 to 1."""
    return float(matrix.diagonal().sum() / matrix.sum())
