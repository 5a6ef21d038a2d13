"""LongCat-Image: the text of Qwen 2.5-VL, tokenised piece by piece and padded to 512 tokens.

These facts were found by a probe of a tiny pipeline with random weights; no real checkpoint was tried.
"""

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.spec import TextInput

FAMILY = like_flux(
    name="longcat-image",
    denoisers=("LongCatImageTransformer2DModel",),
    grids=Patches(2),
    texts=(TextInput("tokenizer", max_tokens=512),),
    options={"enable_prompt_rewrite": False},
    tiny=("longcat",),
)
