"""Sana: cross-attention to Gemma 2, and linear self-attention, which has no map."""

from goca.diffusion.families.blocks import PIXART_DEPTH
from goca.diffusion.families.grids import configured_patches
from goca.diffusion.families.spec import Family, TextInput, sample_size

FAMILY = Family(
    name="sana",
    denoisers=("SanaTransformer2DModel",),
    image_size=sample_size,
    grids=configured_patches,
    block_rule=PIXART_DEPTH,
    timestep=150,
    flow=True,
    # Only the end of its instruction is kept.
    texts=(TextInput("tokenizer", right_aligned=True, respects_max_sequence_length=True),),
    linear_self_attention=True,
    options={"use_resolution_binning": False, "clean_caption": False, "complex_human_instruction": None},
    size_multiple=32,
    repos=(
        "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
        "Efficient-Large-Model/Sana_600M_1024px_diffusers",
        "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers",
    ),
    tiny=("sana",),
)
