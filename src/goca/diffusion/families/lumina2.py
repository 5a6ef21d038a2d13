"""Lumina-Image 2: text and pixels are refined apart, then share one sequence without padding."""

from goca.diffusion.families.blocks import FLUX_DEPTH
from goca.diffusion.families.grids import configured_patches
from goca.diffusion.families.spec import Family, JointLayout, TextInput

FAMILY = Family(
    name="lumina2",
    denoisers=("Lumina2Transformer2DModel",),
    grids=configured_patches,
    block_rule=FLUX_DEPTH,
    timestep=407,
    feature="output",
    flow=True,
    texts=(TextInput("tokenizer", respects_max_sequence_length=True),),
    joint=JointLayout(text_first=True, unimodal_blocks=("context_refiner", "noise_refiner"), packed_text=True),
    repos=("Alpha-VLLM/Lumina-Image-2.0",),
    tiny=("lumina2",),
)
