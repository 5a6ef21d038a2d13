"""LongCat-Image: the text of Qwen 2.5-VL, tokenised piece by piece and padded to 512 tokens.

These facts were established by a probe of a tiny pipeline with random weights; nobody has tried a real checkpoint.
"""

from goca.diffusion.families.blocks import FLUX_DEPTH
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.spec import Family, JointLayout, TextInput

FAMILY = Family(
    name="longcat-image",
    denoisers=("LongCatImageTransformer2DModel",),
    grids=Patches(2),
    block_rule=FLUX_DEPTH,
    timestep=407,
    feature="output",
    flow=True,
    texts=(TextInput("tokenizer", max_tokens=512),),
    joint=JointLayout(text_first=True),
    options={"enable_prompt_rewrite": False},
    tiny=("longcat",),
)
