"""Lumina-Image 2: text and pixels are refined apart, then share one sequence without padding."""

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import configured_patches
from goca.diffusion.families.spec import JointLayout

FAMILY = like_flux(
    name="lumina2",
    denoisers=("Lumina2Transformer2DModel",),
    grids=configured_patches,
    joint=JointLayout(text_first=True, unimodal_blocks=("context_refiner", "noise_refiner"), packed_text=True),
    repos=("Alpha-VLLM/Lumina-Image-2.0",),
    tiny=("lumina2",),
)
