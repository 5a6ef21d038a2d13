"""Flux.2: the text from layers of a language model; it can edit images too."""

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import Patches

FAMILY = like_flux(
    name="flux2",
    denoisers=("Flux2Transformer2DModel",),
    grids=Patches(2),
    optional_image_input=True,
    vae_statistics=("bn",),
    repos=(
        "black-forest-labs/FLUX.2-dev",
        "black-forest-labs/FLUX.2-klein-4B",
        "black-forest-labs/FLUX.2-klein-9B",
    ),
    tiny=("flux2", "flux2_klein"),
)
