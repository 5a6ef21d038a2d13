"""The rules of the ideas in `ideas.py`, as functions of tensors.

An affinity A is a matrix of pixels whose row i says what pixel i looks at.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from goca.maths import Grid
from goca.maths.attention import probabilities
from goca.maths.layers import LayerRule
from goca.maths.resize import resize

TINY = 1e-12
BISECTIONS = 30

Square = Float[Tensor, "pixel pixel"]
Maps = Float[Tensor, "class height width"]
RowsOf = Float[Tensor, "row key"]
Statistics = Float[Tensor, " statistic"]


def entropy(rows: RowsOf) -> Float[Tensor, " row"]:
    """The entropy of rows that sum to 1, over the largest that their length allows: 0 to 1."""
    return -torch.xlogy(rows, rows).sum(1) / math.log(rows.shape[1])


def sharpened(affinity: Square, target: float) -> Square:
    """An affinity whose columns are divided by their maximum, after one step down its rows' entropy; rows sum to 1.

    A row p becomes max(0, p + s (log p - log max p)), the gradient of its entropy up to a constant. The step s is the
    same for all rows: the least for which their mean `entropy` is at most `target`. (iSeg, arXiv 2409.03209, takes
    the same s for all images.)
    """
    scaled = affinity / affinity.amax(0).clamp(min=TINY)
    rows = scaled / scaled.sum(1, keepdim=True).clamp(min=TINY)
    slopes = rows.clamp(min=TINY).log()
    slopes -= slopes.amax(1, keepdim=True)

    def after(step: float) -> Square:
        moved = (rows + step * slopes).clamp(min=0)
        return moved / moved.sum(1, keepdim=True).clamp(min=TINY)

    low, high = 0.0, 1.0
    if float(entropy(rows).mean()) <= target:
        return rows
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if float(entropy(after(middle)).mean()) > target:
            low = middle
        else:
            high = middle
    return after(high)


def similarity(outputs: Sequence[Float[Tensor, "pixel _"]], temperature: float) -> Square:
    """The mean over attentions of softmax(cosine / temperature), of their outputs less the mean over pixels."""
    units = [F.normalize(output.float() - output.float().mean(0), dim=1) for output in outputs]
    return torch.stack([torch.softmax(unit @ unit.T / temperature, 1) for unit in units]).mean(0)


def joint_attention(
    q: Float[Tensor, "head key dim"], k: Float[Tensor, "head key dim"], scale: float
) -> Float[Tensor, "key key"]:
    """The head-mean attention of text and pixels to each other, in the order of the keys."""
    return probabilities(q, k, scale).mean(0)


def looked_at(attention: Float[Tensor, "key key"], text: slice, image: slice) -> Float[Tensor, "pixel token"]:
    """How much each token looks at each pixel: the other direction of a joint attention's map."""
    return attention[text, image].T


def two_bounces(attention: Float[Tensor, "key key"], text: slice, image: slice) -> Float[Tensor, "pixel token"]:
    """Pixels to tokens in two steps, by way of pixels or of text: a part of the square (2507.17657)."""
    return attention[image] @ attention[:, text]


def both_directions(there: Maps, back: Maps, power: float) -> Maps:
    """What pixels attend to, times a power of how much each noun looks at them, over its largest value."""
    return there * (back / back.amax((-2, -1), keepdim=True).clamp(min=TINY)) ** power


def clusters(features: Float[Tensor, "pixel channel"], count: int, rounds: int = 10) -> Int[Tensor, " pixel"]:
    """k-means of the directions of features less their mean; begins with pixels far from each other."""
    points = F.normalize(features.float() - features.float().mean(0), dim=1)
    chosen = [int(points.square().sum(1).argmax())]
    distances = torch.cdist(points, points)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(distances[chosen].amin(0).argmax()))
    centres = points[chosen]
    for _ in range(rounds):
        labels = torch.cdist(points, centres).argmin(1)
        members = F.one_hot(labels, len(centres)).to(points)
        sizes = members.sum(0)[:, None]
        centres = torch.where(sizes > 0, members.T @ points / sizes.clamp(min=1), centres)
    return torch.cdist(points, centres).argmin(1)


