"""The grids of pixels that a denoiser's attention may have, by the latent's grid."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from goca.maths import Grid


@dataclass(frozen=True)
class Patches:
    """One grid, of patches of `cells` x `cells` latent cells."""

    cells: int

    def __call__(self, denoiser: Any, latent: Grid) -> tuple[Grid, ...]:
        return ((latent[0] // self.cells, latent[1] // self.cells),)


def configured_patches(denoiser: Any, latent: Grid) -> tuple[Grid, ...]:
    """One grid, of patches as large as the configuration says."""
    patch = denoiser.config.patch_size
    return Patches(patch if isinstance(patch, int) else patch[-1])(denoiser, latent)


LATENT = 256
"""Cells a side of a latent that divides into tokens of any family."""


def token_cells(denoiser: Any, grids: Callable[[Any, Grid], tuple[Grid, ...]], blocks: Collection[str]) -> int:
    """Latent cells a side of a token of the finest attention.

    Args:
        denoiser, grids: a denoiser, and its family's `grids`: one, or those of a UNet's levels, the finest first.
        blocks: the paths of those that attend to the text.
    """
    sides = [height for height, _ in grids(denoiser, (LATENT, LATENT))]
    finest = min((_level(block, len(sides)) for block in blocks), default=0) if len(sides) > 1 else 0
    return LATENT // sides[finest]


def _level(block: str, count: int) -> int:
    """Which of its `count` levels a UNet's block is on, 0 being the finest."""
    part, index, *_ = block.split(".")
    if part == "mid_block":
        return count - 1
    return int(index) if part == "down_blocks" else count - 1 - int(index)


def levels(denoiser: Any, latent: Grid) -> tuple[Grid, ...]:
    """The latent grid of a UNet and its halvings, rounded up, one for each level."""
    out = [latent]
    for _ in denoiser.config.block_out_channels[1:]:
        height, width = out[-1]
        out.append((-(-height // 2), -(-width // 2)))
    return tuple(out)
