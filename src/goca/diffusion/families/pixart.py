"""PixArt-alpha and PixArt-Sigma: a self-attention and a cross-attention in each block."""

from goca.diffusion.families.blocks import PIXART_DEPTH
from goca.diffusion.families.grids import configured_patches
from goca.diffusion.families.reported import paper_scores
from goca.diffusion.families.spec import CheckpointSettings, Family, sample_size

PIXART = CheckpointSettings(
    name="PixArt",
    repos=(
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        "PixArt-alpha/PixArt-Sigma-XL-2-512-MS",
        "PixArt-alpha/PixArt-XL-2-1024-MS",
        "PixArt-alpha/PixArt-XL-2-512x512",
    ),
    layout={"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "caption_channels": 4096},
    size=1024,
    reference="transformer_blocks.13",
    refine=tuple(f"transformer_blocks.{index}" for index in range(10, 18)),
    order=5,
    origin="the authors' settings for PixArt-alpha and PixArt-Sigma; scores are Sigma's",
    scores=paper_scores(voc=63.6, context=43.2, coco_object=39.8, cityscapes=22.6, ade20k=23.8),
)
FAMILY = Family(
    name="pixart",
    denoisers=("PixArtTransformer2DModel",),
    image_size=sample_size,
    grids=configured_patches,
    block_rule=PIXART_DEPTH,
    order=5,
    options={"use_resolution_binning": False, "clean_caption": False},
    checkpoints=(PIXART,),
    tiny=("pixart_alpha", "pixart_alpha_1024", "pixart_sigma"),
)
