"""Krea 2: layers of Qwen 3-VL fused inside the denoiser, behind a template of 34 tokens that is cut off.

A sigmoid gate scales the attention output before it is projected; the weights of heads ignore it.

These facts were found by a probe of a tiny pipeline with random weights; no real checkpoint was tried.
"""

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import Patches
from goca.diffusion.families.spec import JointLayout, TextInput

FAMILY = like_flux(
    name="krea2",
    denoisers=("Krea2Transformer2DModel",),
    grids=Patches(2),
    guidance_offset=1.0,
    texts=(TextInput("tokenizer", start=-34, respects_max_sequence_length=True),),
    joint=JointLayout(text_first=True, unimodal_blocks=("text_fusion",)),
    vae_statistics=("latents_mean", "latents_std"),
    tiny=("krea2",),
)
