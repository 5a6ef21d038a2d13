"""Wan: a text-to-video model, of which one frame is used."""

from typing import Any

from goca.diffusion.families.blocks import PIXART_DEPTH
from goca.diffusion.families.grids import configured_patches
from goca.diffusion.families.spec import Family


def image_size(transformer: Any, vae_scale_factor: int) -> int:
    """640: about as many pixels as a frame of 832 x 480, the default of Wan's pipeline."""
    return 640


FAMILY = Family(
    name="wan",
    denoisers=("WanTransformer3DModel",),
    image_size=image_size,
    grids=configured_patches,
    block_rule=PIXART_DEPTH,
    timestep=150,
    flow=True,
    options={"num_frames": 1},
    makes_videos=True,
    repos=("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-14B-Diffusers"),
    vae_statistics=("latents_mean", "latents_std"),
    tiny=("wan",),
)
