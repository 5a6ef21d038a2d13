"""Layer fusion: how the weighted maps of all layers become one map on the common grid.

Each takes layers one by one and only keeps sums, so that no layer's map has to be kept. Only
in `WeightedSum`, the paper's, the tokens of a pixel sum to 1.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from goca.maths import Grid
from goca.maths.rescale import minmax
from goca.maths.resize import resize

Weight = Float[Tensor, ""] | float
"""The weight of a layer; a tensor, at least `LEAST`, stays on its device to avoid synchronisation."""
LEAST = 1e-30
"""The value of a weight of 0: negligible beside others, and equal for all layers if all are 0."""


class WeightedMean:
    """sum_l weight_l (layer map on the common grid) / sum_l weight_l."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._weights: list[Weight] = []
        self._total: Float[Tensor, "token height width"] | None = None

    def add(self, weight: Weight, layer_map: Float[Tensor, "pixel token"], grid: Grid) -> None:
        """Add the map of a layer on `grid`; weights need not sum to 1."""
        maps = resize(rearrange(layer_map, "(h w) token -> token h w", h=grid[0]), self.grid) * weight
        self._total = maps if self._total is None else self._total.add_(maps)
        self._weights.append(weight)

    @property
    def mass(self) -> Weight:
        """The sum of the weights."""
        return sum(self._weights)

    def effective_weight(self, grid: Grid) -> float:
        """The effect of a weight of 1 in a layer on `grid`."""
        return 1.0

    def value(self) -> Float[Tensor, "token height width"]:
        """The fused map; at least one layer must have been added."""
        assert self._total is not None  # a text-to-image denoiser reads text
        return self._total / self.mass


class WeightedSum(WeightedMean):
    """sum_l weight_l (layer map on the common grid), clamped at 0, normalised over tokens (paper, global map)."""

    def add(self, weight: Weight, layer_map: Float[Tensor, "pixel token"], grid: Grid) -> None:
        super().add(weight if isinstance(weight, Tensor) else max(weight, LEAST), layer_map, grid)

    def value(self) -> Float[Tensor, "token height width"]:
        assert self._total is not None
        summed = self._total.clamp(min=0)
        mass = summed.sum(0, keepdim=True)
        return (summed / mass).masked_fill_(mass == 0, 0.0)  # written so that NaN stays NaN


class PerResolutionMean:
    """The layers of a grid averaged, each token's mean min-maxed on the common grid, and the grids' means weighed.

    Grids that no layer has drop out, so the values are in [0, 1]. `weights` are of grids 1, 2, 4, ... times coarser a
    side than the common grid; a grid between two of them takes the nearer one's, a grid beyond them the last.
    """

    def __init__(self, grid: Grid, weights: Sequence[float]) -> None:
        self.grid, self.weights = grid, weights
        self._means: dict[Grid, WeightedMean] = {}

    def add(self, weight: Weight, layer_map: Float[Tensor, "pixel token"], grid: Grid) -> None:
        self._means.setdefault(grid, WeightedMean(grid)).add(weight, layer_map, grid)

    def effective_weight(self, grid: Grid) -> Weight:
        # The layers of a grid share the grid's weight.
        return self._weight(grid) / self._means[grid].mass

    def value(self) -> Float[Tensor, "token height width"]:
        weights = {grid: self._weight(grid) for grid in self._means}
        scaled = [weight * minmax(resize(self._means[grid].value(), self.grid)) for grid, weight in weights.items()]
        return torch.stack(scaled).sum(0) / sum(weights.values())

    def _weight(self, grid: Grid) -> float:
        coarser = math.log2(math.prod(self.grid) / math.prod(grid)) / 2
        return self.weights[min(max(0, round(coarser)), len(self.weights) - 1)]


LayerFusion = WeightedMean | PerResolutionMean
