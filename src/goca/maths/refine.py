"""Refinement: scores <- (S-bar)^order scores, with S-bar the mean head-mean self-attention of a few layers.

A layer on another grid than the scores acts as x -> N S B^T x (nearest on queries, bilinear on keys), on its own
pixels. Layers of one grid are summed into one matrix, unless that matrix would be larger than the one that a 64 x 64
grid needs (67 MB): then queries and keys are kept and the maps are propagated as the values of an attention.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from goca.maths import Grid
from goca.maths.attention import DENSE_PIXELS, affinity_blocks
from goca.maths.resize import nearest_pixels, resize_keys_adjoint


@dataclass
class Affinity:
    """S-bar, as a sum over layers: add layers, then apply it to maps on any grid.

    largest: pixels of the largest grid whose affinity is kept as a matrix; 0 keeps none.
    """

    layers: int = 0
    largest: int = field(default_factory=lambda: DENSE_PIXELS)
    _dense: dict[Grid, Float[Tensor, "pixel pixel"]] = field(default_factory=dict)
    _streamed: list[tuple[Tensor, Tensor, float, Grid]] = field(default_factory=list)

    def is_dense(self, grid: Grid) -> bool:
        """Whether a layer on `grid` is taken as rows of its affinity (`add_rows`) rather than as queries and keys."""
        return grid[0] * grid[1] <= self.largest

    def add_rows(self, rows: slice, affinity: Float[Tensor, "block pixel"], grid: Grid) -> None:
        """Add some rows of a layer's affinity; every row must be added once, and then the layer counted (`count`)."""
        if grid not in self._dense:
            pixels = grid[0] * grid[1]
            self._dense[grid] = affinity.new_zeros(pixels, pixels)
        self._dense[grid][rows] += affinity

    def count(self) -> None:
        """One more layer has been added row by row."""
        self.layers += 1

    def add(
        self, q: Float[Tensor, "head pixel dim"], k: Float[Tensor, "head pixel dim"], scale: float, grid: Grid
    ) -> None:
        """Add a whole layer."""
        if self.is_dense(grid):
            for rows, affinity in affinity_blocks(q, k, scale):
                self.add_rows(rows, affinity, grid)
        else:
            self._streamed.append((q, k, scale, grid))
        self.count()

    def apply(self, maps: Float[Tensor, "class height width"]) -> Float[Tensor, "class height width"]:
        """S-bar times the maps; without any layer, the maps as they are."""
        if not self.layers:
            return maps
        total = torch.zeros_like(maps)
        for grid, matrix in self._dense.items():
            total += _spread(_gather(maps, grid) @ matrix.T, grid, maps)
        for q, k, scale, grid in self._streamed:
            values = _gather(maps, grid)
            blocks = [values @ affinity.T for _, affinity in affinity_blocks(q, k, scale)]
            total += _spread(torch.cat(blocks, dim=-1), grid, maps)
        return total / self.layers


def _gather(maps: Tensor, grid: Grid) -> Tensor:
    """B^T maps: what a layer's keys see of maps on another grid (the adjoint of bilinear resizing from its grid)."""
    flat = rearrange(maps, "c h w -> c (h w)")
    return resize_keys_adjoint(flat, grid, (maps.shape[-2], maps.shape[-1]))


def _spread(values: Tensor, grid: Grid, like: Tensor) -> Tensor:
    """N values: a layer's answers, at every pixel of the maps' grid."""
    height, width = like.shape[-2:]
    picked = nearest_pixels(grid, (height, width), values.device)
    return values[:, picked].reshape(-1, height, width)


@runtime_checkable
class Propagates(Protocol):
    """Anything that applies an affinity to maps."""

    def apply(self, maps: Float[Tensor, "class height width"]) -> Float[Tensor, "class height width"]: ...


def propagate(
    affinity: Propagates, maps: Float[Tensor, "class height width"], order: int
) -> Float[Tensor, "class height width"]:
    """(S-bar)^order maps."""
    for _ in range(order):
        maps = affinity.apply(maps)
    return maps
