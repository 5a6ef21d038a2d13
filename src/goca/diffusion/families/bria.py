"""Bria 3.2: as Flux.1, with the text of T5 alone.

These facts were found by a probe of a tiny pipeline with random weights; no real checkpoint was tried.
"""

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import Patches

FAMILY = like_flux(
    name="bria",
    denoisers=("BriaTransformer2DModel",),
    grids=Patches(2),
    packed_vae_scale_factor=True,
    tiny=("bria",),
)
