"""The grids of pixels that a denoiser's attention may have, by the latent's grid."""

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


def levels(denoiser: Any, latent: Grid) -> tuple[Grid, ...]:
    """The latent grid of a UNet and its halvings, rounded up, one for each level."""
    out = [latent]
    for _ in denoiser.config.block_out_channels[1:]:
        height, width = out[-1]
        out.append((-(-height // 2), -(-width // 2)))
    return tuple(out)


def level_of(block: str) -> int:
    """The index of a UNet block's grid among its `levels`, from the block's path."""
    part, index, *_ = block.split(".")
    if part == "mid_block":
        return -1
    return int(index) if part == "down_blocks" else -1 - int(index)
