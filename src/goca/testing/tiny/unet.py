"""UNets with cross-attention: Stable Diffusion 1, 2 and XL, and Kolors."""

from typing import Any

import torch

from goca.testing.tiny import tokenizers
from goca.testing.tiny.parts import clip_text, ready, vae

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@ready
def sd15() -> Any:
    """Stable Diffusion 1.x: epsilon prediction, the same number of heads on every level."""
    return _stable_diffusion(attention_head_dim=4, use_linear_projection=False, pad=None, prediction="epsilon")


@ready
def sd2() -> Any:
    """Stable Diffusion 2.x: v-prediction, linear projections, heads by level, padding with "!"."""
    return _stable_diffusion(
        attention_head_dim=(2, 4, 4), use_linear_projection=True, pad="!", prediction="v_prediction"
    )


@ready
def sdxl() -> Any:
    """Stable Diffusion XL: two text encoders, size conditions, transformer blocks in a row, an Euler sampler."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    both = tokenizers.clip(), tokenizers.clip(pad="!")
    return StableDiffusionXLPipeline(
        unet=_large_unet(pooled=32),
        vae=vae(0.13025),
        text_encoder=clip_text(both[0], projected=False),
        text_encoder_2=clip_text(both[1], projected=True),
        tokenizer=both[0],
        tokenizer_2=both[1],
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading"),
        add_watermarker=False,
    )


@ready
def kolors() -> Any:
    """Kolors: the UNet of XL, which projects what ChatGLM says. Needs sentencepiece."""
    from diffusers import EulerDiscreteScheduler, KolorsPipeline

    tokenizer = tokenizers.chatglm(limit=256)
    return KolorsPipeline(
        unet=_large_unet(pooled=16, encoder_hid_dim=16, encoder_hid_dim_type="text_proj"),
        vae=vae(0.13025),
        text_encoder=_chatglm_text(tokenizer),
        tokenizer=tokenizer,
        scheduler=EulerDiscreteScheduler(
            **_BETAS | {"beta_end": 0.014}, num_train_timesteps=1100, timestep_spacing="leading"
        ),
    )


def _stable_diffusion(
    attention_head_dim: int | tuple[int, ...], use_linear_projection: bool, pad: str | None, prediction: str
) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    tokenizer = tokenizers.clip(pad=pad)
    unet = UNet2DConditionModel(
        sample_size=32,
        layers_per_block=1,
        block_out_channels=(16, 32, 32),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=attention_head_dim,
        use_linear_projection=use_linear_projection,
    )
    return StableDiffusionPipeline(
        unet=unet,
        vae=vae(0.18215),
        text_encoder=clip_text(tokenizer, projected=False),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _large_unet(pooled: int, **text: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=32,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + pooled,
        cross_attention_dim=64,
        **text,
    )


def _chatglm_text(tokenizer: Any) -> Any:
    from diffusers.pipelines.kolors import ChatGLMModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    model = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=len(tokenizer),
            hidden_size=16,
            ffn_hidden_size=24,
            kv_channels=8,
            num_attention_heads=2,
            multi_query_attention=True,
            multi_query_group_num=1,
            seq_length=256,
            add_qkv_bias=True,
            # In the checkpoint's config.json, not in the class.
            original_rope=True,
            rope_ratio=1,
        )
    )
    # Made empty, for the checkpoint's to be filled in.
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.02)
    return model