def voted(maps: Maps, labels: Int[Tensor, " pixel"], grid: Grid) -> Maps:
    """Each pixel takes its cluster's mean scores; averaged over areas to the clusters' grid, and resized back."""
    scores = F.adaptive_avg_pool2d(maps, grid).flatten(1)
    members = F.one_hot(labels).to(scores)
    means = scores @ members / members.sum(0).clamp(min=1)
    return resize(means[:, labels].unflatten(1, grid), (maps.shape[-2], maps.shape[-1]))


def error_drops(
    named: Float[Tensor, "height width"], unnamed: Float[Tensor, "class height width"], maps: Maps
) -> Float[Tensor, " class"]:
    """How much a class's name lowers the denoising error where its map is high, over the mean error.

    named: the error with every class in the caption; unnamed: with every class but one.
    """
    weights = F.adaptive_avg_pool2d(maps, (named.shape[0], named.shape[1])).flatten(1)
    drops = ((unnamed - named).flatten(1) * weights).sum(1) / weights.sum(1).clamp(min=TINY)
    return drops / named.mean()


def raised(maps: Maps, drops: Float[Tensor, " class"], strength: float) -> Maps:
    """Maps, 0 to 1, to the power exp(-strength z), z the standardised drop of the class: a larger drop, a wider map."""
    if len(drops) == 1:
        return maps
    standardised = (drops - drops.mean()) / drops.std(correction=0).clamp(min=TINY)
    return maps.clamp(min=0) ** torch.exp(-strength * standardised)[:, None, None]


def geometric_mean(maps: Sequence[Tensor], least: float = 1e-3) -> Tensor:
    """The exponential of the mean of logarithms of values, which count as `least` at least."""
    return torch.stack([each.clamp(min=least).log() for each in maps]).mean(0).exp()


# Rules for layers: goca-balanced's agreement, times how far a layer's rows are from all looking at the same, or at
# everything. Statistics are summed over rows: first the agreement, then what the factor needs.
def _spread_statistics(r: RowsOf, s: RowsOf) -> Statistics:
    return torch.cat([torch.stack([(r * s).sum(), s.square().sum(), s.new_tensor(len(s))]), s.sum(0)])


def _times_spread(total: Statistics) -> Float[Tensor, ""]:
    agreement, squares, count = total[:3]
    return agreement * (1 - total[3:].square().sum() / count / squares)


def _entropy_statistics(r: RowsOf, s: RowsOf) -> Statistics:
    return torch.stack([(r * s).sum(), (1 - entropy(s)).sum(), s.new_tensor(len(s))])


def _times_certainty(total: Statistics) -> Float[Tensor, ""]:
    return total[0] * total[1] / total[2]


def _gram_statistics(r: RowsOf, s: RowsOf) -> Statistics:
    return torch.cat([torch.stack([(r * s).sum(), s.new_tensor(len(s))]), s.sum(0), (s.T @ s).flatten()])


def _times_second(total: Statistics) -> Float[Tensor, ""]:
    agreement, count, keys = total[0], total[1], math.isqrt(len(total) - 2)
    summed, gram = total[2 : 2 + keys], total[2 + keys :].unflatten(0, (keys, keys))
    return agreement * torch.linalg.eigvalsh(gram - torch.outer(summed, summed) / count)[-1].clamp(min=0).sqrt()


LAYERS_BY_SPREAD = LayerRule(_spread_statistics, _times_spread, balanced=True)
"""Agreement, times 1 - |mean row|^2 / mean |row|^2: 0 if all rows are alike."""
LAYERS_BY_ENTROPY = LayerRule(_entropy_statistics, _times_certainty, balanced=True)
"""Agreement, times 1 - the mean `entropy` of rows: 0 if every row looks at everything."""
LAYERS_BY_SECOND_VALUE = LayerRule(_gram_statistics, _times_second, balanced=True)
"""Agreement, times the largest singular value of the rows less their mean. In place of the second eigenvalue
(2507.17657), which it bounds: sums over rows give the one, but not the other."""
