"""Resizing as linear maps, so that it can be moved from one factor of a sum to the other.

All rules are torch's `interpolate`: bilinear with `align_corners=False` and no antialiasing, and `nearest`. Bilinear
resizing of an image is separable, B = By (x) Bx, so B and its adjoint B^T are applied as two small products.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from goca.maths import Grid

STRIP = 2**22
"""Most resized values in memory at once: with fewer, a strip of many classes would be a few rows and slower."""


_Constant = TypeVar("_Constant", bound=Callable[..., object])


def constant(function: _Constant) -> _Constant:
    """Cache a function of sizes, numbers and a device, whose result must not be modified.

    Otherwise it would be copied to the GPU again, with a synchronisation, in every layer of every image.
    """
    # Made as usual even within the user's inference mode, because it outlives that.
    return lru_cache(maxsize=256)(torch.inference_mode(False)(function))  # type: ignore[return-value]


@constant
def _indices(numbers: tuple[int, ...], device: torch.device) -> Int[Tensor, " index"]:
    return torch.tensor(numbers, dtype=torch.long, device=device)


def picked(maps: Float[Tensor, "channel *pixels"], channels: Sequence[int]) -> Float[Tensor, "index *pixels"]:
    """Some channels, as `maps[list(channels)]`."""
    return maps.index_select(0, _indices(tuple(channels), maps.device))


def resize(maps: Float[Tensor, "*channel height width"], grid: Grid) -> Float[Tensor, "*channel out_height out_width"]:
    """Bilinear resize of a stack of maps to `grid`."""
    if tuple(maps.shape[-2:]) == grid:
        return maps
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    return F.interpolate(flat, grid, mode="bilinear", align_corners=False).reshape(*maps.shape[:-2], *grid)


def strips(grid: Grid, channels: int) -> list[slice]:
    """Rows that cover the grid, so many at a time that a stack of resized maps stays small."""
    height, width = grid
    rows = max(1, STRIP // (width * channels))
    return [slice(start, min(start + rows, height)) for start in range(0, height, rows)]


def resize_rows(
    maps: Float[Tensor, "*channel height width"], grid: Grid, rows: slice
) -> Float[Tensor, "*channel row out_width"]:
    """The `rows` of `resize(maps, grid)`, to rounding; a row is the same to the last bit whichever are asked for."""
    # Sums of two terms each: the rounding of a product of matrices would depend on the number of rows.
    start, stop, _ = rows.indices(grid[0])
    vertical, above, below, low = _neighbours(maps.shape[-2], grid[0], maps.device)
    _, left, right, near = _neighbours(maps.shape[-1], grid[1], maps.device)
    first = int(vertical[start])
    last = min(int(vertical[stop - 1]) + 1, maps.shape[-2] - 1)
    above, below, low = above[start:stop] - first, below[start:stop] - first, low[start:stop, None].to(maps)
    near = near.to(maps)
    maps = maps[..., first : last + 1, :]
    wide = maps.index_select(-1, left) * (1 - near) + maps.index_select(-1, right) * near
    return wide.index_select(-2, above) * (1 - low) + wide.index_select(-2, below) * low


@constant
def _neighbours(
    size_in: int, size_out: int, device: torch.device
) -> tuple[Int[Tensor, " out"], Int[Tensor, " out"], Int[Tensor, " out"], Float[Tensor, " out"]]:
    """For each pixel of an axis of `size_out`: the two of `size_in` around it, and the weight of the second.

    The first of the two comes twice, on the CPU and on the device. The whole axis is kept and its parts are not: many
    small tensors that outlive the work on each part would scatter the memory of the next.
    """
    # Rounded to float32 where torch's `interpolate` does it; on the CPU, because not every device has float64.
    scale = torch.tensor(size_in / size_out, dtype=torch.float32).double()
    middle = torch.arange(size_out).double() + 0.5
    position = (middle * scale - 0.5).clamp(min=0).float()
    first = position.long().clamp(max=size_in - 1)
    second, weight = (first + 1).clamp(max=size_in - 1), (position - first).clamp(max=1)
    return first, first.to(device), second.to(device), weight.to(device)


def bilinear(size_in: int, size_out: int, like: Tensor | None = None) -> Float[Tensor, "out in"]:
    """The matrix of one axis of a bilinear resize; its rows sum to 1. like: of the device and type that is wanted."""
    like = torch.empty(0) if like is None else like
    return _bilinear(size_in, size_out, like.device, like.dtype)


@constant
def _bilinear(size_in: int, size_out: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "out in"]:
    eye = torch.eye(size_in, device=device, dtype=dtype)
    return F.interpolate(eye[None], size_out, mode="linear", align_corners=False)[0].T


@constant
def nearest_pixels(grid_in: Grid, grid_out: Grid, device: torch.device | None = None) -> Int[Tensor, " out"]:
    """For each pixel of `grid_out`, the flat index of the pixel of `grid_in` that nearest-neighbour resizing picks."""
    height, width = grid_in
    # Float64 holds every index exactly, so interpolate itself decides which pixel is the nearest; on the CPU, because
    # not every device has it.
    index = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)
    return F.interpolate(index, grid_out, mode="nearest").flatten().long().to(device)


@constant
def picked_pixels(
    grid_in: Grid, grid_out: Grid, device: torch.device | None = None
) -> tuple[Int[Tensor, " picked"], Int[Tensor, " out"]]:
    """(the pixels of `grid_in` that nearest-neighbour picks, for each pixel of `grid_out` its index among them)."""
    rows, index = nearest_pixels(grid_in, grid_out).unique(return_inverse=True)
    return rows.to(device), index.to(device)


@constant
def rows_in(
    start: int, stop: int, grid_in: Grid, grid_out: Grid, device: torch.device | None = None
) -> tuple[Int[Tensor, " some"], Int[Tensor, " some"]]:
    """(the pixels of `grid_out` whose row is in a block of `picked_pixels`, that row's number within the block)."""
    _, index = picked_pixels(grid_in, grid_out)
    pixels = ((index >= start) & (index < stop)).nonzero().flatten()
    return pixels.to(device), (index[pixels] - start).to(device)


def resize_keys(rows: Float[Tensor, "row pixel"], grid_in: Grid, grid_out: Grid) -> Float[Tensor, "row out"]:
    """Rows over the pixels of `grid_in`, resized to the pixels of `grid_out`: rows @ B^T."""
    if grid_in == grid_out:
        return rows
    maps = rearrange(rows, "row (h w) -> row h w", h=grid_in[0])
    return rearrange(resize(maps, grid_out), "row h w -> row (h w)")


def resize_keys_adjoint(rows: Float[Tensor, "row out"], grid_in: Grid, grid_out: Grid) -> Float[Tensor, "row pixel"]:
    """The adjoint of `resize_keys`, rows @ B: for all x, y, <x, resize_keys(y)> = <resize_keys_adjoint(x), y>."""
    if grid_in == grid_out:
        return rows
    maps = rearrange(rows, "row (h w) -> row h w", h=grid_out[0])
    by, bx = (bilinear(i, o, rows) for i, o in zip(grid_in, grid_out, strict=True))
    pulled = einsum(maps, by, bx, "row H W, H h, W w -> row h w")
    return rearrange(pulled, "row h w -> row (h w)")


def centre(
    maps: Float[Tensor, "channel height width"], shares: tuple[float, float]
) -> Float[Tensor, "channel height width"]:
    """The middle of each map, `shares` of its (height, width), as large as the whole was; interpolated bilinearly.

    Less than half a cell at an edge is not cut off.
    """
    if all((1 - share) * side < 1 for share, side in zip(shares, maps.shape[-2:], strict=True)):
        return maps
    frame = maps.new_tensor([[shares[1], 0.0, 0.0], [0.0, shares[0], 0.0]])
    points = F.affine_grid(frame[None], [1, *maps.shape], align_corners=False)
    return F.grid_sample(maps[None], points, mode="bilinear", padding_mode="border", align_corners=False)[0]
