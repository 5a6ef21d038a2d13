"""What several tiny pipelines share: text encoders, VAEs, and how a pipeline is made ready."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


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


def clip_text(tokenizer: Any, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def t5_text(tokenizer: Any, width: int = 32, multilingual: bool = False) -> Any:
    """The encoder of T5 or, multilingual, of UMT5, which has position biases in every layer."""
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    config, model = (UMT5Config, UMT5EncoderModel) if multilingual else (T5Config, T5EncoderModel)
    return model(
        config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=8,
            d_ff=37,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def gemma_text(tokenizer: Any) -> Any:
    """Gemma 2, 16 wide."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return Gemma2Model(config)


def qwen3_config(tokenizer: Any, layers: int) -> Any:
    """Qwen 3, 16 wide."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
    )


def vae(scaling_factor: float, shift_factor: float | None = None, levels: int = 2) -> Any:
    """The usual VAE with 4 latent channels and cells of 2 ** (levels - 1) px; those that shift have no quantisation."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=shift_factor is None,
        use_post_quant_conv=shift_factor is None,
    )


def flux_vae() -> Any:
    """The usual VAE as Flux, Chroma, Lumina 2, Z-Image and HiDream normalise it."""
    return vae(0.3611, shift_factor=0.1159)


def wan_vae() -> Any:
    """The video VAE of Wan and Cosmos: cells of 8 px."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[1.1, 1.2, 1.3, 1.4],
    )
