"""Stable Diffusion 3 and 3.5: the pixels before the text of three encoders."""

from typing import Any

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import configured_patches
from goca.diffusion.families.spec import JointLayout, TextInput, sample_size


def max_grid(transformer: Any) -> int:
    """The side of the table of positions."""
    return int(transformer.config.pos_embed_max_size)


FAMILY = like_flux(
    name="sd3",
    denoisers=("SD3Transformer2DModel",),
    image_size=sample_size,
    grids=configured_patches,
    max_grid=max_grid,
    texts=(
        TextInput("tokenizer"),
        TextInput("tokenizer_2"),
        TextInput("tokenizer_3", start=77, respects_max_sequence_length=True),
    ),
    joint=JointLayout(text_first=False),
    repos=(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "stabilityai/stable-diffusion-3.5-medium",
        "stabilityai/stable-diffusion-3.5-large",
    ),
    tiny=("sd3", "sd35"),
)
