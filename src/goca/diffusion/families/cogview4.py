"""CogView4: text and pixels share their projections; the text is padded in front."""

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import configured_patches
from goca.diffusion.families.spec import TextInput

FAMILY = like_flux(
    name="cogview4",
    denoisers=("CogView4Transformer2DModel",),
    grids=configured_patches,
    texts=(TextInput("tokenizer", right_aligned=True, respects_max_sequence_length=True),),
    size_multiple=16,
    repos=("THUDM/CogView4-6B",),
    tiny=("cogview4",),
)
