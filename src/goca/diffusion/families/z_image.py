"""Z-Image: one stream, the pixels before the text, both padded to multiples of 32."""

from typing import Any

from goca.diffusion.families.blocks import FLUX_DEPTH
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.spec import Family, JointLayout, TextInput


def max_grid(transformer: Any) -> int:
    """The shorter of the two axes that rotary positions were made for."""
    return int(min(transformer.config.axes_lens[1:]))


FAMILY = Family(
    name="z-image",
    denoisers=("ZImageTransformer2DModel",),
    grids=Patches(2),
    block_rule=FLUX_DEPTH,
    max_grid=max_grid,
    timestep=407,
    feature="output",
    flow=True,
    texts=(TextInput("tokenizer", respects_max_sequence_length=True),),
    joint=JointLayout(text_first=False, unimodal_blocks=("context_refiner", "noise_refiner"), multiple=32),
    options={"guidance_scale": 0.0},
    repos=("Tongyi-MAI/Z-Image-Turbo",),
    tiny=("z_image",),
)
