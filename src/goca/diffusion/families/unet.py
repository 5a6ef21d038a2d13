"""Stable Diffusion 1.x, 2.x and XL and their fine-tunes.

Each transformer block has a self-attention `attn1` and a cross-attention `attn2`; the latent grid is halved, rounding
up, from level to level. All 77 text positions are columns, padding included.
"""

from typing import Any

from goca.diffusion.families.blocks import UP_PATH
from goca.diffusion.families.grids import level_of, levels
from goca.diffusion.families.reported import RERUN, paper_scores
from goca.diffusion.families.spec import CheckpointSettings, Family, ReportedScore, TextInput, sample_size
from goca.errors import GocaError

UNREADABLE = {
    "dual_cross_attention": "it attends to two texts at once",
    "only_cross_attention": "it reads the text where others attend to themselves",
    "mid_block_only_cross_attention": "it reads the text where others attend to themselves",
    "class_embed_type": "it needs a class label besides the text",
    "num_class_embeds": "it needs a class label besides the text",
    "encoder_hid_dim_type": "it needs an image besides the text",
}
"""Entries of a UNet's configuration that goca does not support, and why."""


def check(unet: Any) -> None:
    """Raise GocaError for a UNet that is conditioned on more than text, or attends in another layout."""
    for name, reason in UNREADABLE.items():
        # Read as an attribute, because an adapter changes the attribute.
        value = getattr(unet.config, name, None)
        is_set = any(value) if isinstance(value, list | tuple) else bool(value)
        if is_set and value != "text_proj":
            # An adapter can be removed; a model that was trained with images needs them.
            adapter = value == "ip_image_proj"
            remedy = "remove the adapter with pipe.unload_ip_adapter()" if adapter else "load another checkpoint"
            raise GocaError(f"this UNet has {name} = {value!r}, which goca cannot read: {reason}; {remedy}")


def up(level: int, attention: int, depth: int = 0) -> str:
    """The path of a transformer block of the up path."""
    return f"up_blocks.{level}.attentions.{attention}.transformer_blocks.{depth}"


def down(level: int, attention: int, depth: int = 0) -> str:
    """The path of a transformer block of the down path."""
    return f"down_blocks.{level}.attentions.{attention}.transformer_blocks.{depth}"


SD15 = CheckpointSettings(
    name="Stable Diffusion 1.5",
    repos=("stable-diffusion-v1-5/stable-diffusion-v1-5", "CompVis/stable-diffusion-v1-4"),
    layout={"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768},
    size=512,
    reference=up(2, 1),
    refine=(up(3, 0), up(3, 1), down(0, 1)),
    order=2,
    origin="the authors' settings for SD 1.5",
    scores=(
        *paper_scores(voc=60.7, context=40.4, coco_object=39.2, cityscapes=16.1, ade20k=22.0),
        ReportedScore(dataset="VOC", miou=54.97, source=RERUN),
    ),
)
SD21 = CheckpointSettings(
    name="Stable Diffusion 2.x",
    repos=("stabilityai/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1-base"),
    layout={"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024},
    size=768,
    reference=SD15.reference,
    refine=SD15.refine,
    order=2,
    origin="the authors' settings for SD 1.5, whose layout it shares; nobody has reported a score",
)
SDXL = CheckpointSettings(
    name="Stable Diffusion XL",
    repos=("stabilityai/stable-diffusion-xl-base-1.0",),
    layout={"block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048},
    size=1024,
    reference=up(1, 0),
    refine=(up(1, 0, 0), up(1, 0, 1), up(1, 1, 0), up(1, 1, 1), up(1, 2), down(1, 0, 0), down(1, 0, 1)),
    order=2,
    origin="the authors' settings for SDXL",
    scores=paper_scores(voc=65.6, context=42.3, coco_object=44.3, cityscapes=21.2, ade20k=23.2),
)
FAMILY = Family(
    name="unet",
    component="unet",
    denoisers=("UNet2DConditionModel",),
    check=check,
    image_size=sample_size,
    grids=levels,
    grid_of=level_of,
    block_rule=UP_PATH,
    texts=(TextInput("tokenizer"), TextInput("tokenizer_2")),
    checkpoints=(SD15, SD21, SDXL),
    tiny=("sd15", "sd2", "sdxl"),
)
