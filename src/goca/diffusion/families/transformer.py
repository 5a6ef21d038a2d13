"""Diffusion transformers: one grid of patches, blocks of one size.

PixArt and Hunyuan-DiT have a self-attention and a cross-attention in each block. In Flux, Stable Diffusion 3 and their
kin text and pixels are one sequence, and one softmax is over both.
"""

import math
from typing import Any

from goca.diffusion.attention_modules import attention_modules
from goca.maths import Grid

REFINERS = ("context_refiner", "noise_refiner")
"""Blocks in which Lumina 2 and Z-Image prepare words and pixels apart."""


def check(transformer: Any) -> None:
    """Every transformer of a class that is listed can be read."""


def size(transformer: Any, cell: int) -> int:
    """The side in pixels of the images the transformer was trained on, from its configuration."""
    side = transformer.config.sample_size
    return int(side if isinstance(side, int) else max(side)) * cell


def size_unsaid(transformer: Any, cell: int) -> int:
    """1024: the configuration does not say, and that is what the pipelines of these classes paint by default."""
    return 1024


def size_of_frames(transformer: Any, cell: int) -> int:
    """640: as many pixels as a frame of 832 x 480, which Wan's pipeline makes by default."""
    return 640


def rows_of_table(transformer: Any) -> int:
    """The side of the table of positions, where it is the configuration's number."""
    return int(transformer.config.pos_embed_max_size)


def root_of_table(transformer: Any) -> int:
    """The side of the table of positions, where the configuration's number is that of its cells."""
    return math.isqrt(int(transformer.config.pos_embed_max_size))


def lengths_of_axes(transformer: Any) -> int:
    """The shorter of the two axes that rotary positions were made for."""
    return int(min(transformer.config.axes_lens[1:]))


def largest_frame(transformer: Any) -> int:
    """The shorter side of the largest frame, in patches."""
    sides = zip(transformer.config.max_size[1:], transformer.config.patch_size[1:], strict=True)
    return int(min(side // patch for side, patch in sides))


def grid(transformer: Any, latent: Grid) -> tuple[Grid, ...]:
    """The grid of patches."""
    patch = transformer.config.patch_size
    patch = patch if isinstance(patch, int) else patch[-1]
    return ((latent[0] // patch, latent[1] // patch),)


def packed_grid(transformer: Any, latent: Grid) -> tuple[Grid, ...]:
    """The grid of patches where the pipeline itself packs 2 x 2 cells into one."""
    return ((latent[0] // 2, latent[1] // 2),)


def every(cells: int) -> Any:
    """The grid of a transformer that is known to have one position for so many latent cells a side."""
    return lambda transformer, latent: ((latent[0] // cells, latent[1] // cells),)


def layers_by_depth(reference: float, *refine: tuple[float, float], unimodal_blocks: tuple[str, ...] = REFINERS) -> Any:
    """(reference block, refinement blocks) at these shares of the depth; `refine`: from and to, both included.

    unimodal_blocks: blocks that do not count, by the beginnings of their paths.
    """

    def choose(transformer: Any) -> tuple[str, tuple[str, ...]]:
        blocks = list(
            dict.fromkeys(s.block for s in attention_modules(transformer) if not s.block.startswith(unimodal_blocks))
        )
        last = len(blocks) - 1
        places = sorted({place for a, b in refine for place in range(round(a * last), round(b * last) + 1)})
        return blocks[round(reference * last)], tuple(blocks[place] for place in places)

    return choose
