"""From one confusion matrix a picture to scores over all of them, and how sure they are.

Intersections and unions are summed over the whole data set, then divided. Intervals are percentile bootstraps over
pictures; two methods are compared on the same resampled pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from goca.maths.confusion import iou, mean_iou, pixel_accuracy

RESAMPLES = 2000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Score:
    """Scores from 0 to 1. per_class: {name: IoU} of the classes that occur. ci95: of miou."""

    miou: float
    pixel_accuracy: float
    per_class: dict[str, float]
    ci95: Interval


def score(matrices: Int[Tensor, "picture label label"], names: Sequence[str]) -> Score:
    """The scores of a run; `names` are those of labels 1, 2, ...; label 0 is no class and takes no part in the mean."""
    total = matrices.sum(0)
    there = total.sum(1) > 0
    per_class = {name: float(one) for name, one, seen in zip(names, iou(total)[1:], there[1:], strict=True) if seen}
    return Score(mean_iou(total), pixel_accuracy(total), per_class, _interval(resampled_miou(matrices)))


def gain(
    ours: Int[Tensor, "picture label label"], theirs: Int[Tensor, "picture label label"]
) -> tuple[float, Interval]:
    """(difference of mIoU, its 95 % interval) of two runs over the same pictures, paired."""
    difference = mean_iou(ours.sum(0)) - mean_iou(theirs.sum(0))
    return difference, _interval(resampled_miou(ours) - resampled_miou(theirs))


def resampled_miou(matrices: Int[Tensor, "picture label label"], seed: int = 0) -> Float[Tensor, " resample"]:
    """mIoU of pictures drawn with replacement, again and again; the same draws for every run of as many pictures."""
    count = len(matrices)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
    often = torch.zeros(RESAMPLES, count).scatter_add_(1, drawn, torch.ones(RESAMPLES, count))
    hit = often @ matrices.diagonal(dim1=1, dim2=2).float()
    truth, predicted = (often @ matrices.sum(axis).float() for axis in (2, 1))
    ratio = hit / (truth + predicted - hit)
    # As in `mean_iou`: over the classes that occur among the pictures drawn.
    return torch.where(truth > 0, ratio, torch.nan).nanmean(1)


def _interval(values: Float[Tensor, " resample"]) -> Interval:
    low, high = values.quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
