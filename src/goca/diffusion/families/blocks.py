"""Rules that choose the blocks and other settings of a checkpoint without published settings."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from goca.diffusion.families.spec import BlockRule, Blocks, Family, JointLayout
from goca.errors import GocaError


def by_depth(reference: float, *refine: tuple[float, float]) -> Callable[[Any, Collection[str]], Blocks]:
    """Chooses blocks at shares of the depth in [0, 1]; `refine` are ranges of it, both ends included."""

    def choose(denoiser: Any, blocks: Collection[str]) -> Blocks:
        paths, last = tuple(blocks), len(blocks) - 1
        indices = {index for low, high in refine for index in range(round(low * last), round(high * last) + 1)}
        return paths[round(reference * last)], tuple(paths[index] for index in sorted(indices))

    return choose


def _up_path(unet: Any, blocks: Collection[str]) -> Blocks:
    """Blocks chosen as `UP_PATH` describes. Raises GocaError for an up path without cross-attention."""
    levels = [
        [
            f"up_blocks.{level}.attentions.{index}.transformer_blocks.{depth}"
            for index, attention in enumerate(getattr(block, "attentions", None) or ())
            for depth in range(len(getattr(attention, "transformer_blocks", ())))
        ]
        for level, block in enumerate(unet.up_blocks)
    ]
    levels = [level for level in levels if level]
    if not levels:
        raise GocaError("goca cannot read this UNet, whose up path has no cross-attention: use another checkpoint")
    reference = levels[-2][len(levels[-2]) // 2] if len(levels) > 1 else levels[-1][0]
    return reference, tuple(levels[-1])


UP_PATH = BlockRule(
    "reference: the middle transformer block of the second finest level of the up path that has cross-attention, or "
    "the first block of the finest if there is only one such level; refinement: every block of the finest such level",
    _up_path,
)
# The authors' blocks: 13 and 10 to 17 of PixArt's 28, 25 and 20 to 29 of HunyuanDiT's 40, 27, 12 and 18 of Flux.1's 57.
PIXART_DEPTH = BlockRule("PixArt's settings in proportion to the depth", by_depth(13 / 27, (10 / 27, 17 / 27)))
HUNYUAN_DEPTH = BlockRule(
    "HunyuanDiT's settings in proportion to the depth", by_depth(25 / 39, (20 / 39, 29 / 39)), heads="mean"
)
FLUX_DEPTH = BlockRule(
    "Flux's settings in proportion to the depth",
    by_depth(27 / 56, (12 / 56, 12 / 56), (18 / 56, 18 / 56)),
    heads="mean",
)
like_flux = partial(
    Family, block_rule=FLUX_DEPTH, timestep=407, feature="output", flow=True, joint=JointLayout(text_first=True)
)
"""A family with joint attention and Flux's settings: a flow model that has the text before the pixels."""
