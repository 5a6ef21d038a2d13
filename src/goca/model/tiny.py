"""A tiny random pipeline of every family, built from configurations: for tests and for `goca models --check`.

They know no picture and no word. They have the shapes, modules and conditioning of the real ones, so that everything
but the masks' meaning can be tried without a download.
"""

import string
from collections.abc import Callable
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import torch

CORPUS = (
    "a photo of a cat sitting on grass next to a traffic light and a dog under the sky",
    "dining table, potted plant, tv monitor, motorbike, aeroplane, background, wall, person, people",
    "the quick brown fox jumps over the lazy dog",
    # Every character at least once: a byte-pair tokenizer drops what it has never seen, and shifts all later offsets.
    " ".join(string.printable.split()[0]),
)


def sd15() -> Any:
    """Stable Diffusion 1.x: epsilon prediction, the same number of heads on every level."""
    return _stable_diffusion(attention_head_dim=4, use_linear_projection=False, pad=None, prediction="epsilon")


def sd2() -> Any:
    """Stable Diffusion 2.x: v-prediction, linear projections, heads by level, padding with "!"."""
    return _stable_diffusion(
        attention_head_dim=(2, 4, 4), use_linear_projection=True, pad="!", prediction="v_prediction"
    )


def sdxl() -> Any:
    """Stable Diffusion XL: two text encoders, size conditions, transformer blocks in a row, an Euler sampler."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    tokenizers = _tokenizer(None), _tokenizer("!")
    unet = UNet2DConditionModel(
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
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
    )
    pipeline = StableDiffusionXLPipeline(
        unet=unet,
        vae=_vae(0.13025),
        text_encoder=_text_encoder(tokenizers[0], projected=False),
        text_encoder_2=_text_encoder(tokenizers[1], projected=True),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading"),
        add_watermarker=False,
    )
    return _ready(pipeline)


BUILDERS: dict[str, Callable[[], Any]] = {"sd15": sd15, "sd2": sd2, "sdxl": sdxl}

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _stable_diffusion(
    attention_head_dim: int | tuple[int, ...], use_linear_projection: bool, pad: str | None, prediction: str
) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    tokenizer = _tokenizer(pad)
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
    pipeline = StableDiffusionPipeline(
        unet=unet,
        vae=_vae(0.18215),
        text_encoder=_text_encoder(tokenizer, projected=False),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _ready(pipeline)


def _ready(pipeline: Any) -> Any:
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    return pipeline


@cache
def _trained() -> Any:
    """A byte-pair tokenizer of CLIP's kind, trained on the corpus: about a second, so once a process."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer().train_new_from_iterator(list(CORPUS) * 20, vocab_size=400, show_progress=False)


def _tokenizer(pad: str | None) -> Any:
    from transformers import CLIPTokenizer

    with TemporaryDirectory() as folder:
        _trained().save_pretrained(folder)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 77
    if pad is not None:
        tokenizer.pad_token = pad
    return tokenizer


def _text_encoder(tokenizer: Any, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _vae(scaling_factor: float) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling_factor,
    )
