"""An image in overlapping windows: their positions on the canvas of cells, and joining their maps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from goca.maths import Grid

OVERLAP = 0.25


@dataclass(frozen=True)
class Window:
    """A window: its top left cell on the canvas, and its size in cells."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Windows:
    """A canvas of cells and the windows that cover it."""

    canvas: Grid
    boxes: tuple[Window, ...]

    @classmethod
    def whole(cls, canvas: Grid) -> "Windows":
        """One window: the image itself."""
        return cls(canvas, (Window(0, 0, *canvas),))

    @classmethod
    def tiled(cls, canvas: Grid, side: int) -> "Windows":
        """Square windows of `side` cells, evenly spread, each sharing at least a quarter of its side with the next."""
        tops, lefts = (_starts(length, side) for length in canvas)
        height, width = (min(side, length) for length in canvas)
        return cls(canvas, tuple(Window(top, left, height, width) for top in tops for left in lefts))

    def mirrored(self) -> "Windows":
        """The same windows over the image flipped left to right."""
        width = self.canvas[1]
        boxes = (Window(box.top, width - box.left - box.width, box.height, box.width) for box in self.boxes)
        return Windows(self.canvas, tuple(boxes))

    def cut(self, maps: Float[Tensor, "*channel height width"], box: Window) -> Float[Tensor, "*channel h w"]:
        """The part of canvas maps under a window."""
        return maps[..., box.top : box.top + box.height, box.left : box.left + box.width]

    def join(self, pieces: Sequence[Float[Tensor, "*channel h w"]]) -> Float[Tensor, "*channel height width"]:
        """One map from a piece per window; where windows overlap, pixels near a window's middle have more weight."""
        if len(self.boxes) == 1:
            return pieces[0]
        total = pieces[0].new_zeros(*pieces[0].shape[:-2], *self.canvas)
        mass = pieces[0].new_zeros(self.canvas)
        for piece, box in zip(pieces, self.boxes, strict=True):
            weight = torch.outer(_tent(box.height, piece), _tent(box.width, piece))
            self.cut(total, box).add_(weight * piece)
            self.cut(mass, box).add_(weight)
        return total / mass


def _starts(length: int, side: int) -> list[int]:
    """Evenly spread starts of windows of `side` cells along `length`, neighbours overlapping by `OVERLAP` or more."""
    if length <= side:
        return [0]
    stride = max(1, int(side * (1 - OVERLAP)))
    steps = -(-(length - side) // stride)
    return [round(i * (length - side) / steps) for i in range(steps + 1)]


def _tent(side: int, like: Tensor) -> Float[Tensor, " side"]:
    """Weights along one axis of a window, highest in its middle, positive everywhere."""
    cells = torch.arange(side, device=like.device, dtype=like.dtype)
    return torch.minimum(cells + 1, side - cells)
