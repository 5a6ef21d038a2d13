"""From pixel counts of each image to scores over all images, with confidence intervals.

Intersections and unions are summed over the whole data set, then divided. Intervals are percentile bootstraps over
images; two methods are compared on the same resampled images. Counts are whole numbers, so scores do not depend on the
order of the images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

RESAMPLES = 2000
SIZES = (0.0, 32**2 / (640 * 480), 96**2 / (640 * 480), 0.1, 0.3, 1.0)
"""Bands of region size, as shares of an image: COCO's small and medium, at 640 x 480 px, and three of large."""
CHUNK = 2**20
"""Most draws that the bootstrap holds in memory at once."""
Interval = tuple[float, float]
Figure = tuple[float, Interval]
"""A value and its 95 % interval."""


@dataclass(frozen=True)
class Counting:
    """Which labels a mean is over, and how labels that never occur count.

    Attributes:
        background: Whether label 0 is one of them.
        absent: Whether a label that occurs in no image's truth counts as 0; otherwise it is left out of the mean.
    """

    background: bool = False
    absent: bool = False


@dataclass(frozen=True)
class Tally:
    """Pixels of each image by label: the parts of confusion matrices that scores need. Label 0 is background.

    `truth` counts the pixels of a label, `predicted` those that were predicted as it, `hit` those that are both.
    """

    hit: Int[Tensor, "image label"]
    truth: Int[Tensor, "image label"]
    predicted: Int[Tensor, "image label"]

    def total(self) -> Float[Tensor, "3 label"]:
        """hit, truth and predicted of all images together."""
        return torch.stack([counts.sum(0).double() for counts in (self.hit, self.truth, self.predicted)])


@dataclass(frozen=True)
class Score:
    """Scores from 0 to 1.

    Attributes:
        miou: Mean of `per_class`, {name: IoU}, whose length is `labels`.
        ci95: 95 % interval of miou.
        frequency_weighted_iou: Mean IoU, each label weighted by its number of pixels.
    """

    miou: float
    ci95: Interval
    pixel_accuracy: float
    frequency_weighted_iou: float
    labels: int
    per_class: dict[str, float]


def score(tally: Tally, names: Sequence[str], counting: Counting = Counting()) -> Score:
    """The scores of a run; `names` are those of labels 1, 2, ..."""
    hit, truth, predicted = tally.total()
    ratio = _iou(hit, truth, predicted)
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


@dataclass(frozen=True)
class SizeScore:
    """Scores, 0 to 1, of the regions in a band of size. A region is all pixels of a label in an image.

    Attributes:
        shares: Lower (exclusive) and upper bound of the band, as shares of an image's labelled pixels.
        regions: Number of regions, of `labels` labels.
        miou: Mean over labels of their IoU, which is summed over the images in which their region is of this size.
            Pixels that were predicted as the label in other images are in no band.
        ci95: 95 % interval of miou.
        recall: Mean over labels of the share of the regions' pixels that were found.
    """

    shares: tuple[float, float]
    regions: int
    labels: int
    miou: float
    ci95: Interval
    recall: float


def parts_by_size(tally: Tally, counting: Counting = Counting()) -> list[tuple[tuple[float, float], Tally]]:
    """(a band of `SIZES`, the counts of the regions in it), for each band that has a region."""
    shares = tally.truth / tally.truth.sum(1, keepdim=True)
    if not counting.background:
        shares[:, 0] = torch.nan
    parts = []
    for low, high in pairwise(SIZES):
        inside = (shares > low) & (shares <= high)
        if inside.any():
            parts.append(((low, high), Tally(tally.hit * inside, tally.truth * inside, tally.predicted * inside)))
    return parts


def by_size(tally: Tally, counting: Counting = Counting()) -> list[SizeScore]:
    """The scores of each band of `SIZES` that has a region. Labels without a region in it are left out of its mean."""
    counting = replace(counting, absent=False)
    scores = []
    for shares, part in parts_by_size(tally, counting):
        hit, truth, _ = part.total()
        regions = part.truth > 0
        scores.append(
            SizeScore(
                shares=shares,
                regions=int(regions.sum()),
                labels=int(regions.any(0).sum()),
                miou=miou(part, counting),
                ci95=interval(resampled_miou(part, counting)),
                recall=float(_counted(hit / truth, truth, counting).nanmean()),
            )
        )
    return scores


