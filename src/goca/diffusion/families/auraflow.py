"""AuraFlow: eight learned registers before the text."""

import math
from typing import Any

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import configured_patches
from goca.diffusion.families.spec import TextInput


def max_grid(transformer: Any) -> int:
    """The side of the table of positions, whose cells the configuration counts."""
    return math.isqrt(int(transformer.config.pos_embed_max_size))


FAMILY = like_flux(
    name="auraflow",
    denoisers=("AuraFlowTransformer2DModel",),
    grids=configured_patches,
    max_grid=max_grid,
    texts=(TextInput("tokenizer", start=8, respects_max_sequence_length=True),),
    repos=("fal/AuraFlow-v0.3", "fal/AuraFlow"),
    tiny=("auraflow",),
)
