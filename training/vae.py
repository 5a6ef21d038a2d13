"""Stage vae: a factor-4 AutoencoderKL, 64 px images to 6 x 16 x 16 latents.

At the end the latents' mean and deviation are folded into the two 1 x 1 convolutions around the latent
space, so that latents are centred, each channel has deviation 1, and `scaling_factor` is 1.

    python -m training.vae [--work FOLDER] [--steps N] [--resume]
"""

import copy
import functools
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from torch import Tensor, nn

from . import scenes
from .commands import make_plan, training_command
from .loop import DEVICE, autocast, train

LATENT_CHANNELS = 6
EVALUATED, CALIBRATED = 200, 1000  # images that the PSNR and the folding look at


def build() -> AutoencoderKL:
    """A fresh autoencoder whose residual branches start at zero: it trains much faster so."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=16,
        sample_size=scenes.SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    return vae


def to_tensor(images: np.ndarray) -> Tensor:
    """Images [n, h, w, 3] uint8 as [n, 3, h, w] float in -1 to 1."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(DEVICE).float().div(127.5).sub(1)


def to_images(tensor: Tensor) -> np.ndarray:
    """The inverse of `to_tensor`, clamped."""
    return tensor.float().add(1).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


class VaeTask:
    """Reconstruction: absolute, squared and gradient error, and a light pull of the latents to normality."""

    def __init__(self, work: Path, batch: int):
        self.model = build()
        self.batch = batch
        self.images, _ = scenes.read(work / "scenes/train")
        self.held_out, _ = scenes.read(work / "scenes/held-out")

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        wanted = to_tensor(self.images[np.sort(rng.integers(len(self.images), size=self.batch))])
        with autocast():
            latent = self.model.encode(wanted).latent_dist
            got = self.model.decode(latent.sample(generator)).sample
        got, mean, log_variance = got.float(), latent.mean.float(), latent.logvar.float()
        error = got - wanted
        edges = (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()) * 0.25
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean()
        squared = error.pow(2).mean()
        loss = 0.5 * error.abs().mean() + squared + edges + 2e-4 * divergence / wanted[0].numel()
        return {"loss": loss, "psnr": psnr(squared.detach())}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        wanted = to_tensor(self.held_out[:EVALUATED])
        error = reconstruct(model, wanted).clamp(-1, 1) - wanted
        return {"held_out_psnr": psnr(error.pow(2).mean((1, 2, 3))).mean().item()}

    def save(self, model: nn.Module, folder: Path) -> None:
        model = copy.deepcopy(model)  # training goes on with latents as they are
        fold_latent_scale(model, to_tensor(self.images[:CALIBRATED]))
        model.save_pretrained(folder)
        examples = to_tensor(self.held_out[:16])
        pairs = np.concatenate([to_images(examples), to_images(reconstruct(model, examples))], axis=1)
        Image.fromarray(np.concatenate(list(pairs), axis=1)).save(folder / "reconstructions.png")


def psnr(squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, of images that range from -1 to 1."""
    return 10 * torch.log10(4 / squared_error)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, batch: int = 100) -> Tensor:
    """The latents' means, batch by batch."""
    with autocast():
        return torch.cat([vae.encode(part).latent_dist.mean.float() for part in images.split(batch)])


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """There and back again, by the latents' means, in float32."""
    return torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in images.split(50)])


@torch.no_grad()
def fold_latent_scale(vae: AutoencoderKL, images: Tensor) -> None:
    """Change `vae` in place: latents of `images` get mean 0 and deviation 1; what it decodes stays."""
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(100)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    into, out_of = vae.quant_conv, vae.post_quant_conv
    means, log_variances = slice(0, LATENT_CHANNELS), slice(LATENT_CHANNELS, None)
    into.weight[means] /= deviation[:, None, None, None]
    into.bias[means] = (into.bias[means] - mean) / deviation
    into.bias[log_variances] -= 2 * deviation.log()
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= deviation[None, :, None, None]


def main() -> None:
    arguments = training_command(__doc__, steps=1900, batch=8).parse_args()
    plan = make_plan(arguments, "vae", rate=1.2e-3, fall=0.6, average=0.99)
    train(plan, functools.partial(VaeTask, arguments.work, arguments.batch))


if __name__ == "__main__":
    main()
