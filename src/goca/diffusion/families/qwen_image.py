"""Qwen-Image: text of any length behind a template that is cut off."""

from goca.diffusion.families.blocks import FLUX_DEPTH
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.spec import Family, JointLayout, TextInput

FAMILY = Family(
    name="qwen-image",
    denoisers=("QwenImageTransformer2DModel",),
    grids=Patches(2),
    block_rule=FLUX_DEPTH,
    timestep=407,
    feature="output",
    flow=True,
    texts=(TextInput("tokenizer", right_aligned=True, respects_max_sequence_length=True),),
    joint=JointLayout(text_first=True),
    options={"true_cfg_scale": 1.0, "guidance_scale": None},
    repos=("Qwen/Qwen-Image",),
    tiny=("qwen_image",),
)
