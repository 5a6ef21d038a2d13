"""Transformers with one attention over text and image, the text from a language model."""

from typing import Any

import torch

from goca.testing.tiny import tokenizers
from goca.testing.tiny.parts import flux_vae, gemma_text, qwen3_config, ready, vae


@ready
def flux2() -> Any:
    """FLUX.2-dev: three layers of Mistral; a tokenizer stands in for the processor, which needs torchvision."""
    from diffusers import Flux2Pipeline
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    tokenizer = tokenizers.mistral(limit=512)
    text = {
        "model_type": "mistral",
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        # The pipeline reads layers 10, 20 and 30.
        "num_hidden_layers": 30,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    sight = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 30,
        "patch_size": 6,
    }
    encoder = Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=sight))
    return Flux2Pipeline(text_encoder=encoder, tokenizer=tokenizer, **_flux2(guidance=True))


@ready
def flux2_klein() -> Any:
    """FLUX.2-klein: three layers of Qwen 3, distilled."""
    from diffusers import Flux2KleinPipeline
    from transformers import Qwen3ForCausalLM

    tokenizer = tokenizers.qwen(limit=512)
    # The pipeline reads layers 9, 18 and 27.
    encoder = Qwen3ForCausalLM(qwen3_config(tokenizer, layers=27))
    return Flux2KleinPipeline(text_encoder=encoder, tokenizer=tokenizer, is_distilled=True, **_flux2(guidance=False))


@ready
def qwen_image() -> Any:
    """Qwen-Image: a text of any length behind a template that is cut off, a video VAE with cells of 4 px."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    tokenizer = tokenizers.qwen(limit=1024)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=4,
        num_attention_heads=3,
        attention_head_dim=16,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[1.1, 1.2, 1.3, 1.4],
    )
    return QwenImagePipeline(
        transformer=transformer,
        vae=autoencoder,
        text_encoder=_qwen_vl(tokenizer),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=0.9, shift_terminal=0.02),
    )


@ready
def cogview4() -> Any:
    """CogView4: text and image share their projections, the text is padded in front to a multiple of 16."""
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
    from transformers import GlmConfig, GlmModel

    tokenizer = tokenizers.glm(limit=1024)
    glm = GlmConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformer = CogView4Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=3,
        attention_head_dim=8,
        text_embed_dim=16,
        time_embed_dim=12,
        condition_dim=4,
    )
    return CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=GlmModel(glm),
        vae=vae(0.18215),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear"
        ),
    )


@ready
def lumina2() -> Any:
    """Lumina-Image 2: Gemma 2 behind a system prompt, padding left out, fewer heads for keys than for queries."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

    tokenizer = tokenizers.gemma(limit=256)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
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
    return Lumina2Pipeline(
        transformer=transformer,
        # The pipeline counts on cells of 8 px.
        vae=vae(0.3611, shift_factor=0.1159, levels=4),
        text_encoder=gemma_text(tokenizer),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


@ready
def z_image() -> Any:
    """Z-Image: one stream, the image before the text, both padded to multiples of 32 by learned tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Model

    tokenizer = tokenizers.qwen(limit=512)
    transformer = ZImageTransformer2DModel(
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
    # Zero as built, or with an older diffusers whatever lay there; a checkpoint's are learned.
    for pad in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(pad, std=0.02)
    return ZImagePipeline(
        transformer=transformer,
        vae=flux_vae(),
        text_encoder=Qwen3Model(qwen3_config(tokenizer, layers=2)),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


@ready
def ovis() -> Any:
    """Ovis-Image: Qwen 3 behind a template of 28 tokens that is cut off."""
    from diffusers import FlowMatchEulerDiscreteScheduler, OvisImagePipeline, OvisImageTransformer2DModel
    from transformers import Qwen3Model

    tokenizer = tokenizers.qwen(limit=512)
    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    return OvisImagePipeline(
        transformer=transformer,
        vae=flux_vae(),
        text_encoder=Qwen3Model(qwen3_config(tokenizer, layers=2)),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


@ready
def longcat() -> Any:
    """LongCat-Image: tokens put together piece by piece, behind a template that is cut off and before its end."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        LongCatImagePipeline,
        LongCatImageTransformer2DModel,
    )

    qwen = qwen_image()
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )
    # The pipeline makes 16 channels, whatever its parts say.
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    return LongCatImagePipeline(
        transformer=transformer,
        vae=autoencoder,
        text_encoder=qwen.text_encoder,
        tokenizer=qwen.tokenizer,
        text_processor=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


@ready
def krea2() -> Any:
    """Krea 2: several layers of a language model fused inside the denoiser."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
    from transformers import Qwen3VLConfig, Qwen3VLModel

    tokenizer = tokenizers.qwen(limit=1024)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
    }
    sight = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 16,
        "deepstack_visual_indexes": [0],
    }
    transformer = Krea2Transformer2DModel(
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
    return Krea2Pipeline(
        transformer=transformer,
        vae=qwen_image().vae,
        text_encoder=Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=sight)),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder_select_layers=(1, 2),
    )


def _flux2(guidance: bool) -> dict[str, Any]:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=3 * 16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    autoencoder = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    return {
        "transformer": transformer,
        "vae": autoencoder,
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }


def _qwen_vl(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    }
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 16}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=sight))
