"""Layer-wise weights (paper, gap 1b): the weight of each layer's map in the global one.

Layers are weighted by how well their self-attention agrees with the model's own dense feature. A rule is a value, a
`LayerRule`; a new rule is a new value, and nothing here depends on the names of rules.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from goca.maths import Grid
from goca.maths.attention import DENSE_PIXELS, affinity_blocks, probabilities
from goca.maths.fusion import LEAST, LayerFusion, PerResolutionMean, Weight, WeightedMean, WeightedSum
from goca.maths.resize import constant, picked_pixels, resize_keys, resize_keys_adjoint, rows_in

RowStatistics = Callable[[Float[Tensor, "row key"], Float[Tensor, "row key"]], Float[Tensor, " statistic"]]
"""(rows of R, the same rows of S') -> statistics, which are summed over all rows."""


def _first(total: Float[Tensor, " statistic"]) -> Float[Tensor, ""]:
    return total[0]


@dataclass(frozen=True)
class LayerRule:
    """How a layer's self-affinity S' is compared with the reference affinity R, both on the reference grid.

    weight = finish(sum over row blocks of statistics(R rows, S' rows)); less than 0 counts as 0.

    Attributes:
        statistics: See `RowStatistics`; without it the weight is 1 and no affinity is computed.
        finish: From the summed statistics to the weight.
        bilinear: `statistics` is linear in R and in S', so the resizing of S may move to R (`Reference.pulled`).
        balanced: Rows of S' are divided by their sum first.
        fusion: Fuses the weighted layers into one map on a given grid.
    """

    statistics: RowStatistics | None
    finish: Callable[[Float[Tensor, " statistic"]], Float[Tensor, ""]] = _first
    bilinear: bool = False
    balanced: bool = False
    fusion: Callable[[Grid], LayerFusion] = WeightedSum


# Functions, not lambdas: a plan holds its rules, and results that hold a plan are pickled.
def _product(r: Float[Tensor, "row key"], s: Float[Tensor, "row key"]) -> Float[Tensor, " statistic"]:
    return (r * s).sum()[None]


def _overlap(r: Float[Tensor, "row key"], s: Float[Tensor, "row key"]) -> Float[Tensor, " statistic"]:
    return torch.stack([torch.minimum(r, s).sum(), torch.maximum(r, s).sum()])


def _overlap_ratio(total: Float[Tensor, " statistic"]) -> Float[Tensor, ""]:
    return total[0] / (total[1] + 1e-4)


def _distance(r: Float[Tensor, "row key"], s: Float[Tensor, "row key"]) -> Float[Tensor, " statistic"]:
    return (r - s).norm(dim=-1).sum()[None]


def _inverse(total: Float[Tensor, " statistic"]) -> Float[Tensor, ""]:
    return 1 / total[0].clamp(min=1e-6)


def _weighed_by_resolution(grid: Grid) -> LayerFusion:
    return PerResolutionMean(grid, weights=(0.1, 0.1, 0.5, 0.3))


mean_layers = LayerRule(statistics=None)
"""Every layer weighs the same."""
agreement = LayerRule(_product, bilinear=True)
"""sum_ij R_ij S'_ij (paper, layer-wise weights). A layer s times coarser has rows that sum to s^2, and weighs more."""
balanced_agreement = LayerRule(_product, bilinear=True, balanced=True)
"""`agreement` of affinities whose rows sum to 1 again after resizing: no grid is favoured."""
iou_like = LayerRule(_overlap, _overlap_ratio)
"""sum min(R, S') / sum max(R, S')."""
inverse_distance = LayerRule(_distance, _inverse)
"""1 / sum_i |R_i - S'_i| over rows i, at most 1e6."""
plain_mean = LayerRule(statistics=None, fusion=WeightedMean)
"""Every layer weighs the same, and the tokens of a pixel need not sum to 1."""
by_resolution = LayerRule(statistics=None, fusion=_weighed_by_resolution)
"""A layer weighs by its grid: 0.1, 0.1, 0.5 and 0.3 for the 64, 32, 16 and 8 cells a side of SD 1.5 (DiffSegmenter)."""


ChannelRule = Callable[[Float[Tensor, "pixel channel"]], Float[Tensor, "pixel some_channel"]]
"""A dense feature -> the channels by which pixels are compared."""


def all_channels(feature: Float[Tensor, "pixel channel"]) -> Float[Tensor, "pixel channel"]:
    """The whole feature, as published."""
    return feature


def first_channel(feature: Float[Tensor, "pixel channel"]) -> Float[Tensor, "pixel 1"]:
    """Only the first channel of the first head, as in the authors' script for segmentation; d is then 1."""
    return feature[:, :1]


class Reference:
    """R = softmax(F F^T / sqrt(d)) of the reference layer's dense feature F, also as other grids see it.

    Matrices of up to 4096 x 4096, including R itself, are kept; rows of larger ones are computed on demand.
    """

    def __init__(self, feature: Float[Tensor, "pixel model"], grid: Grid) -> None:
        # In its own dtype: it is cast when rows of R are computed, and those of a small R are computed once.
        self.feature, self.grid = feature[None], grid
        self._pulled: dict[Grid, Tensor] = {}

    def rows(self, pixels: Int[Tensor, " row"] | slice) -> Float[Tensor, "row pixel"]:
        """Rows of R."""
        count = self.feature.shape[1]
        if count > DENSE_PIXELS:
            return probabilities(self.feature[:, pixels], self.feature, self.feature.shape[-1] ** -0.5)[0]
        if self.grid not in self._pulled:
            matrix = self.feature.new_empty(count, count, dtype=torch.float32)
            for block, part in affinity_blocks(self.feature, self.feature, self.feature.shape[-1] ** -0.5):
                matrix[block] = part
            self._pulled[self.grid] = matrix
        return self._pulled[self.grid][pixels]

    def picked(self, grid: Grid) -> tuple[Int[Tensor, " row"], Int[Tensor, " pixel"]]:
        """(rows of a layer on `grid` that nearest-neighbour picks, for each reference pixel its index among them)."""
        return picked_pixels(grid, self.grid, self.feature.device)

    def pulled(self, grid: Grid, block: slice) -> Float[Tensor, "row key"]:
        """Rows of N^T R B: sum R * (N S B^T) = sum pulled * S[picked rows], so that S is never resized."""
        if grid == self.grid:
            return self.rows(block)
        rows, _ = self.picked(grid)
        if len(rows) * grid[0] * grid[1] > DENSE_PIXELS**2:
            return self._pull(grid, block)
        if grid not in self._pulled:
            self._pulled[grid] = self._pull(grid, slice(0, len(rows)))
        return self._pulled[grid][block]

    def _pull(self, grid: Grid, block: slice) -> Float[Tensor, "row key"]:
        pixels, rows = rows_in(block.start, block.stop, grid, self.grid, self.feature.device)
        out = self.feature.new_zeros(block.stop - block.start, grid[0] * grid[1], dtype=torch.float32)
        # Many reference pixels may share a row of a coarse layer, so they come some at a time.
        for part, targets in zip(pixels.split(DENSE_PIXELS), rows.split(DENSE_PIXELS), strict=True):
            out.index_add_(0, targets, resize_keys_adjoint(self.rows(part), grid, self.grid))
        return out


class LayerWeigher:
    """A layer's weight, summed over the blocks of its affinity in any order; `rows` are the rows that it needs."""

    def __init__(self, rule: LayerRule, reference: Reference, grid: Grid) -> None:
        self.rule, self.reference, self.grid = rule, reference, grid
        self.rows, _ = reference.picked(grid)
        self.total: Tensor | None = None

    def add(self, block: slice, affinity: Float[Tensor, "block pixel"]) -> None:
        """Take the affinity's rows `self.rows[block]`."""
        if self.rule.statistics is None:
            return
        if self.rule.balanced:
            mass = (affinity @ key_mass(self.grid, self.reference.grid, affinity.device))[:, None]
            # A row may only attend to keys that the resizing skips: then nothing of it is left to balance.
            affinity = (affinity / mass).masked_fill_(mass == 0, 0.0)
        if self.rule.bilinear:
            statistics = self.rule.statistics(self.reference.pulled(self.grid, block), affinity)
        else:
            pixels, rows = rows_in(block.start, block.stop, self.grid, self.reference.grid, affinity.device)
            resized = resize_keys(affinity, self.grid, self.reference.grid)[rows]
            statistics = self.rule.statistics(self.reference.rows(pixels), resized)
        self.total = statistics if self.total is None else self.total + statistics

    def add_rows(self, block: slice, affinity: Float[Tensor, "block pixel"]) -> None:
        """Take from the affinity's rows `block` those that are wanted."""
        on_host, _ = picked_pixels(self.grid, self.reference.grid)
        first, past = torch.searchsorted(on_host, torch.tensor([block.start, block.stop])).tolist()
        if past - first == len(affinity):
            self.add(slice(first, past), affinity)
        elif first < past:
            self.add(slice(first, past), affinity[self.rows[first:past] - block.start])

    def value(self) -> Float[Tensor, ""] | float:
        """The weight, clamped at `LEAST`, not yet normalised over layers, on its device; NaN stays NaN."""
        return 1.0 if self.total is None else self.rule.finish(self.total).clamp(min=LEAST)


@constant
def key_mass(grid: Grid, reference: Grid, device: torch.device) -> Float[Tensor, " pixel"]:
    """The weight of each key of a layer on `grid` in a row that is resized to the reference grid."""
    return resize_keys_adjoint(torch.ones(1, math.prod(reference), device=device), grid, reference)[0]


def layer_weight(rule: LayerRule, reference: Reference, grid: Grid, blocks: Iterable[tuple[slice, Tensor]]) -> Weight:
    """The weight of a layer whose affinity's rows come block by block."""
    weigher = LayerWeigher(rule, reference, grid)
    for block, affinity in blocks:
        weigher.add(block, affinity)
    return weigher.value()
