"""Chroma: Flux.1 without CLIP, its modulations made by a small network."""

from dataclasses import replace

from goca.diffusion.families.blocks import FLUX_DEPTH
from goca.diffusion.families.flux import FLUX
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.spec import Family, JointLayout, TextInput

CHROMA = replace(
    FLUX,
    name="Chroma",
    repos=("lodestones/Chroma1-HD", "lodestones/Chroma1-Base"),
    layout={**FLUX.layout, "approximator_num_channels": 64},
    origin="the authors' settings for Flux.1-dev, whose layout it shares; nobody has reported a score",
    scores=(),
)
FAMILY = Family(
    name="chroma",
    denoisers=("ChromaTransformer2DModel",),
    grids=Patches(2),
    block_rule=FLUX_DEPTH,
    timestep=407,
    feature="output",
    flow=True,
    texts=(TextInput("tokenizer", respects_max_sequence_length=True),),
    joint=JointLayout(text_first=True),
    checkpoints=(CHROMA,),
    tiny=("chroma",),
)
