"""What several tiny pipelines share: sizes of denoisers, components, VAEs, and how a pipeline is made ready."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import diffusers
import torch
import transformers

from goca.testing.tiny import tokenizers

ONE_STREAM = {"num_layers": 4, "num_attention_heads": 3, "attention_head_dim": 8}
"""The size of a transformer whose blocks are all of one kind."""
TWO_STREAMS = {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 2, "attention_head_dim": 16}
"""The size of Flux and its kin: blocks with streams for text and image, then blocks that have them in one."""
VIDEO_STATISTICS = {"latents_mean": [0.1, -0.2, 0.3, -0.4], "latents_std": [1.1, 1.2, 1.3, 1.4]}

Text = tuple[Any, Any]
"""(tokenizer, text encoder)."""


def ready(build: Callable[[], Any]) -> Callable[[], Any]:
    """Make a builder return the same weights on every call, and a pipeline in eval mode."""

    @wraps(build)
    def seeded() -> Any:
        torch.manual_seed(0)
        pipeline = build()
        for module in pipeline.components.values():
            if isinstance(module, torch.nn.Module):
                module.eval()
        return pipeline

    return seeded


def components(*pairs: Text) -> dict[str, Any]:
    """The components of a pipeline that reads several texts: `tokenizer`, `tokenizer_2` and so on."""
    parts: dict[str, Any] = {}
    for number, (tokenizer, encoder) in enumerate(pairs, start=1):
        suffix = f"_{number}" if number > 1 else ""
        parts |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": encoder}
    return parts


def flow_pipeline(kind: Any, transformer: Any, vae: Any, *pairs: Text, **schedule: Any) -> Any:
    """A pipeline of this class for a model trained on straight lines between image and noise."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**schedule)
    return kind(transformer=transformer, vae=vae, **components(*pairs), scheduler=scheduler)


def clip(projected: bool, limit: int = 77, pad: str | None = None) -> Text:
    """CLIP, with the projection of its pooled output or without; `pad` is a padding token of its own."""
    tokenizer = tokenizers.clip(limit)
    tokenizer.pad_token = pad or tokenizer.pad_token
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=limit,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return tokenizer, model(config)


def t5(limit: int = 512, width: int = 32) -> Text:
    """The encoder of T5."""
    tokenizer = tokenizers.t5(limit)
    return tokenizer, transformers.T5EncoderModel(transformers.T5Config(**_t5_size(tokenizer, width)))


def umt5(tokenizer: Any) -> Text:
    """The encoder of UMT5, which has position biases in every layer."""
    return tokenizer, transformers.UMT5EncoderModel(transformers.UMT5Config(**_t5_size(tokenizer, width=32)))


def _t5_size(tokenizer: Any, width: int) -> dict[str, Any]:
    size = {"vocab_size": len(tokenizer), "d_model": width, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    return {**size, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "use_cache": False}


def gemma(limit: int) -> Text:
    """Gemma 2."""
    tokenizer = tokenizers.gemma(limit)
    return tokenizer, transformers.Gemma2Model(transformers.Gemma2Config(**language_model(tokenizer)))


def qwen3(limit: int, model: str = "Qwen3Model", layers: int = 2) -> Text:
    """Qwen 3."""
    tokenizer = tokenizers.qwen(limit)
    size = language_model(tokenizer, num_hidden_layers=layers, max_position_embeddings=1024)
    return tokenizer, getattr(transformers, model)(transformers.Qwen3Config(**size))


def language_model(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """The configuration of a language model that is 16 wide and has fewer heads for keys than for queries."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        **changes,
    }


def levels(count: int) -> dict[str, Any]:
    """The configuration of a VAE with 4 latent channels and cells of 2 ** (count - 1) px."""
    return {
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
        "block_out_channels": (8,) * count,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 64,
    }


def vae(scaling_factor: float, cell: int = 2) -> Any:
    """The VAE of models that scale its latents; `cell` is in pixels."""
    return diffusers.AutoencoderKL(**levels(cell.bit_length()), scaling_factor=scaling_factor)


def shifting_vae(scaling_factor: float = 0.3611, shift_factor: float = 0.1159, cell: int = 2) -> Any:
    """The VAE of models that shift and scale its latents, by default as Flux does; `cell` is in pixels."""
    return diffusers.AutoencoderKL(
        **levels(cell.bit_length()),
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def wan_vae() -> Any:
    """The video VAE of Wan and Cosmos: cells of 8 px."""
    return diffusers.AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **VIDEO_STATISTICS)
