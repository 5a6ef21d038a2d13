"""Qwen-Image: text of any length behind a template that is cut off."""

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.spec import TextInput

FAMILY = like_flux(
    name="qwen-image",
    denoisers=("QwenImageTransformer2DModel",),
    grids=Patches(2),
    texts=(TextInput("tokenizer", right_aligned=True, respects_max_sequence_length=True),),
    options={"true_cfg_scale": 1.0, "guidance_scale": None},
    repos=("Qwen/Qwen-Image",),
    vae_statistics=("latents_mean", "latents_std"),
    tiny=("qwen_image",),
)
