"""Stage unet: the denoiser, laid out as Stable Diffusion 2's is, on latents computed once and a frozen text
encoder.

Two layers a block, more heads on coarser levels, cross-attention on every level but the deepest, and in the
middle: 11 cross-attentions of 4 or 8 heads on three grids. The loss is the squared error of the velocity at
a random noise level.

    python -m training.unet [--work FOLDER] [--steps N] [--resume]
"""

import functools
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from . import clip, scenes
from .captions import caption
from .commands import make_plan, training_command
from .loop import snapshot, train
from .vae import LATENT_CHANNELS, encode, to_tensor

GRID = scenes.SIZE // 4
UNCONDITIONAL = 0.1  # share of empty captions, for classifier-free guidance
EVALUATED = 200  # held-out scenes
LATENTS = "latents.npy"


def build() -> UNet2DConditionModel:
    """A fresh UNet. In its configuration, as in SD 2's, `attention_head_dim` is the number of heads."""
    return UNet2DConditionModel(
        sample_size=GRID,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 96, 112),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=clip.WIDTH,
        attention_head_dim=(4, 8, 8),
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise levels, with velocity as what is predicted."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


class UnetTask:
    """Denoising with captions; on held-out scenes, with and without them."""

    def __init__(self, work: Path, batch: int):
        self.model = build()
        # A head has 12 to 16 channels: plain products train 1.4 times faster here than fused attention.
        self.model.set_attn_processor(AttnProcessor())
        self.batch = batch
        self.scheduler = build_scheduler()
        self.clip, self.tokenizer = clip.load(work)
        _, self.contents = scenes.read(work / "scenes/train")
        self.latents = np.load(work / "unet" / LATENTS, mmap_mode="r")
        self.held_out = HeldOut(work, self)

    def condition(self, captions: list[str]) -> Tensor:
        """Captions as the denoiser sees them [n, 77, width]: padded with end tokens, nothing masked."""
        ids = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            return self.clip.text(ids).last_hidden_state

    def errors(
        self,
        model: nn.Module,
        clean: Tensor,
        noise: Tensor,
        times: Tensor,
        captions: list[str],
    ) -> Tensor:
        """Squared error of the predicted velocity, one number an image."""
        noisy = self.scheduler.add_noise(clean, noise, times)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model(noisy, times, self.condition(captions)).sample
        wanted = self.scheduler.get_velocity(clean, noise, times)
        return F.mse_loss(predicted.float(), wanted, reduction="none").mean((1, 2, 3))

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = np.sort(rng.integers(len(self.latents), size=self.batch))
        clean = torch.from_numpy(self.latents[chosen]).float()
        captions = ["" if rng.random() < UNCONDITIONAL else caption(self.contents[i], rng) for i in chosen]
        noise = torch.randn(clean.shape, generator=generator)
        # One time in each of `batch` equal intervals: a fair share of all noise levels in every step.
        spread = (
            torch.randperm(self.batch, generator=generator) + torch.rand(self.batch, generator=generator)
        ) / self.batch
        times = (spread * self.scheduler.config.num_train_timesteps).long()
        return {"loss": self.errors(self.model, clean, noise, times, captions).mean()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.held_out.losses(model)

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)


class HeldOut:
    """Fixed scenes, wordings, noise and noise levels, so that losses can be compared over time."""

    def __init__(self, work: Path, task: UnetTask):
        self.task = task
        images, contents = scenes.read(work / "scenes/held-out")
        rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        self.captions = [caption(content, rng) for content in contents[:EVALUATED]]
        self.clean = encode(load_vae(work), to_tensor(images[:EVALUATED]))
        self.timestep = torch.randn(self.clean.shape, generator=generator)
        self.times = torch.linspace(20, 980, len(self.captions)).long()

    @torch.no_grad()
    def losses(self, model: nn.Module) -> dict[str, float]:
        """Mean loss with the scenes' captions, with empty ones, and with those of other scenes."""
        wordings = {
            "captioned": self.captions,
            "uncaptioned": [""] * len(self.captions),
            "miscaptioned": self.captions[1:] + self.captions[:1],
        }
        return {name: self._mean_loss(model, captions) for name, captions in wordings.items()}

    def _mean_loss(self, model: nn.Module, captions: list[str]) -> float:
        parts = [slice(first, first + 50) for first in range(0, len(self.captions), 50)]
        errors = [
            self.task.errors(model, self.clean[part], self.timestep[part], self.times[part], captions[part])
            for part in parts
        ]
        return torch.cat(errors).mean().item()


def load_vae(work: Path) -> AutoencoderKL:
    """The finished autoencoder, frozen."""
    return AutoencoderKL.from_pretrained(snapshot(work / "vae")).eval().requires_grad_(False)


def write_latents(work: Path, processes: int = 2, chunk: int = 2000) -> None:
    """Encode every training image once: [image, channel, height, width] float16."""
    images, _ = scenes.read(work / "scenes/train")
    ranges = [range(first, min(first + chunk, len(images))) for first in range(0, len(images), chunk)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        latents = np.concatenate(list(pool.map(functools.partial(_encode_range, work), ranges)))
    (work / "unet").mkdir(exist_ok=True)
    np.save(work / "unet" / LATENTS, latents)


def _encode_range(work: Path, indices: range) -> np.ndarray:
    torch.set_num_threads(1)
    images, _ = scenes.read(work / "scenes/train")
    return encode(load_vae(work), to_tensor(images[indices.start : indices.stop])).half().numpy()


def main() -> None:
    arguments = training_command(__doc__, steps=9000, batch=12).parse_args()
    plan = make_plan(arguments, "unet", rate=9e-4, warm_up=150)
    if not (arguments.resume and (plan.folder / LATENTS).exists()):
        write_latents(arguments.work)
    train(plan, functools.partial(UnetTask, arguments.work, arguments.batch))


if __name__ == "__main__":
    main()
