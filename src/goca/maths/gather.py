"""Other ways to make one map of all layers than `RunningMap`, for methods that do not share a pixel among its tokens.

Both take layers one by one and keep sums alone; with neither do the tokens of a pixel sum to 1.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from goca.maths import Grid
from goca.maths.aggregate import LayerRule
from goca.maths.rescale import minmax
from goca.maths.resize import resize


class RunningMean:
    """sum_l weight_l (layer map on the common grid) / sum_l weight_l, layer by layer."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.mass = 0.0
        self._total: Float[Tensor, "token height width"] | None = None

    def add(self, weight: float, layer_map: Float[Tensor, "pixel token"], grid: Grid) -> None:
        """Add a layer."""
        maps = resize(rearrange(layer_map, "(h w) token -> token h w", h=grid[0]), self.grid) * weight
        self._total = maps if self._total is None else self._total.add_(maps)
        self.mass += weight

    def share(self, grid: Grid) -> float:
        """What a weight of 1 counts for, whatever the layer's grid."""
        return 1.0

    def value(self) -> Float[Tensor, "token height width"]:
        """The mean."""
        assert self._total is not None  # a denoiser that reads no text is not a text-to-image one
        return self._total / self.mass


class MeansByGrid:
    """The layers of a grid averaged, each token's mean min-maxed on the common grid, and the grids' means weighed.

    weights: of grids 1, 2, 4, ... times coarser a side than the common grid; a grid between two of them goes to the
    nearer one, one beyond them to the last. Grids that no layer has drop out, so the values are from 0 to 1.
    """

    def __init__(self, grid: Grid, weights: Sequence[float]) -> None:
        self.grid, self.weights = grid, weights
        self._means: dict[Grid, RunningMean] = {}

    def add(self, weight: float, layer_map: Float[Tensor, "pixel token"], grid: Grid) -> None:
        """Add a layer to the others of its grid."""
        self._means.setdefault(grid, RunningMean(grid)).add(weight, layer_map, grid)

    def share(self, grid: Grid) -> float:
        """What a weight of 1 counts for among the layers of `grid`, which share what their grid weighs."""
        return self._weight(grid) / self._means[grid].mass

    def value(self) -> Float[Tensor, "token height width"]:
        """The weighted mean over grids."""
        weights = {grid: self._weight(grid) for grid in self._means}
        scaled = [weight * minmax(resize(self._means[grid].value(), self.grid)) for grid, weight in weights.items()]
        return torch.stack(scaled).sum(0) / sum(weights.values())

    def _weight(self, grid: Grid) -> float:
        coarser = math.log2(math.prod(self.grid) / math.prod(grid)) / 2
        return self.weights[min(max(0, round(coarser)), len(self.weights) - 1)]


plain_mean = LayerRule(statistics=None, gather=RunningMean)
"""Every layer weighs the same, and the tokens of a pixel need not sum to 1."""
by_resolution = LayerRule(statistics=None, gather=partial(MeansByGrid, weights=(0.1, 0.1, 0.5, 0.3)))
"""A layer weighs by its grid: 0.1, 0.1, 0.5 and 0.3 for the 64, 32, 16 and 8 cells a side of SD 1.5 (DiffSegmenter)."""
