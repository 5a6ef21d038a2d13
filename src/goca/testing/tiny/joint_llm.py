"""Transformers with one attention over text and image, the text from a language model."""

from typing import Any

import diffusers
import torch
import transformers

from goca.testing.tiny import tokenizers
from goca.testing.tiny.parts import (
    ONE_STREAM,
    TWO_STREAMS,
    VIDEO_STATISTICS,
    Text,
    components,
    flow_pipeline,
    gemma,
    language_model,
    levels,
    qwen3,
    ready,
    shifting_vae,
    vae,
)


@ready
def flux2() -> Any:
    """FLUX.2-dev: three layers of Mistral; a tokenizer stands in for the processor, which needs torchvision."""
    return diffusers.Flux2Pipeline(**components(_mistral()), **_flux2(guidance=True))


@ready
def flux2_klein() -> Any:
    """FLUX.2-klein: three layers of Qwen 3, the 9th, 18th and 27th; distilled."""
    text = components(qwen3(limit=512, model="Qwen3ForCausalLM", layers=27))
    return diffusers.Flux2KleinPipeline(**text, **_flux2(guidance=False), is_distilled=True)


@ready
def qwen_image() -> Any:
    """Qwen-Image: a text of any length behind a template that is cut off, a video VAE with cells of 4 px."""
    transformer = diffusers.QwenImageTransformer2DModel(
        **ONE_STREAM | {"attention_head_dim": 16},
        in_channels=16,
        out_channels=4,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        **VIDEO_STATISTICS,
    )
    schedule = {"use_dynamic_shifting": True, "max_shift": 0.9, "shift_terminal": 0.02}
    text = _qwen_vl(transformers.Qwen2_5_VLConfig, transformers.Qwen2_5_VLForConditionalGeneration, [1, 1, 2])
    return flow_pipeline(diffusers.QwenImagePipeline, transformer, autoencoder, text, **schedule)


@ready
def cogview4() -> Any:
    """CogView4: text and image share their projections, the text is padded in front to a multiple of 16."""
    tokenizer = tokenizers.glm(limit=1024)
    glm = transformers.GlmConfig(**language_model(tokenizer, pad_token_id=tokenizer.pad_token_id))
    transformer = diffusers.CogView4Transformer2DModel(
        **ONE_STREAM,
        sample_size=32,
        in_channels=4,
        out_channels=4,
        text_embed_dim=16,
        time_embed_dim=12,
        condition_dim=4,
    )
    text = tokenizer, transformers.GlmModel(glm)
    schedule = {"use_dynamic_shifting": True, "base_shift": 0.25, "max_shift": 0.75, "time_shift_type": "linear"}
    return flow_pipeline(diffusers.CogView4Pipeline, transformer, vae(0.18215), text, **schedule)


@ready
def lumina2() -> Any:
    """Lumina-Image 2: Gemma 2 behind a system prompt, padding left out, fewer heads for keys than for queries."""
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=4,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 64, 64),
        cap_feat_dim=16,
    )
    autoencoder = shifting_vae(cell=8)  # the pipeline depends on it
    return flow_pipeline(diffusers.Lumina2Pipeline, transformer, autoencoder, gemma(limit=256), shift=6.0)


@ready
def z_image() -> Any:
    """Z-Image: one stream, the image before the text, both padded to multiples of 32 by learned tokens."""
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    )
    # Zero as built, or uninitialised with an older diffusers; a checkpoint's are learnt.
    for pad in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(pad, std=0.02)
    return flow_pipeline(diffusers.ZImagePipeline, transformer, shifting_vae(), qwen3(limit=512), shift=3.0)


@ready
def ovis() -> Any:
    """Ovis-Image: Qwen 3 behind a template of 28 tokens that is cut off."""
    transformer = diffusers.OvisImageTransformer2DModel(
        **TWO_STREAMS, in_channels=16, out_channels=16, joint_attention_dim=16, axes_dims_rope=(4, 4, 8)
    )
    return flow_pipeline(diffusers.OvisImagePipeline, transformer, shifting_vae(), qwen3(limit=512))


@ready
def longcat() -> Any:
    """LongCat-Image: tokens put together piece by piece, behind a template that is cut off and before its end."""
    qwen = qwen_image()
    transformer = diffusers.LongCatImageTransformer2DModel(
        **TWO_STREAMS, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=[4, 4, 8]
    )
    # The pipeline makes 16 channels, whatever its parts declare.
    autoencoder = diffusers.AutoencoderKL(
        **levels(2) | {"latent_channels": 16}, scaling_factor=0.3611, shift_factor=0.1159
    )
    return diffusers.LongCatImagePipeline(
        transformer=transformer,
        vae=autoencoder,
        **components((qwen.tokenizer, qwen.text_encoder)),
        text_processor=None,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


@ready
def krea2() -> Any:
    """Krea 2: several layers of a language model fused inside the denoiser."""
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=24,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(8, 4, 4),
    )
    autoencoder = qwen_image().vae
    text = _qwen_vl(transformers.Qwen3VLConfig, transformers.Qwen3VLModel, [2, 1, 1], deepstack_visual_indexes=[0])
    return diffusers.Krea2Pipeline(
        transformer=transformer,
        vae=autoencoder,
        **components(text),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder_select_layers=(1, 2),
    )


def _flux2(guidance: bool) -> dict[str, Any]:
    transformer = diffusers.Flux2Transformer2DModel(
        **TWO_STREAMS,
        in_channels=16,
        joint_attention_dim=3 * 16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    return {
        "transformer": transformer,
        "vae": diffusers.AutoencoderKLFlux2(**levels(2), layers_per_block=1),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


_SIGHT = {"hidden_size": 16, "intermediate_size": 24}
"""Size of a language model's vision part, which no pipeline here uses."""


def _mistral() -> Text:
    tokenizer = tokenizers.mistral(limit=512)
    # The pipeline reads layers 10, 20 and 30.
    text = language_model(tokenizer, model_type="mistral", num_hidden_layers=30)
    size = {"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "image_size": 30, "patch_size": 6}
    config = transformers.Mistral3Config(text_config=text, vision_config={**_SIGHT, **size, "model_type": "pixtral"})
    return tokenizer, transformers.Mistral3ForConditionalGeneration(config)


def _qwen_vl(config: Any, model: Any, sections: list[int], **sight: Any) -> Text:
    """Qwen 2.5-VL or 3-VL; `sections` are the shares of time, height and width in the positions."""
    tokenizer = tokenizers.qwen(limit=1024)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    text = language_model(tokenizer, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, rope_parameters=rope)
    sight = {**_SIGHT, "depth": 1, "num_heads": 2, "out_hidden_size": 16, **sight}
    return tokenizer, model(config(text_config=text, vision_config=sight))
