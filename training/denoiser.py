"""What the stages of the three denoisers share: latents computed once, captions, held-out losses."""

import functools
from abc import ABC, abstractmethod
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from goca import bundled

from . import scenes
from .captions import caption
from .loop import DEVICE, autocast, snapshot
from .vae import encode, to_tensor

UNCONDITIONAL = 0.1  # share of empty captions, for classifier-free guidance
EVALUATED = 200  # held-out scenes


class DenoiserTask(ABC):
    """Denoising with captions; on held-out scenes, with and without them.

    A level is the amount of noise, from 0 (none) to 1 (only noise).
    """

    size = scenes.SIZE  # of the images it learns from
    model: nn.Module

    def __init__(self, work: Path, batch: int):
        self.batch = batch
        _, self.contents = scenes.read(work / "scenes/train")
        self.latents = np.load(latents_file(work, self.size), mmap_mode="r")
        images, contents = scenes.read(work / "scenes/held-out", self.size)
        # Fixed scenes, wordings, noise and noise levels, so that losses can be compared over time.
        rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
        self.captions = [caption(content, rng) for content in contents[:EVALUATED]]
        self.clean = encode(load_vae(work, self.size), to_tensor(images[:EVALUATED]))
        self.noise = torch.randn(self.clean.shape, generator=generator).to(DEVICE)
        self.levels = torch.linspace(0.02, 0.98, len(self.captions))

    @abstractmethod
    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents with noise at `levels` [n], what the model has to predict of them, and its timesteps [n]."""

    @abstractmethod
    def predict(
        self, denoiser: nn.Module, noisy: Tensor, times: Tensor, captions: list[str], rng: np.random.Generator | None
    ) -> Tensor:
        """The prediction for noisy latents; `rng` is none on held-out scenes."""

    def denoiser(self, model: nn.Module) -> nn.Module:
        """The part of the model that goes into the pipeline."""
        return model

    def spread(self, uniform: Tensor) -> Tensor:
        """The noise levels of a batch, from numbers that are uniform in 0 to 1."""
        return uniform

    def errors(
        self,
        denoiser: nn.Module,
        clean: Tensor,
        noise: Tensor,
        levels: Tensor,
        captions: list[str],
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        """Squared error of the prediction, one number per image."""
        noisy, wanted, times = self.noised(clean, noise, levels.to(DEVICE))
        with autocast():
            predicted = self.predict(denoiser, noisy, times, captions, rng)
        return (predicted.float() - wanted).pow(2).mean((1, 2, 3))

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        """Which training scenes make up a batch, and their captions."""
        chosen = np.sort(rng.integers(len(self.latents), size=self.batch))
        return chosen, ["" if rng.random() < UNCONDITIONAL else caption(self.contents[i], rng) for i in chosen]

    def denoising(
        self, chosen: np.ndarray, captions: list[str], rng: np.random.Generator, generator: torch.Generator
    ) -> Tensor:
        """The mean error of a batch."""
        clean = torch.from_numpy(self.latents[chosen]).to(DEVICE).float()
        noise = torch.randn(clean.shape, generator=generator).to(DEVICE)
        # One level in each of `batch` equal intervals: a fair share of all noise levels in every step.
        uniform = torch.randperm(self.batch, generator=generator) + torch.rand(self.batch, generator=generator)
        levels = self.spread(uniform / self.batch)
        return self.errors(self.denoiser(self.model), clean, noise, levels, captions, rng).mean()

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        chosen, captions = self.draw(rng)
        return {"loss": self.denoising(chosen, captions, rng, generator)}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.held_out_losses(self.denoiser(model))

    def held_out_losses(self, denoiser: nn.Module) -> dict[str, float]:
        """Mean loss with the scenes' captions, with empty ones, and with those of other scenes."""
        wordings = {
            "captioned": self.captions,
            "uncaptioned": [""] * len(self.captions),
            "miscaptioned": self.captions[1:] + self.captions[:1],
        }
        return {name: self._mean_loss(denoiser, captions) for name, captions in wordings.items()}

    @torch.no_grad()
    def _mean_loss(self, denoiser: nn.Module, captions: list[str]) -> float:
        parts = [slice(first, first + 50) for first in range(0, len(self.captions), 50)]
        errors = [
            self.errors(denoiser, self.clean[part], self.noise[part], self.levels[part], captions[part])
            for part in parts
        ]
        return torch.cat(errors).mean().item()

    def save(self, model: nn.Module, folder: Path) -> None:
        self.denoiser(model).save_pretrained(folder)


def load_vae(work: Path, size: int = scenes.SIZE) -> AutoencoderKL:
    """The finished autoencoder, frozen: the work folder's, or else the one that ships; also for the
    canvas's size, though it saw images of half of it.
    """
    trained = snapshot(work / "vae")
    folder = trained if size == scenes.SIZE and trained.exists() else bundled.pipeline() / "vae"
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    return vae.to(DEVICE).eval().requires_grad_(False)


def latents_file(work: Path, size: int) -> Path:
    """The file of the latents of the training scenes: [image, channel, height, width] float16."""
    return work / f"latents-{size}.npy"


def write_latents(work: Path, size: int, processes: int = 2, chunk: int = 1000) -> None:
    """Encode every training image once, unless that is done."""
    if latents_file(work, size).exists():
        return
    images, _ = scenes.read(work / "scenes/train", size)
    ranges = [range(first, min(first + chunk, len(images))) for first in range(0, len(images), chunk)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        latents = np.concatenate(list(pool.map(functools.partial(_encode_range, work, size), ranges)))
    partial = work / "latents.partial.npy"
    np.save(partial, latents)
    partial.rename(latents_file(work, size))


def _encode_range(work: Path, size: int, indices: range) -> np.ndarray:
    torch.set_num_threads(1)
    images, _ = scenes.read(work / "scenes/train", size)
    return encode(load_vae(work, size), to_tensor(images[indices.start : indices.stop])).half().cpu().numpy()
