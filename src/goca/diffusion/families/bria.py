"""Bria 3.2: as Flux.1, with the text of T5 alone.

These facts were established by a probe of a tiny pipeline with random weights; nobody has tried a real checkpoint.
"""

from goca.diffusion.families.blocks import FLUX_DEPTH
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.spec import Family, JointLayout, TextInput

FAMILY = Family(
    name="bria",
    denoisers=("BriaTransformer2DModel",),
    grids=Patches(2),
    block_rule=FLUX_DEPTH,
    timestep=407,
    feature="output",
    flow=True,
    texts=(TextInput("tokenizer", respects_max_sequence_length=True),),
    joint=JointLayout(text_first=True),
    packed_vae_scale_factor=True,
    tiny=("bria",),
)
