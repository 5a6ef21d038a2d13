"""Ovis-Image: the text of Qwen 3 behind a template of 28 tokens that is cut off.

These facts were found by a probe of a tiny pipeline with random weights; no real checkpoint was tried.
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
