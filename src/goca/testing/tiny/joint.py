"""Transformers with one attention over text and image, the text from CLIP or T5, in HiDream from Llama too."""

from typing import Any

import diffusers
import transformers

from goca.testing.tiny import tokenizers
from goca.testing.tiny.parts import (
    ONE_STREAM,
    TWO_STREAMS,
    Text,
    clip,
    components,
    flow_pipeline,
    language_model,
    ready,
    shifting_vae,
    t5,
    umt5,
    vae,
)


@ready
def flux() -> Any:
    """FLUX.1-dev: two streams, then one; told the guidance; noise levels that follow the size."""
    return _flux(guidance=True, shift=3.0, use_dynamic_shifting=True)


@ready
def flux_schnell() -> Any:
    """FLUX.1-schnell: distilled, not told the guidance."""
    return _flux(guidance=False, shift=1.0)


@ready
def chroma() -> Any:
    """Chroma: Flux without CLIP, a small network in place of the modulations, a mask over text and image."""
    transformer = diffusers.ChromaTransformer2DModel(
        **TWO_STREAMS,
        in_channels=16,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return flow_pipeline(diffusers.ChromaPipeline, transformer, shifting_vae(), t5())


@ready
def sd3() -> Any:
    """Stable Diffusion 3: three text encoders, the image before the text."""
    return _stable_diffusion_3()


@ready
def sd35() -> Any:
    """Stable Diffusion 3.5 medium: normed queries and keys, the first blocks look at the image once more."""
    return _stable_diffusion_3(qk_norm="rms_norm", dual_attention_layers=(0, 1))


@ready
def auraflow() -> Any:
    """AuraFlow: learned registers before the text, padding in front of it."""
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=32,
        num_mmdit_layers=2,
        num_single_dit_layers=3,
        num_attention_heads=3,
        attention_head_dim=8,
        joint_attention_dim=32,
        caption_projection_dim=24,
        pos_embed_max_size=24 * 24,
    )
    text = umt5(tokenizers.llama(limit=256))
    return flow_pipeline(diffusers.AuraFlowPipeline, transformer, vae(0.13025), text, shift=1.73)


@ready
def hidream() -> Any:
    """HiDream-I1: T5, and for each block a layer of Llama; experts; every image rescaled to the same area."""
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=3,
        attention_head_dim=8,
        caption_channels=[32, 16],
        text_emb_dim=2 * 32,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(40, 40),
        llama_layers=(0, 1, 2, 3, 3),
    )
    autoencoder = shifting_vae()
    texts = clip(projected=True, limit=248), clip(projected=True, limit=248), t5(), _llama3()
    pipeline = flow_pipeline(diffusers.HiDreamImagePipeline, transformer, autoencoder, *texts, shift=3.0)
    # In no configuration: 128 latent cells a side in a pipeline of any checkpoint.
    pipeline.default_sample_size = 32
    return pipeline


@ready
def bria() -> Any:
    """Bria 3.2: as Flux, the text from T5 alone; its `vae_scale_factor` counts 2 x 2 cells."""
    transformer = diffusers.BriaTransformer2DModel(
        **TWO_STREAMS, in_channels=16, joint_attention_dim=32, axes_dims_rope=[4, 4, 8]
    )
    return flow_pipeline(diffusers.BriaPipeline, transformer, shifting_vae(), t5())


@ready
def cogview3() -> Any:
    """CogView3-Plus: words before pixels in one attention, trained on a chain of steps and not on straight lines."""
    transformer = diffusers.CogView3PlusTransformer2DModel(
        **ONE_STREAM,
        in_channels=4,
        out_channels=4,
        text_embed_dim=32,
        time_embed_dim=12,
        condition_dim=4,
        pos_embed_max_size=32,
        sample_size=32,
    )
    return diffusers.CogView3PlusPipeline(
        transformer=transformer,
        vae=vae(0.13025),
        **components(t5(limit=224)),
        scheduler=diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    )


def _flux(guidance: bool, **schedule: Any) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        **TWO_STREAMS,
        in_channels=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    return flow_pipeline(diffusers.FluxPipeline, transformer, shifting_vae(), clip(projected=False), t5(), **schedule)


def _stable_diffusion_3(**attention: Any) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        **ONE_STREAM,
        sample_size=32,
        in_channels=4,
        out_channels=4,
        joint_attention_dim=80,
        caption_projection_dim=24,
        pooled_projection_dim=2 * 32,
        pos_embed_max_size=24,
        **attention,
    )
    autoencoder = shifting_vae(1.5305, shift_factor=0.0609)
    texts = clip(projected=True), clip(projected=True, pad="!"), t5(width=80)
    return flow_pipeline(diffusers.StableDiffusion3Pipeline, transformer, autoencoder, *texts, shift=3.0)


def _llama3() -> Text:
    tokenizer = tokenizers.llama3(limit=128)
    # The pipeline asks for the attention's weights too.
    size = language_model(tokenizer, num_hidden_layers=4, attn_implementation="eager")
    return tokenizer, transformers.LlamaForCausalLM(transformers.LlamaConfig(**size))
