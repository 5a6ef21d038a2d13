"""Ovis-Image: the text of Qwen 3 behind a template of 28 tokens that is cut off.

These facts were established by a probe of a tiny pipeline with random weights; nobody has tried a real checkpoint.
"""

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.spec import TextInput

FAMILY = like_flux(
    name="ovis-image",
    denoisers=("OvisImageTransformer2DModel",),
    grids=Patches(2),
    texts=(TextInput("tokenizer", start=-28, respects_max_sequence_length=True),),
    tiny=("ovis",),
)
