"""Any autoencoder that a pipeline itself can work with is encoded with as diffusers does it; others are named."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from PIL import Image
from torch import Tensor, nn

from goca.diffusion.backbone import Backbone
from goca.errors import GocaError
from goca.recipe import GOCA
from goca.segmenter import Segmenter
from goca.testing.tiny import BUILDERS

Make = Callable[..., Image.Image]
SIZE = (64, 96)
TWO_LEVELS: dict[str, Any] = {
    "block_out_channels": (16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}
KINDS: dict[str, Callable[[], Any]] = {
    "tiny": lambda: tiny(2, 4),
    "asymmetric": lambda: diffusers.AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(16, 16),
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(16, 16),
        norm_num_groups=4,
    ),
    "temporal decoder": lambda: diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32)
    ),
    "vq": lambda: diffusers.VQModel(**TWO_LEVELS, latent_channels=4, scaling_factor=0.3),
    "kl with statistics": lambda: diffusers.AutoencoderKL(
        **TWO_LEVELS, latents_mean=[0.1, -0.2, 0.3, -0.4], latents_std=[0.5, 0.6, 0.7, 0.8], scaling_factor=0.3
    ),
}


def tiny(factor: int, channels: int) -> Any:
    """TAESD's class, with as many pixels a side of a cell, and a scale of its own."""
    torch.manual_seed(3)
    levels = factor.bit_length()
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * levels,
        decoder_block_out_channels=(8,) * levels,
        num_encoder_blocks=(1,) * levels,
        num_decoder_blocks=(1,) * levels,
        latent_channels=channels,
        scaling_factor=0.7,
    )


def pixels_of(pipeline: Any, image: Image.Image) -> Tensor:
    return pipeline.image_processor.preprocess([image], height=SIZE[0], width=SIZE[1])


@pytest.mark.parametrize("name", BUILDERS)
def test_a_tiny_autoencoder_in_every_family(name: str, image: Make) -> None:
    pipeline = BUILDERS[name]()
    backbone = Backbone(pipeline)
    channels = pipeline.vae.config.get("latent_channels") or pipeline.vae.config.z_dim
    pipeline.vae = tiny(backbone.vae_scale_factor, channels)
    if name in ("wan", "cosmos2", "qwen_image", "krea2", "flux2", "flux2_klein"):
        # Their own pipelines cannot decode with it: it lacks the statistics that latents are scaled by.
        with pytest.raises(GocaError, match=r"AutoencoderTiny .it has no (latents_mean|bn).* pipe\.vae"):
            Segmenter.from_pipeline(pipeline)
        return
    with torch.no_grad():
        encoded = retrieve_latents(pipeline.vae.encode(pixels_of(pipeline, image())))
    latents = Backbone(pipeline).latents([image()], SIZE)
    torch.testing.assert_close(latents, encoded * 0.7)
    result = Segmenter.from_pipeline(pipeline, GOCA, size=64)(image(), classes=["cat", "grass"])
    assert result.scores.grid.max() == 1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_latents_are_those_of_img2img(kind: str, sd15: Any, image: Make) -> None:
    sd15.vae = KINDS[kind]()
    encoded = retrieve_latents(sd15.vae.encode(pixels_of(sd15, image())), sample_mode="argmax")
    if kind == "kl with statistics":
        mean, std = (
            torch.tensor(getattr(sd15.vae.config, f"latents_{name}")).view(1, 4, 1, 1) for name in ("mean", "std")
        )
        encoded = (encoded - mean) / std
    latents = Backbone(sd15).latents([image()], SIZE)
    torch.testing.assert_close(latents, encoded * sd15.vae.config.scaling_factor)


def test_flux_shifts_the_latents_of_any_autoencoder(image: Make) -> None:
    flux = BUILDERS["flux"]()
    flux.vae = tiny(2, 4)
    flux.vae.register_to_config(shift_factor=0.3)
    img2img = diffusers.FluxImg2ImgPipeline(**flux.components)
    with torch.no_grad():
        expected = img2img._encode_vae_image(pixels_of(flux, image()), torch.Generator())
    torch.testing.assert_close(Backbone(flux).latents([image()], SIZE), expected)


def test_a_tiled_and_sliced_autoencoder(sd15: Any, image: Make) -> None:
    expected = Backbone(sd15).latents([image(), image(seed=1)], SIZE)
    sd15.vae.enable_slicing()
    torch.testing.assert_close(Backbone(sd15).latents([image(), image(seed=1)], SIZE), expected)


class Other(nn.Module):
    """An autoencoder of a kind that nobody has listed."""

    def __init__(self, answer: Callable[[Tensor], Any], **config: Any) -> None:
        super().__init__()
        self.encoder, self.answer = nn.Conv2d(3, 4, 2, 2), answer
        self.config = FrozenDict(config)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def encode(self, pixels: Tensor) -> Any:
        return self.answer(self.encoder(pixels))


def failing(latent: Tensor) -> Any:
    raise TypeError("encode() wants\na second argument")


@pytest.mark.parametrize(
    ("vae", "reason"),
    [
        (Other(lambda latent: SimpleNamespace(codes=latent), latent_channels=4), "SimpleNamespace is not one latent"),
        (Other(lambda latent: SimpleNamespace(latents=latent[0]), latent_channels=4), "is not one latent"),
        (Other(failing, latent_channels=4), "TypeError: encode.. wants a second"),
        (
            Other(lambda latent: SimpleNamespace(latents=latent[..., ::2]), latent_channels=4),
            "32 x 24 cells .* 32 x 48",
        ),
        (Other(lambda latent: SimpleNamespace(latents=latent)), "no latent_channels"),
        (Other(lambda latent: SimpleNamespace(latents=latent), latent_channels=7), "VAE .Other. gives 7"),
    ],
)
def test_an_autoencoder_that_cannot_be_encoded_with_is_named(vae: Any, reason: str, sd15: Any, image: Make) -> None:
    object.__setattr__(sd15, "vae", vae)
    with pytest.raises(GocaError, match=reason) as caught:
        Backbone(sd15).latents([image()], SIZE)
    assert "Other" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_memory_that_runs_out_while_encoding_is_not_the_autoencoder_s_kind(sd15: Any, image: Make) -> None:
    def exhausted(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    sd15.vae.encoder.register_forward_pre_hook(exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        Backbone(sd15).latents([image()], SIZE)
