"""Chroma: Flux.1 without CLIP, its modulations made by a small network."""

from dataclasses import replace

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.flux import FLUX
from goca.diffusion.families.grids import Patches

CHROMA = replace(
    FLUX,
    name="Chroma",
    repos=("lodestones/Chroma1-HD", "lodestones/Chroma1-Base"),
    layout={**FLUX.layout, "approximator_num_channels": 64},
    origin="the authors' settings for Flux.1-dev, whose layout it shares; nobody has reported a score",
    scores=(),
)
FAMILY = like_flux(
    name="chroma",
    denoisers=("ChromaTransformer2DModel",),
    grids=Patches(2),
    checkpoints=(CHROMA,),
    tiny=("chroma",),
)
