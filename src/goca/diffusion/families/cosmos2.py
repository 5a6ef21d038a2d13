"""Cosmos-Predict2: a video model used for a single frame, with EDM's noise levels."""

from typing import Any

from goca.diffusion.families.blocks import PIXART_DEPTH
from goca.diffusion.families.grids import configured_patches
from goca.diffusion.families.spec import Family


def max_grid(transformer: Any) -> int:
    """The shorter side of the largest frame, in patches."""
    sides = zip(transformer.config.max_size[1:], transformer.config.patch_size[1:], strict=True)
    return int(min(side // patch for side, patch in sides))


FAMILY = Family(
    name="cosmos2",
    denoisers=("CosmosTransformer3DModel",),
    grids=configured_patches,
    block_rule=PIXART_DEPTH,
    max_grid=max_grid,
    timestep=150,
    flow=True,
    edm_sigmas=True,
    guidance_offset=1.0,
    repos=("nvidia/Cosmos-Predict2-2B-Text2Image", "nvidia/Cosmos-Predict2-14B-Text2Image"),
    vae_statistics=("latents_mean", "latents_std"),
    tiny=("cosmos2",),
)
