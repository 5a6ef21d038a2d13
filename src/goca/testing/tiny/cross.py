"""Transformers that read the text through cross-attention."""

from typing import Any

import diffusers
import transformers

from goca.testing.tiny import tokenizers
from goca.testing.tiny.parts import ONE_STREAM, Text, components, gemma, ready, t5, umt5, vae, wan_vae

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@ready
def pixart_alpha() -> Any:
    """PixArt-alpha of 512 px and less."""
    return _pixart(diffusers.PixArtAlphaPipeline, limit=120, scaling_factor=0.18215)


@ready
def pixart_alpha_1024() -> Any:
    """PixArt-alpha of 1024 px: told size and aspect ratio, as `sample_size` 128 alone makes the pipeline do."""
    return _pixart(diffusers.PixArtAlphaPipeline, limit=120, scaling_factor=0.18215, sample_size=128)


@ready
def pixart_sigma() -> Any:
    """PixArt-Sigma: a longer text, never told the size."""
    return _pixart(diffusers.PixArtSigmaPipeline, limit=300, scaling_factor=0.13025)


@ready
def hunyuan_dit() -> Any:
    """HunyuanDiT 1.2: BERT and T5 one after the other, skips from the first blocks to the last, v-prediction."""
    transformer = diffusers.HunyuanDiT2DModel(
        **ONE_STREAM | {"num_layers": 6},
        sample_size=8,
        patch_size=2,
        hidden_size=24,
        in_channels=4,
        cross_attention_dim=40,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        use_style_cond_and_image_meta_size=False,
    )
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_schedule="scaled_linear", prediction_type="v_prediction", steps_offset=1
    )
    return diffusers.HunyuanDiTPipeline(
        transformer=transformer,
        vae=vae(0.13025, cell=8),  # the pipeline depends on it
        **components(_bert(), t5(limit=256)),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@ready
def sana() -> Any:
    """Sana: Gemma 2 behind an instruction, self-attention without a softmax, an autoencoder without a distribution."""
    transformer = diffusers.SanaTransformer2DModel(
        **ONE_STREAM,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
    )
    halves: dict[str, Any] = {}
    for half in ("encoder", "decoder"):
        halves[f"{half}_block_types"] = ("ResBlock", "ResBlock", "EfficientViTBlock")
        halves[f"{half}_block_out_channels"] = (8, 8, 8)
        halves[f"{half}_layers_per_block"] = (1, 1, 1)
        halves[f"{half}_qkv_multiscales"] = ((), (), (5,))
    autoencoder = diffusers.AutoencoderDC(
        **halves,
        latent_channels=4,
        attention_head_dim=2,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    return diffusers.SanaPipeline(
        transformer=transformer,
        vae=autoencoder,
        # The instruction alone is twice the 300 tokens that the transformer sees.
        **components(gemma(limit=2048)),
        scheduler=diffusers.DPMSolverMultistepScheduler(**_FLOW),
    )


@ready
def wan() -> Any:
    """Wan: text to video; one frame makes an image."""
    transformer = diffusers.WanTransformer3DModel(
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        ffn_dim=32,
        rope_max_seq_len=64,
    )
    return diffusers.WanPipeline(
        transformer=transformer,
        vae=wan_vae(),
        **components(umt5(tokenizers.t5())),
        scheduler=diffusers.UniPCMultistepScheduler(**_FLOW),
    )


@ready
def cosmos2() -> Any:
    """Cosmos-Predict2: one frame of a video model, noise levels as in EDM. Needs torchvision."""
    from diffusers.models.transformers import transformer_cosmos

    if not hasattr(transformer_cosmos, "transforms"):
        # The transformer resizes a mask with it, and only says so when it runs.
        raise ImportError("Cosmos needs torchvision: pip install torchvision", name="torchvision")
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        num_attention_heads=2,
        attention_head_dim=16,
        mlp_ratio=2,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(4, 64, 64),
        rope_scale=(1.0, 4.0, 4.0),
        extra_pos_embed_type=None,
    )
    return diffusers.Cosmos2TextToImagePipeline(
        transformer=transformer,
        vae=wan_vae(),
        **components(t5()),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=_Unchecked(),
    )


class _Unchecked:
    """Accepts everything: NVIDIA's checker is a download, and the pipeline does not run without one."""

    def to(self, _device: Any) -> "_Unchecked":
        return self

    def check_text_safety(self, _prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def _pixart(pipeline: Any, limit: int, scaling_factor: float, sample_size: int = 32) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        **ONE_STREAM, sample_size=sample_size, cross_attention_dim=24, caption_channels=32
    )
    return pipeline(
        transformer=transformer,
        vae=vae(scaling_factor),
        **components(t5(limit)),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def _bert() -> Text:
    tokenizer = tokenizers.bert(limit=77)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=40, num_hidden_layers=2, num_attention_heads=4, intermediate_size=37
    )
    return tokenizer, transformers.BertModel(config)
