"""Flux.2: the text from layers of a language model; it can edit images too."""

from goca.diffusion.families.blocks import FLUX_DEPTH
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.spec import Family, JointLayout, TextInput

FAMILY = Family(
    name="flux2",
    denoisers=("Flux2Transformer2DModel",),
    grids=Patches(2),
    block_rule=FLUX_DEPTH,
    timestep=407,
    feature="output",
    flow=True,
    texts=(TextInput("tokenizer", respects_max_sequence_length=True),),
    joint=JointLayout(text_first=True),
    optional_image_input=True,
    repos=(
        "black-forest-labs/FLUX.2-dev",
        "black-forest-labs/FLUX.2-klein-4B",
        "black-forest-labs/FLUX.2-klein-9B",
    ),
    tiny=(
        "flux2",
        "flux2_klein",
    ),
)
