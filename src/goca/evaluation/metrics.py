"""From pixel counts of each image to scores over all of them, and how sure they are.

Intersections and unions are summed over the whole data set, then divided. Intervals are percentile bootstraps over
images; two methods are compared on the same resampled images. Counts are whole numbers, so no score depends on the
order in which images were done.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

RESAMPLES = 2000
HELD, PART = 2**22, 2**11
"""What the bootstrap holds at once: how often images were drawn, so many numbers; the counts of so many images."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Counting:
    """Which labels a mean is over, and what it makes of those that never occur.

    background: label 0 is one of them. absent: a label that no image's truth has counts 0; without it, it is left
    out of the mean.
    """

    background: bool = False
    absent: bool = False


@dataclass(frozen=True)
class Tally:
    """Pixels of each image, by label; all that scores need of confusion matrices.

    hit: of the label and found as it. truth: of the label. found: found as it. Label 0 is background.
    """

    hit: Int[Tensor, "image label"]
    truth: Int[Tensor, "image label"]
    found: Int[Tensor, "image label"]

    @classmethod
    def of(cls, matrices: Int[Tensor, "image label label"]) -> "Tally":
        """From one confusion matrix an image, truth first."""
        return cls(matrices.diagonal(dim1=1, dim2=2), matrices.sum(2), matrices.sum(1))


@dataclass(frozen=True)
class Score:
    """Scores from 0 to 1. ci95: of miou. per_class: {name: IoU} of the labels in the mean.

    frequency_weighted_iou: each label's IoU weighs as many pixels as it has. labels: how many the mean is over.
    """

    miou: float
    ci95: Interval
    pixel_accuracy: float
    frequency_weighted_iou: float
    labels: int
    per_class: dict[str, float]


def score(tally: Tally, names: Sequence[str], counting: Counting = Counting()) -> Score:
    """The scores of a run; `names` are those of labels 1, 2, ..."""
    hit, truth, found = (counts.sum(0).double() for counts in (tally.hit, tally.truth, tally.found))
    ratio = _ratios(hit, truth, found)
    counted = _counted(ratio, truth, counting)
    named = zip(("background", *names), counted.tolist(), strict=True)
    per_class = {name: value for name, value in named if value == value}
    weighted = (ratio.nan_to_num() * truth).sum() / truth.sum()
    return Score(
        miou=float(counted.nanmean()),
        ci95=interval(resampled_miou(tally, counting)),
        pixel_accuracy=float(hit.sum() / truth.sum()),
        frequency_weighted_iou=float(weighted),
        labels=len(per_class),
        per_class=per_class,
    )


def miou(tally: Tally, counting: Counting = Counting()) -> float:
    """Mean IoU alone, 0 to 1."""
    hit, truth, found = (counts.sum(0).double() for counts in (tally.hit, tally.truth, tally.found))
    return float(_counted(_ratios(hit, truth, found), truth, counting).nanmean())


def gain(ours: Tally, theirs: Tally, counting: Counting = Counting()) -> tuple[float, Interval]:
    """(difference of mIoU, its 95 % interval) of two runs over the same images, paired."""
    difference = miou(ours, counting) - miou(theirs, counting)
    return difference, interval(resampled_miou(ours, counting) - resampled_miou(theirs, counting))


def resampled_miou(
    tally: Tally,
    counting: Counting = Counting(),
    seed: int = 0,
) -> Float[Tensor, " resample"]:
    """mIoU of images drawn with replacement, again and again; the same draws for every run of as many images.

    Needs some 50 MiB and a few numbers for each resample and label, however many images there are.
    """
    hit, truth, found = _resampled(tally, seed)
    return _counted(_ratios(hit, truth, found), truth, counting).nanmean(1)


def _resampled(tally: Tally, seed: int) -> Float[Tensor, "kind resample label"]:
    """hit, truth and found, summed over the images of each of `RESAMPLES` draws.

    Only some resamples are drawn, and some images multiplied, at once, in memory that is used again. The draws are
    the same, as one number is drawn after the other; so are the sums, as whole numbers in float64 are exact.
    """
    count, labels = tally.hit.shape
    generator = torch.Generator().manual_seed(seed)
    held = torch.empty(max(1, min(RESAMPLES, HELD // count)), count, dtype=torch.float64)
    part = torch.empty(min(PART, count), labels, dtype=torch.float64)
    sums = torch.zeros(3, RESAMPLES, labels, dtype=torch.float64)
    for some in sums.split(len(held), dim=1):
        times = held[: some.shape[1]]
        for row in times:
            row.copy_(torch.randint(count, (count,), generator=generator).bincount(minlength=count))
        for total, counts in zip(some, (tally.hit, tally.truth, tally.found), strict=True):
            for often, images in zip(times.split(PART, dim=1), counts.split(PART), strict=True):
                total.addmm_(often, part[: len(images)].copy_(images))
    return sums


def _ratios(hit: Tensor, truth: Tensor, found: Tensor) -> Float[Tensor, "*resample label"]:
    """Intersection over union; NaN for a label that is neither there nor found."""
    return hit / (truth + found - hit)


def _counted(ratio: Tensor, truth: Tensor, counting: Counting) -> Float[Tensor, "*resample label"]:
    """The IoU of each label that a mean is over, NaN for the others."""
    absent = 0.0 if counting.absent else torch.nan
    out = torch.where(truth > 0, ratio, absent)
    if not counting.background:
        out[..., 0] = torch.nan
    return out


def interval(values: Float[Tensor, " resample"]) -> Interval:
    """The 95 % percentile interval of resampled values; those that are NaN, of images without any label, left out."""
    low, high = values.nanquantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
