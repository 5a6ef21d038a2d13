"""UNets with cross-attention: Stable Diffusion 1, 2 and XL, and Kolors."""

from typing import Any

import diffusers
import torch

from goca.testing.tiny import tokenizers
from goca.testing.tiny.parts import Text, clip, components, ready, vae

_UNET = {"sample_size": 32, "layers_per_block": 1, "norm_num_groups": 4}
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@ready
def sd15() -> Any:
    """Stable Diffusion 1.x: epsilon prediction, the same number of heads on every level."""
    return _stable_diffusion(heads=4, linear=False, pad=None, prediction="epsilon")


@ready
def sd2() -> Any:
    """Stable Diffusion 2.x: v-prediction, linear projections, heads by level, padding with "!"."""
    return _stable_diffusion(heads=(2, 4, 4), linear=True, pad="!", prediction="v_prediction")


@ready
def sdxl() -> Any:
    """Stable Diffusion XL: two text encoders, size conditions, transformer blocks in a row, an Euler sampler."""
    return diffusers.StableDiffusionXLPipeline(
        unet=_large_unet(pooled=32),
        vae=vae(0.13025),
        **components(clip(projected=False), clip(projected=True, pad="!")),
        scheduler=diffusers.EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading"),
        add_watermarker=False,
    )


@ready
def kolors() -> Any:
    """Kolors: the UNet of XL, which projects what ChatGLM says. Needs sentencepiece."""
    betas = _BETAS | {"beta_end": 0.014}
    return diffusers.KolorsPipeline(
        unet=_large_unet(pooled=16, encoder_hid_dim=16, encoder_hid_dim_type="text_proj"),
        vae=vae(0.13025),
        **components(_chatglm()),
        scheduler=diffusers.EulerDiscreteScheduler(**betas, num_train_timesteps=1100, timestep_spacing="leading"),
    )


def _stable_diffusion(heads: int | tuple[int, ...], linear: bool, pad: str | None, prediction: str) -> Any:
    unet = diffusers.UNet2DConditionModel(
        **_UNET,
        block_out_channels=(16, 32, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=heads,
        use_linear_projection=linear,
    )
    return diffusers.StableDiffusionPipeline(
        unet=unet,
        vae=vae(0.18215),
        **components(clip(projected=False, pad=pad)),
        scheduler=diffusers.DDIMScheduler(
            **_BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _large_unet(pooled: int, **text: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        **_UNET,
        block_out_channels=(16, 32),
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


def _chatglm() -> Text:
    from diffusers.pipelines.kolors import ChatGLMModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    tokenizer = tokenizers.chatglm(limit=256)
    config = ChatGLMConfig(
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
    model = ChatGLMModel(config)
    # Made empty, for the checkpoint's to be filled in.
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.02)
    return tokenizer, model
