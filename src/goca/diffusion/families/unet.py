"""UNet2DConditionModel: Stable Diffusion 1.x, 2.x, XL and their fine-tunes.

Each transformer block has a self-attention `attn1` and a cross-attention `attn2`; the latent grid is halved, rounding
up, from level to level. All 77 text positions are columns, padding included.
"""

from typing import Any

from goca.errors import GocaError
from goca.maths import Grid

RULE = (
    "reference: the middle transformer block of the second finest level of the up path that has cross-attention, or "
    "the first block of the finest if there is only one such level; refinement: every block of the finest such level"
)


UNREADABLE = {
    "dual_cross_attention": "it attends to two texts at once",
    "only_cross_attention": "it reads the text where others attend to themselves",
    "mid_block_only_cross_attention": "it reads the text where others attend to themselves",
    "class_embed_type": "it wants a class label beside the text",
    "num_class_embeds": "it wants a class label beside the text",
    "encoder_hid_dim_type": "it wants an image beside the text; take an adapter off with pipe.unload_ip_adapter()",
}
"""Entries of a UNet's configuration that goca cannot serve, and why."""


def check(unet: Any) -> None:
    """Raise GocaError for a UNet that is told more than an image and a text, or attends in another layout."""
    for name, reason in UNREADABLE.items():
        # As an attribute, because that is what an adapter changes.
        value = getattr(unet.config, name, None)
        asked = any(value) if isinstance(value, list | tuple) else bool(value)
        if asked and value != "text_proj":
            raise GocaError(f"this UNet has {name} = {value!r}, which goca cannot read: {reason}")


def size(unet: Any, cell: int) -> int:
    """The side in pixels of the images the UNet was trained on, from its configuration."""
    side = unet.config.sample_size
    return int(side if isinstance(side, int) else max(side)) * cell


def grids(unet: Any, latent: Grid) -> tuple[Grid, ...]:
    """The latent grid and its halvings, one for each level."""
    height, width = latent
    out = [latent]
    for _ in unet.config.block_out_channels[1:]:
        height, width = -(-height // 2), -(-width // 2)
        out.append((height, width))
    return tuple(out)


def default_layers(unet: Any) -> tuple[str, tuple[str, ...]]:
    """(reference block, refinement blocks) by `RULE`; GocaError where the up path has no cross-attention."""
    levels = [
        [
            f"up_blocks.{level}.attentions.{place}.transformer_blocks.{depth}"
            for place, attention in enumerate(getattr(block, "attentions", None) or ())
            for depth in range(len(getattr(attention, "transformer_blocks", ())))
        ]
        for level, block in enumerate(unet.up_blocks)
    ]
    levels = [blocks for blocks in levels if blocks]
    if not levels:
        raise GocaError("this UNet has no cross-attention on its way up: goca cannot read it")
    reference = levels[-2][len(levels[-2]) // 2] if len(levels) > 1 else levels[-1][0]
    return reference, tuple(levels[-1])
