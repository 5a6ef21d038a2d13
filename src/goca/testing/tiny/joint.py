"""Transformers with one attention over text and image, the text from CLIP or T5, in HiDream from Llama too."""

from typing import Any

from goca.testing.tiny import tokenizers
from goca.testing.tiny.parts import clip_text, flux_vae, ready, t5_text, vae


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
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    tokenizer = tokenizers.t5()
    transformer = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return ChromaPipeline(
        transformer=transformer,
        vae=flux_vae(),
        text_encoder=t5_text(tokenizer),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


@ready
def sd3() -> Any:
    """Stable Diffusion 3: three text encoders, the image before the text."""
    return _stable_diffusion_3(qk_norm=None, dual_attention_layers=())


@ready
def sd35() -> Any:
    """Stable Diffusion 3.5 medium: normed queries and keys, the first blocks look at the image once more."""
    return _stable_diffusion_3(qk_norm="rms_norm", dual_attention_layers=(0, 1))


@ready
def auraflow() -> Any:
    """AuraFlow: learned registers before the text, padding in front of it."""
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler

    tokenizer = tokenizers.llama(limit=256)
    transformer = AuraFlowTransformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=3,
        num_attention_heads=3,
        attention_head_dim=8,
        joint_attention_dim=32,
        caption_projection_dim=24,
        pos_embed_max_size=24 * 24,
    )
    return AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_text(tokenizer, multilingual=True),
        vae=vae(0.13025),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


@ready
def hidream() -> Any:
    """HiDream-I1: T5, and for each block a layer of Llama; experts; every image rescaled to the same area."""
    from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel
    from transformers import LlamaConfig, LlamaForCausalLM

    four = tokenizers.clip(limit=248), tokenizers.clip(limit=248), tokenizers.t5(), tokenizers.llama3(limit=128)
    llama = LlamaConfig(
        vocab_size=len(four[3]),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        # The pipeline asks for the attention's weights too.
        attn_implementation="eager",
    )
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=3,
        attention_head_dim=8,
        caption_channels=[32, 16],
        text_emb_dim=2 * 32,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(40, 40),
        llama_layers=(0, 1, 2, 3, 3),
    )
    pipeline = HiDreamImagePipeline(
        transformer=transformer,
        vae=flux_vae(),
        text_encoder=clip_text(four[0], projected=True),
        text_encoder_2=clip_text(four[1], projected=True),
        text_encoder_3=t5_text(four[2]),
        text_encoder_4=LlamaForCausalLM(llama),
        tokenizer=four[0],
        tokenizer_2=four[1],
        tokenizer_3=four[2],
        tokenizer_4=four[3],
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    # In no configuration: 128 latent cells a side in a pipeline of any checkpoint.
    pipeline.default_sample_size = 32
    return pipeline


@ready
def bria() -> Any:
    """Bria 3.2: as Flux, the text from T5 alone; its `vae_scale_factor` counts 2 x 2 cells."""
    from diffusers import BriaPipeline, BriaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    tokenizer = tokenizers.t5()
    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    return BriaPipeline(
        transformer=transformer,
        vae=flux_vae(),
        text_encoder=t5_text(tokenizer),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


@ready
def cogview3() -> Any:
    """CogView3-Plus: words before pixels in one attention, trained on a chain of steps and not on straight lines."""
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusPipeline, CogView3PlusTransformer2DModel

    tokenizer = tokenizers.t5(limit=224)
    transformer = CogView3PlusTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=3,
        attention_head_dim=8,
        text_embed_dim=32,
        time_embed_dim=12,
        condition_dim=4,
        pos_embed_max_size=32,
        sample_size=32,
    )
    return CogView3PlusPipeline(
        transformer=transformer,
        vae=vae(0.13025),
        text_encoder=t5_text(tokenizer),
        tokenizer=tokenizer,
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    )


def _flux(guidance: bool, **schedule: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    both = tokenizers.clip(), tokenizers.t5()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        transformer=transformer,
        vae=flux_vae(),
        text_encoder=clip_text(both[0], projected=False),
        text_encoder_2=t5_text(both[1]),
        tokenizer=both[0],
        tokenizer_2=both[1],
        scheduler=FlowMatchEulerDiscreteScheduler(**schedule),
    )


def _stable_diffusion_3(qk_norm: str | None, dual_attention_layers: tuple[int, ...]) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    three = tokenizers.clip(), tokenizers.clip(pad="!"), tokenizers.t5()
    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=3,
        attention_head_dim=8,
        joint_attention_dim=80,
        caption_projection_dim=24,
        pooled_projection_dim=2 * 32,
        pos_embed_max_size=24,
        qk_norm=qk_norm,
        dual_attention_layers=dual_attention_layers,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        vae=vae(1.5305, shift_factor=0.0609),
        text_encoder=clip_text(three[0], projected=True),
        text_encoder_2=clip_text(three[1], projected=True),
        text_encoder_3=t5_text(three[2], width=80),
        tokenizer=three[0],
        tokenizer_2=three[1],
        tokenizer_3=three[2],
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