def band(shares: Sequence[float]) -> str:
    """A band of size in words: "3 to 10 %"."""
    low, high = (f"{100 * share:.2g}" if share < 1 else "100" for share in shares)
    return f"{low} to {high} %"


def percentage(value: float, bounds: Sequence[float], sign: str = "") -> str:
    """A score and its interval in per cent: 60.7 [58.1, 63.2], or with sign "+" a difference: +1.5 [-0.3, +3.2]."""
    return "{} [{}]".format(f"{100 * value:{sign}.1f}", ", ".join(f"{100 * bound:{sign}.1f}" for bound in bounds))


def miou(tally: Tally, counting: Counting = Counting()) -> float:
    """Mean IoU only, 0 to 1."""
    hit, truth, predicted = tally.total()
    return float(_counted(_iou(hit, truth, predicted), truth, counting).nanmean())


def gain(ours: Tally, theirs: Tally, counting: Counting = Counting()) -> Figure:
    """(difference of mIoU, its 95 % interval) of two runs over the same images, paired."""
    difference = miou(ours, counting) - miou(theirs, counting)
    return difference, interval(resampled_miou(ours, counting) - resampled_miou(theirs, counting))


def resampled_miou(tally: Tally, counting: Counting = Counting(), seed: int = 0) -> Float[Tensor, " resample"]:
    """mIoU of bootstrap resamples of the images; the same draws for all runs with equally many images.

    Resamples are computed in chunks to limit memory. Random numbers are drawn one after the other and sums of whole
    numbers are exact in float64, so the result does not depend on the chunks.
    """
    parts = [counts.double() for counts in (tally.hit, tally.truth, tally.predicted)]
    sums = [torch.stack([times @ counts for counts in parts]) for times in _times_drawn(len(tally.hit), seed)]
    hit, truth, predicted = torch.cat(sums, dim=1)
    return _counted(_iou(hit, truth, predicted), truth, counting).nanmean(1)


def mean(values: Sequence[float], seed: int = 0) -> Figure:
    """(mean, its 95 % interval) of a figure of each image, which may be a paired difference."""
    of_images = torch.tensor(values, dtype=torch.float64)
    resampled = torch.cat([times @ of_images / len(values) for times in _times_drawn(len(values), seed)])
    return float(of_images.mean()), interval(resampled)


def ratio(numerators: Float[Tensor, "image part"], denominators: Float[Tensor, "image part"], seed: int = 0) -> Figure:
    """(sum of numerators / sum of denominators over images, mean over parts; its 95 % interval)."""
    above, below = numerators.double(), denominators.double()
    resampled = torch.cat([(times @ above / (times @ below)).mean(1) for times in _times_drawn(len(above), seed)])
    return float((above.sum(0) / below.sum(0)).mean()), interval(resampled)


def _times_drawn(images: int, seed: int) -> Iterator[Float[Tensor, "resample image"]]:
    """How often each image is drawn, for a chunk of resamples at a time."""
    generator = torch.Generator().manual_seed(seed)
    for rows in torch.arange(RESAMPLES).split(max(1, CHUNK // images)):
        drawn = torch.randint(images, (len(rows), images), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        yield times.scatter_add_(1, drawn, torch.ones(1, 1, dtype=torch.float64).expand_as(times))


def _iou(hit: Tensor, truth: Tensor, predicted: Tensor) -> Float[Tensor, "*resample label"]:
    """Intersection over union; NaN for a label that neither occurs nor is predicted."""
    return hit / (truth + predicted - hit)


def _counted(ratio: Tensor, truth: Tensor, counting: Counting) -> Float[Tensor, "*resample label"]:
    """The IoU of each label that a mean is over, NaN for the others."""
    absent = 0.0 if counting.absent else torch.nan
    out = torch.where(truth > 0, ratio, absent)
    if not counting.background:
        out[..., 0] = torch.nan
    return out


def interval(values: Float[Tensor, " resample"]) -> Interval:
    """The 95 % percentile interval of resampled values, ignoring NaN, from images without any label."""
    low, high = values.nanquantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
