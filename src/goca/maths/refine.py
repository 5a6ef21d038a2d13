"""Refinement: scores <- (S-bar)^order scores, with S-bar the mean head-mean self-attention of a few layers.

A layer on another grid than the scores acts as x -> N S B^T x (nearest on queries, bilinear on keys). Layers of one
grid are summed into one matrix, on their own pixels. Where that would be larger than a 64 x 64 grid needs (67 MB),
N S B^T itself is summed on the scores' pixels; if even that may not be kept, queries and keys are, and the scores
are propagated as the values of an attention. For a finer layer, only the rows that N picks are ever computed.

A rule may change what is applied, `Affinity.under`: row by row, given what all rows share.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from goca.maths import Grid
from goca.maths.attention import DENSE_PIXELS, Keys, Mask, Queries, affinity_blocks
from goca.maths.resize import nearest_pixels, picked_pixels, resize_keys, resize_keys_adjoint, rows_in

HELD = 2**21
"""Number of affinities that a rule gets at once: on a CPU they must stay in cache."""
TINY = 1e-12
INDISTINCT = 1e-6
"""Rows that differ by less than this share of their sum differ only by rounding."""

Rows = Float[Tensor, "row pixel"]
RowsRule = Callable[[Rows, Float[Tensor, " pixel"]], Rows]
"""(rows of an affinity, the mean over all of its rows), both times any number -> other rows that sum to 1."""
AffinityRule = RowsRule | None
plain: AffinityRule = None
"""The unchanged affinity."""


def distinct(rows: Rows, shared: Float[Tensor, " pixel"]) -> Rows:
    """max(0, row - what all rows share)^1.5, rows to sum 1: where a pixel attends more than pixels do on average.

    What every pixel attends to draws the scores of all pixels to the same mean, the more often it is applied; the
    exponent emphasises what is left. A row with nothing of its own is unchanged.
    """
    excess = (rows - shared).clamp_(min=0)
    mass = rows.sum(-1, keepdim=True).clamp(min=TINY)
    # A remainder from float32's rounding is nothing of its own.
    alike = excess.sum(-1, keepdim=True) <= INDISTINCT * mass
    excess.mul_(excess.sqrt())
    return torch.where(alike, rows / mass, excess / excess.sum(-1, keepdim=True))


@dataclass
class Affinity:
    """S-bar, as a sum over layers: add layers, then apply it to maps.

    common: the maps' grid; None to decide when the maps come. largest: pixels of the largest grid whose affinity
    is kept as a matrix; 0 keeps none.
    """

    common: Grid | None = None
    layers: int = 0
    largest: int = field(default_factory=lambda: DENSE_PIXELS)
    _dense: dict[Grid, Float[Tensor, "pixel pixel"]] = field(default_factory=dict)
    _streamed: list[tuple[Callable[..., Iterator[tuple[slice, Tensor]]], Grid]] = field(default_factory=list)
    _streamed_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        return sum(matrix.nbytes for matrix in self._dense.values()) + self._streamed_bytes

    def is_dense(self, grid: Grid) -> bool:
        """Whether a layer on `grid` is taken as rows of its affinity (`add_rows`) rather than as queries and keys."""
        return grid[0] * grid[1] <= self.largest

    def add_rows(self, rows: slice, affinity: Float[Tensor, "block pixel"], grid: Grid) -> None:
        """Add some rows of a layer's affinity; every row must be added once, and then 1 to `layers`."""
        self._matrix(grid, affinity)[rows] += affinity

    def _matrix(self, grid: Grid, like: Tensor) -> Tensor:
        if grid not in self._dense:
            pixels = grid[0] * grid[1]
            self._dense[grid] = like.new_zeros(pixels, pixels, dtype=torch.float32)
        return self._dense[grid]

    def add(
        self,
        q: Queries,
        k: Keys,
        scale: float,
        grid: Grid,
        *,
        image: slice = slice(None),
        mask: Mask = None,
    ) -> None:
        """Add a whole layer; `image`: the keys that are pixels."""
        blocks = partial(affinity_blocks, q, k, scale, image=image, mask=mask)
        if self.is_dense(grid):
            for rows, affinity in blocks():
                self.add_rows(rows, affinity, grid)
        elif self.common is not None and self.is_dense(self.common):
            wanted, _ = picked_pixels(grid, self.common, q.device)
            total = self._matrix(self.common, q)
            for block, affinity in blocks(wanted):
                pixels, numbers = rows_in(block.start, block.stop, grid, self.common, q.device)
                total[pixels] += resize_keys(affinity, grid, self.common)[numbers]
        else:
            self._streamed.append((blocks, grid))
            self._streamed_bytes += q.nbytes + k.nbytes
        self.layers += 1

    def apply(self, maps: Float[Tensor, "class height width"]) -> Float[Tensor, "class height width"]:
        """S-bar times the maps; without any layer, the maps unchanged."""
        if not self.layers:
            return maps
        total = torch.zeros_like(maps)
        for grid, matrix in self._dense.items():
            total += _spread(_gather(maps, grid) @ matrix.T, grid, maps)
        for blocks, grid in self._streamed:
            values = _gather(maps, grid)
            rows, index = picked_pixels(grid, (maps.shape[-2], maps.shape[-1]), maps.device)
            parts = [values @ affinity.T for _, affinity in blocks(rows)]
            total += torch.cat(parts, dim=-1)[:, index].view_as(total)
        return total / self.layers

    def under(self, rule: AffinityRule, grid: Grid) -> "Affinity":
        """The affinity under a rule, for maps on `grid`; itself without one.

        The rule is applied to each grid's layers together: a matrix that is kept is computed anew, once; rows that are
        not are computed twice, the first time for their mean. The mean is over the rows that N picks. As all rows then
        sum to 1, each grid counts as one layer.
        """
        if rule is None:
            return self
        other = Affinity(grid, len(self._dense), self.largest)
        for layer_grid, matrix in self._dense.items():
            rows, _ = picked_pixels(layer_grid, grid, matrix.device)
            shared = matrix.new_zeros(len(matrix)).index_fill_(0, rows, 1 / len(rows)) @ matrix
            changed = torch.empty_like(matrix)
            for part in _parts(len(matrix), len(shared)):
                changed[part] = rule(matrix[part], shared)
            other._dense[layer_grid] = changed
        for layer_grid in dict.fromkeys(layer_grid for _, layer_grid in self._streamed):
            layers = [blocks for blocks, its_grid in self._streamed if its_grid == layer_grid]
            rows, _ = picked_pixels(layer_grid, grid)
            total = sum(affinity.sum(0) for blocks in layers for _, affinity in blocks(rows))
            assert isinstance(total, Tensor)  # there is a layer, and maps have pixels
            other._streamed.append((partial(_rows_under, rule, total / len(rows), layers), layer_grid))
            other.layers += 1
        return other

    def row(self, pixel: int, grid: Grid) -> Float[Tensor, "height width"] | None:
        """The row of S-bar of a pixel of the maps' grid; None without any layer."""
        if not self.layers:
            return None
        parts = []
        for layer_grid, matrix in self._dense.items():
            parts.append(
                resize_keys(matrix[nearest_pixels(layer_grid, grid, matrix.device)[pixel]][None], layer_grid, grid)
            )
        for blocks, layer_grid in self._streamed:
            rows = nearest_pixels(layer_grid, grid)[pixel : pixel + 1]
            parts += [resize_keys(affinity, layer_grid, grid) for _, affinity in blocks(rows)]
        return torch.cat(parts).sum(0).reshape(grid) / self.layers


def _parts(rows: int, width: int) -> Iterator[slice]:
    """Rows of a matrix, so many at a time that a rule needs little memory."""
    step = max(1, HELD // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _rows_under(
    rule: RowsRule,
    shared: Float[Tensor, " pixel"],
    layers: Sequence[Callable[..., Iterator[tuple[slice, Tensor]]]],
    rows: Int[Tensor, " row"],
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the layers' sum under a rule, in the form of `affinity_blocks`."""
    for part in _parts(len(rows), len(shared)):
        # The layers' own blocks may differ in size: some also attend to a text.
        total = sum(torch.cat([affinity for _, affinity in blocks(rows[part])]) for blocks in layers)
        assert isinstance(total, Tensor)
        yield part, rule(total, shared)


def _gather(maps: Tensor, grid: Grid) -> Tensor:
    """B^T maps: maps on another grid at a layer's keys (the adjoint of bilinear resizing from its grid)."""
    flat = rearrange(maps, "c h w -> c (h w)")
    return resize_keys_adjoint(flat, grid, (maps.shape[-2], maps.shape[-1]))


def _spread(values: Tensor, grid: Grid, like: Tensor) -> Tensor:
    """N values: a layer's outputs at every pixel of the maps' grid."""
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
