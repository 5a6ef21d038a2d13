"""Masks as arrays: connected regions, holes, and common operations.

A mask is a boolean array; `a | b` is a union, `a & b` an intersection, `~a` the inverse.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, Integer
from PIL import Image, ImageFilter

from goca.errors import GocaError

Mask = Bool[np.ndarray, "height width"]


class Box(NamedTuple):
    """A box in pixels; right and bottom are exclusive, as `PIL.Image.crop` takes them."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and columns of the box in an array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def components(
    labels: Integer[np.ndarray, "height width"] | Mask, diagonal: bool = False
) -> Int32[np.ndarray, "height width"]:
    """Number the connected regions of equal label: 1, 2, ... in the order of their first pixels; 0 stays 0.

    Args:
        labels: A label map, or a mask.
        diagonal: Whether pixels that touch only at a corner are connected too.
    """
    height, width = labels.shape
    padded = np.zeros((height, width + 1), labels.dtype)  # a column of 0, so that no run continues in the next row
    padded[:, :width] = labels
    flat = padded.ravel()
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    ends = np.r_[starts[1:], flat.size]
    filled = flat[starts] != 0
    starts, ends = starts[filled], ends[filled]
    label = flat[starts]
    # The runs of the next row that overlap a run are consecutive, as runs are sorted.
    below, reach = width + 1, int(diagonal)
    first = np.searchsorted(ends, starts + below - reach, side="right")
    counts = np.searchsorted(starts, ends + below + reach, side="left") - first
    upper = np.repeat(np.arange(len(starts)), counts)
    lower = np.arange(len(upper)) - np.repeat(counts.cumsum() - counts, counts) + np.repeat(first, counts)
    same = label[upper] == label[lower]
    roots = _roots(len(starts), upper[same], lower[same])
    _, number = np.unique(roots, return_inverse=True)  # a root is the first run of its region
    out = np.zeros(flat.size + 1, np.int32)
    out[starts] += (number + 1).astype(np.int32)
    out[ends] -= (number + 1).astype(np.int32)
    return out.cumsum(dtype=np.int32)[:-1].reshape(padded.shape)[:, :width]


def _roots(
    count: int, left: Integer[np.ndarray, " edge"], right: Integer[np.ndarray, " edge"]
) -> Integer[np.ndarray, " node"]:
    """The lowest node that each of `count` nodes is connected with by edges left[i] - right[i]."""
    parent = np.arange(count)
    while len(left):
        low, high = np.minimum(parent[left], parent[right]), np.maximum(parent[left], parent[right])
        open_edges = low != high
        left, right, low, high = left[open_edges], right[open_edges], low[open_edges], high[open_edges]
        np.minimum.at(parent, high, low)
        while (parent[parent] != parent).any():
            parent = parent[parent]
    return parent


def boxes_of(numbers: Int32[np.ndarray, "height width"]) -> list[Box]:
    """The box of each region of `components`, in order."""
    count = int(numbers.max(initial=0))
    rows, columns = np.nonzero(numbers)
    of_pixel = numbers[rows, columns] - 1
    left, top = np.full(count, numbers.shape[1]), np.full(count, numbers.shape[0])
    right, bottom = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.minimum.at(left, of_pixel, columns)
    np.minimum.at(top, of_pixel, rows)
    np.maximum.at(right, of_pixel, columns + 1)
    np.maximum.at(bottom, of_pixel, rows + 1)
    return [Box(*edges) for edges in zip(left.tolist(), top.tolist(), right.tolist(), bottom.tolist(), strict=True)]


def box_of(mask: Mask) -> Box:
    """The smallest box around the pixels of a mask that has any."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def filled(mask: Mask) -> Mask:
    """The mask with its holes filled."""
    outside = components(~np.pad(mask, 1), diagonal=True)
    return (outside != 1)[1:-1, 1:-1]


def depth(mask: Mask) -> Int32[np.ndarray, "height width"]:
    """The city-block distance of each pixel from outside the mask or the image; 0 outside."""
    inside = np.pad(mask, 1)
    steps = np.where(inside, sum(inside.shape), 0).astype(np.int32)
    for axis in (0, 1):
        ramp = np.arange(inside.shape[axis], dtype=np.int32)
        ramp = ramp[:, None] if axis == 0 else ramp[None]
        forth = np.minimum.accumulate(steps - ramp, axis=axis) + ramp
        back = np.flip(np.minimum.accumulate(np.flip(steps + ramp, axis), axis=axis), axis) - ramp
        steps = np.minimum(forth, back)
    return steps[1:-1, 1:-1]


def grow(mask: np.ndarray, pixels: int) -> Mask:
    """The mask and everything within `pixels` of it, in Euclidean distance."""
    _check(mask, pixels)
    height, width = mask.shape
    columns = np.arange(width, dtype=np.int32)
    far = np.int32(width + pixels + 1)
    forth = columns - np.maximum.accumulate(np.where(mask, columns, -far), axis=1)
    back = np.flip(np.minimum.accumulate(np.flip(np.where(mask, columns, 2 * far), 1), axis=1), 1) - columns
    along = np.minimum(forth, back)
    out = np.zeros_like(mask)
    for row in range(min(pixels, height - 1) + 1):
        near = along <= math.isqrt(pixels**2 - row**2)
        out[row:] |= near[: height - row]
        out[: height - row] |= near[row:]
    return out


def shrink(mask: np.ndarray, pixels: int) -> Mask:
    """The mask without pixels within `pixels` of its outside; the image's edge does not count as outside."""
    _check(mask, pixels)
    return ~grow(~mask, pixels)


def blur(mask: np.ndarray, pixels: int | float) -> Float32[np.ndarray, "height width"]:
    """The mask with a soft edge, 0 to 1: a Gaussian of that standard deviation."""
    _check(mask, pixels)
    soft = as_image(mask).filter(ImageFilter.GaussianBlur(pixels))
    return np.asarray(soft, np.float32) / 255


def as_image(mask: Mask | Float32[np.ndarray, "height width"]) -> Image.Image:
    """A mask, or one with a soft edge, as a grey image of 0 to 255."""
    return Image.fromarray(np.rint(mask * np.float32(255)).astype(np.uint8))


def _check(mask: Any, pixels: int | float) -> None:
    if not (isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype == bool):
        raise GocaError("a mask is an array of True and False, (height, width): result[name] is one")
    if not pixels >= 0:
        raise GocaError(f"{pixels} is not a distance in pixels: give 0 or more")
