"""Transformers that read the text through cross-attention."""

from typing import Any

from goca.testing.tiny import tokenizers
from goca.testing.tiny.parts import gemma_text, ready, t5_text, vae, wan_vae


@ready
def pixart_alpha() -> Any:
    """PixArt-alpha of 512 px and less."""
    from diffusers import PixArtAlphaPipeline

    return PixArtAlphaPipeline(**_pixart(limit=120, scaling_factor=0.18215, sample_size=32, conditions=False))


@ready
def pixart_alpha_1024() -> Any:
    """PixArt-alpha of 1024 px: told size and aspect ratio, as `sample_size` 128 alone makes the pipeline do."""
    from diffusers import PixArtAlphaPipeline

    return PixArtAlphaPipeline(**_pixart(limit=120, scaling_factor=0.18215, sample_size=128, conditions=True))


@ready
def pixart_sigma() -> Any:
    """PixArt-Sigma: a longer text, never told the size."""
    from diffusers import PixArtSigmaPipeline

    return PixArtSigmaPipeline(**_pixart(limit=300, scaling_factor=0.13025, sample_size=32, conditions=False))


@ready
def hunyuan_dit() -> Any:
    """HunyuanDiT 1.2: BERT and T5 one after the other, skips from the first blocks to the last, v-prediction."""
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
    from transformers import BertConfig, BertModel

    both = tokenizers.bert(), tokenizers.t5(limit=256)
    bert = BertConfig(
        vocab_size=len(both[0]), hidden_size=40, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37
    )
    transformer = HunyuanDiT2DModel(
        sample_size=8,
        num_layers=6,
        patch_size=2,
        num_attention_heads=3,
        attention_head_dim=8,
        hidden_size=24,
        in_channels=4,
        cross_attention_dim=40,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        activation_fn="gelu-approximate",
        use_style_cond_and_image_meta_size=False,
    )
    return HunyuanDiTPipeline(
        transformer=transformer,
        # The pipeline counts on cells of 8 px.
        vae=vae(0.13025, levels=4),
        text_encoder=BertModel(bert),
        text_encoder_2=t5_text(both[1]),
        tokenizer=both[0],
        tokenizer_2=both[1],
        scheduler=DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.02,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@ready
def sana() -> Any:
    """Sana: Gemma 2 behind an instruction, self-attention without a softmax, an autoencoder without a distribution."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel

    # The instruction alone is twice the 300 tokens that the transformer sees.
    tokenizer = tokenizers.gemma(limit=2048)
    transformer = SanaTransformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=3,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
    )
    blocks = ("ResBlock", "ResBlock", "EfficientViTBlock")
    autoencoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma_text(tokenizer),
        vae=autoencoder,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


@ready
def wan() -> Any:
    """Wan: text to video; one frame makes an image."""
    from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    tokenizer = tokenizers.t5()
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        ffn_dim=32,
        rope_max_seq_len=64,
    )
    return WanPipeline(
        transformer=transformer,
        vae=wan_vae(),
        text_encoder=t5_text(tokenizer, multilingual=True),
        tokenizer=tokenizer,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


@ready
def cosmos2() -> Any:
    """Cosmos-Predict2: one frame of a video model, noise levels as in EDM. Needs torchvision."""
    from diffusers import Cosmos2TextToImagePipeline, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler
    from diffusers.models.transformers import transformer_cosmos

    if not hasattr(transformer_cosmos, "transforms"):
        # The transformer resizes a mask with it, and only says so when it runs.
        raise ImportError('Cosmos needs torchvision: pip install "goca[cosmos]"', name="torchvision")
    tokenizer = tokenizers.t5()
    transformer = CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        mlp_ratio=2,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(4, 64, 64),
        patch_size=(1, 2, 2),
        rope_scale=(1.0, 4.0, 4.0),
        extra_pos_embed_type=None,
    )
    return Cosmos2TextToImagePipeline(
        transformer=transformer,
        vae=wan_vae(),
        text_encoder=t5_text(tokenizer),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=_Unchecked(),
    )


class _Unchecked:
    """Lets everything pass: NVIDIA's checker is a download, and the pipeline refuses to run without one."""

    def to(self, _device: Any) -> "_Unchecked":
        return self

    def check_text_safety(self, _prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def _pixart(limit: int, scaling_factor: float, sample_size: int, conditions: bool) -> dict[str, Any]:
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    tokenizer = tokenizers.t5(limit)
    transformer = PixArtTransformer2DModel(
        sample_size=sample_size,
        num_layers=4,
        patch_size=2,
        num_attention_heads=3,
        attention_head_dim=8,
        cross_attention_dim=24,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        use_additional_conditions=conditions,
    )
    return {
        "transformer": transformer,
        "vae": vae(scaling_factor),
        "text_encoder": t5_text(tokenizer),
        "tokenizer": tokenizer,
        "scheduler": DPMSolverMultistepScheduler(),
    }
