"""Pipelines that diffusers ships and goca lists nowhere, tiny and random as those of `goca.testing.tiny`."""

from typing import Any

from goca.testing.tiny import BUILDERS, tokenizers
from goca.testing.tiny.parts import flux_vae, qwen3_config, ready, t5_text, vae


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


@ready
def longcat() -> Any:
    """LongCat-Image: tokens put together piece by piece, behind a template that is cut off and before its end."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        LongCatImagePipeline,
        LongCatImageTransformer2DModel,
    )

    qwen = BUILDERS["qwen_image"]()
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
def prx() -> Any:
    """PRX: the pixels alone ask, of words and pixels together."""
    from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline, PRXTransformer2DModel

    tokenizer = tokenizers.t5(limit=256)
    transformer = PRXTransformer2DModel(
        in_channels=4,
        patch_size=2,
        context_in_dim=32,
        hidden_size=32,
        mlp_ratio=2,
        num_heads=2,
        depth=4,
        axes_dim=[8, 8],
    )
    pipeline = PRXPipeline(
        transformer=transformer,
        vae=flux_vae(),
        text_encoder=t5_text(tokenizer),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        default_sample_size=64,
    )
    # It would clean the caption with a package that is not installed here.
    pipeline.text_preprocessor.basic_clean = str
    return pipeline


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
        vae=BUILDERS["qwen_image"]().vae,
        text_encoder=Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=sight)),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder_select_layers=(1, 2),
    )
