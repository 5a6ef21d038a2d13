"""HiDream-I1: the text from T5, and a layer of Llama for each block."""

from goca.diffusion.families.blocks import like_flux
from goca.diffusion.families.grids import configured_patches
from goca.diffusion.families.spec import JointLayout, TextInput

FAMILY = like_flux(
    name="hidream",
    denoisers=("HiDreamImageTransformer2DModel",),
    grids=configured_patches,
    texts=(
        TextInput("tokenizer_3", respects_max_sequence_length=True),
        # Each word comes twice from Llama: from its last layer, and from the layer that belongs to the block.
        TextInput("tokenizer_4", start=128, respects_max_sequence_length=True),
        TextInput("tokenizer_4", start=256, respects_max_sequence_length=True),
    ),
    joint=JointLayout(text_first=False, pad_to_attr="max_seq"),
    fixed_area=True,
    repos=(
        "HiDream-ai/HiDream-I1-Full",
        "HiDream-ai/HiDream-I1-Dev",
        "HiDream-ai/HiDream-I1-Fast",
    ),
    tiny=("hidream",),
)
