"""CogView4: text and pixels share their projections; the text is padded in front."""

from goca.diffusion.families.blocks import FLUX_DEPTH
from goca.diffusion.families.grids import configured_patches
from goca.diffusion.families.spec import Family, JointLayout, TextInput

FAMILY = Family(
    name="cogview4",
    denoisers=("CogView4Transformer2DModel",),
    grids=configured_patches,
    block_rule=FLUX_DEPTH,
    timestep=407,
    feature="output",
    flow=True,
    texts=(TextInput("tokenizer", right_aligned=True, respects_max_sequence_length=True),),
    joint=JointLayout(text_first=True),
    size_multiple=16,
    repos=("THUDM/CogView4-6B",),
    tiny=("cogview4",),
)
