"""Z-Image: one stream, the pixels before the text, both padded to multiples of 32."""

from typing import Any

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.spec import JointLayout


def max_grid(transformer: Any) -> int:
    """The shorter of the two axes of the rotary positions."""
    return int(min(transformer.config.axes_lens[1:]))


FAMILY = like_flux(
    name="z-image",
    denoisers=("ZImageTransformer2DModel",),
    grids=Patches(2),
    max_grid=max_grid,
    joint=JointLayout(text_first=False, unimodal_blocks=("context_refiner", "noise_refiner"), multiple=32),
    options={"guidance_scale": 0.0},
    guidance_offset=1.0,
    repos=("Tongyi-MAI/Z-Image-Turbo",),
    tiny=("z_image",),
)
