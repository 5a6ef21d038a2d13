"""A model and a prompt of ComfyUI in goca's terms."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

from diffusers.configuration_utils import FrozenDict

from goca.diffusion.attention_modules import AttentionModule
from goca.diffusion.checkpoints import settings_for
from goca.diffusion.denoiser_call import PromptTokens
from goca.diffusion.families.spec import CheckpointSettings
from goca.diffusion.families.unet import FAMILY
from goca.errors import GocaError
from goca.guidance.regions import SpecialTokens
from goca.text.tokens import tokens_by_decoding

CELL = 8
"""Pixels per side of a latent cell, in all supported models."""
ENCODERS = ("l", "h", "g")
"""CLIP text encoders by the keys of their tokens: SD 1.x and XL, SD 2.x, and XL's refiner."""
SUPPORTED = "connect a model of Stable Diffusion 1.x, 2.x or XL"
BLOCK = re.compile(r"(input|middle|output)_block(?:s\.(\d+))?\.\d+\.transformer_blocks\.(\d+)")
"""The path of a transformer block: the UNet's part, the block's number in it, the depth."""
HostBlock = tuple[str, int, int]
"""A transformer block as `BLOCK` reads it from a path, and as `transformer_options` names it."""


@dataclass(frozen=True)
class HostUNet:
    """A UNet of ComfyUI, in goca's terms.

    Attributes:
        denoiser: Stand-in for the diffusers UNet of the same layout, with the attributes that `FAMILY` reads.
        cross: {transformer block: its cross-attention}; `AttentionModule.block` is the block's path in diffusers.
        settings: The checkpoint's settings for segmentation.
    """

    denoiser: Any
    cross: Mapping[HostBlock, AttentionModule]
    settings: CheckpointSettings

    @classmethod
    def of(cls, model: Any) -> "HostUNet":
        """Read the layout of a ModelPatcher's `model`. Raises GocaError for one that is not supported."""
        unet, facts = model.diffusion_model, getattr(model.model_config, "unet_config", {})
        kind = type(unet).__name__
        if kind != "UNetModel" or any("time_stack" in path for path, _ in unet.named_modules()):
            raise GocaError(f"the attention of {kind} is not supported: {SUPPORTED}")
        per_level = facts["num_res_blocks"]
        counts = {per_level} if isinstance(per_level, int) else set(per_level)
        if len(counts) != 1:
            raise GocaError(f"a UNet with {per_level} layers per level is not supported: {SUPPORTED}")
        (layers,) = counts
        cross = {}
        for path, block in unet.named_modules():
            if (match := BLOCK.fullmatch(path)) and getattr(block, "attn2", None) is not None:
                key = match[1], int(match[2] or 0), int(match[3])
                cross[key] = AttentionModule(diffusers_path(key, layers), block.attn2, block)
        denoiser = _denoiser(facts, [module.block for module in cross.values()])
        blocks = tuple(module.block for module in cross.values())
        return cls(denoiser, cross, settings_for(denoiser, FAMILY, CELL, blocks))

    @property
    def blocks(self) -> tuple[str, ...]:
        """The paths of the blocks that attend to the text."""
        return tuple(module.block for module in self.cross.values())


def diffusers_path(block: HostBlock, layers: int) -> str:
    """A transformer block's path in diffusers. layers: number per down level; an up level has one more."""
    part, number, depth = block
    if part == "middle":
        return f"mid_block.attentions.0.transformer_blocks.{depth}"
    # The first input block is a convolution, and the last one of each level downsamples.
    up = part == "output"
    level, layer = divmod(number if up else number - 1, layers + 1)
    return f"{'up' if up else 'down'}_blocks.{level}.attentions.{layer}.transformer_blocks.{depth}"


def _denoiser(facts: Mapping[str, Any], blocks: Sequence[str]) -> Any:
    """The attributes of a diffusers UNet that the family's rules read."""
    widths = tuple(facts["model_channels"] * factor for factor in facts["channel_mult"])
    config = FrozenDict(block_out_channels=widths, cross_attention_dim=facts["context_dim"], sample_size=64)

    def attentions(level: int) -> list[Any]:
        paths = [path.split(".") for path in blocks if path.startswith(f"up_blocks.{level}.")]
        numbers = [path[3] for path in paths]
        return [SimpleNamespace(transformer_blocks=[0] * numbers.count(number)) for number in dict.fromkeys(numbers)]

    levels = [SimpleNamespace(attentions=attentions(level)) for level in range(len(widths))]
    return SimpleNamespace(config=config, up_blocks=levels)


class HostPrompt(NamedTuple):
    """A prompt as ComfyUI encodes it: its tokens, their number, and the tokenizer's special ones."""

    tokens: PromptTokens
    length: int
    specials: SpecialTokens

    @classmethod
    def of(cls, clip: Any, text: str, encoded: Mapping[str, Any]) -> "HostPrompt":
        """Read it from the result of `clip.tokenize`. Raises GocaError for an encoder that is not a CLIP."""
        key = next((key for key in ENCODERS if key in encoded), None)
        if key is None or len(encoded.keys() - set(ENCODERS)) > 0:
            raise GocaError(f"a text encoder with the parts {', '.join(encoded)} is not supported: {SUPPORTED}")
        tokenizer = getattr(clip.tokenizer, f"clip_{key}").tokenizer
        start, end, ids = tokenizer.bos_token_id, tokenizer.eos_token_id, list[int]()
        for chunk in encoded[key]:
            # A textual inversion embedding has no token id, and some encoders pad with a word's id.
            numbers = [token[0] if isinstance(token[0], int) else start for token in chunk]
            words = numbers.index(end) if end in numbers else len(numbers)
            ids += [*numbers[:words], *[end] * (len(numbers) - words)]
        tokens = replace(tokens_by_decoding(tokenizer, ids), tokenizer=key)
        return cls(PromptTokens(text, (tokens,)), len(ids), SpecialTokens.of(tokenizer))
