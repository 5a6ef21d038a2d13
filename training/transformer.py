"""What the two transformers' stages share: images of 128 px, noise levels, and alignment with the namer's tower.

Beside denoising, the tokens of a middle block predict, through a small network that is thrown away afterwards,
the features of the namer's tower for the clean image at their places ("REPA", Yu et al. 2024): transformers learn
several times faster this way.
"""

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from . import namer, scenes
from .denoiser import DenoiserTask, write_latents
from .loop import DEVICE, autocast
from .text_encoders import text_encoder

SIDE = scenes.CANVAS // 8  # tokens, each of 2 x 2 latent cells of 4 pixels
ALIGNMENT = 0.5  # weight beside the denoising loss
HIDDEN = 256  # width of the network that predicts the tower's features
UNIFORM = 0.2  # share of noise levels that are uniform; the others are logit-normal (Esser et al. 2024)
CALIBRATED = 2000  # scenes whose features say what is usual


class Aligned(nn.Module):
    """A denoiser with the network that predicts the tower's features from its tokens."""

    def __init__(self, denoiser: nn.Module, width: int):
        super().__init__()
        self.denoiser = denoiser
        features = sum(namer.CHANNELS[-2:])
        self.projector = nn.Sequential(nn.Linear(width, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, features))


class TransformerTask(DenoiserTask):
    """Denoising, and alignment of the tokens after block `aligned_block`."""

    size = scenes.CANVAS
    aligned_block: ClassVar[str]
    model: Aligned

    def __init__(self, work: Path, batch: int, start: Path | None = None):
        super().__init__(work, batch)
        self.model = Aligned(*self.build())
        if start is not None:
            self.model.denoiser.load_state_dict(load_file(start / "diffusion_pytorch_model.safetensors"))
        self.text, self.tokenizer = text_encoder(work, "t5")
        levels = [np.load(work / "namer" / name, mmap_mode="r") for name in (namer.FINE, namer.COARSE)]
        self.features = [(grids, *_usual(grids[:CALIBRATED])) for grids in levels]

    def denoiser(self, model: Aligned) -> nn.Module:
        return model.denoiser

    @abstractmethod
    def build(self) -> tuple[nn.Module, int]:
        """A fresh denoiser and the width of its tokens."""

    @abstractmethod
    def tokens(self, output: object) -> Tensor:
        """The image's tokens [n, token, width] in the output of the aligned block."""

    def spread(self, uniform: Tensor) -> Tensor:
        logit_normal = torch.special.ndtri(((uniform - UNIFORM) / (1 - UNIFORM)).clamp(1e-4, 1 - 1e-4)).sigmoid()
        return torch.where(uniform < UNIFORM, uniform / UNIFORM, logit_normal)

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        kept: list[object] = []
        block = self.model.denoiser.get_submodule(self.aligned_block)
        hook = block.register_forward_hook(lambda module, inputs, output: kept.append(output))
        chosen, captions = self.draw(rng)
        denoising = self.denoising(chosen, captions, rng, generator)
        hook.remove()
        with autocast():
            predicted = self.model.projector(self.tokens(kept.pop()))
        alignment = self.misalignment(predicted.float(), chosen)
        return {
            "loss": denoising + ALIGNMENT * alignment,
            "denoising": denoising.detach(),
            "alignment": alignment.detach(),
        }

    def misalignment(self, predicted: Tensor, chosen: np.ndarray) -> Tensor:
        """One minus the cosine between the tokens' predictions and the tower's features, mean of its two grids."""
        places = predicted.transpose(1, 2).unflatten(2, (SIDE, SIDE))
        distances = []
        for part, (grids, mean, deviation) in zip(places.split(namer.CHANNELS[-2:], dim=1), self.features, strict=True):
            wanted = (torch.from_numpy(grids[chosen]).to(DEVICE).float() - mean) / deviation
            wanted = F.interpolate(wanted, size=(SIDE, SIDE), mode="bilinear")
            distances.append(1 - F.cosine_similarity(part, wanted, dim=1).mean())
        return torch.stack(distances).mean()


def prepare(work: Path) -> None:
    """Latents and the tower's features of every training scene, unless they exist."""
    write_latents(work, TransformerTask.size)
    if not (work / "namer" / namer.COARSE).exists():
        namer.write_grids(work)


def _usual(grids: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel [channel, 1, 1]."""
    values = torch.from_numpy(grids.astype(np.float32)).to(DEVICE)
    return values.mean((0, 2, 3))[:, None, None], values.std((0, 2, 3))[:, None, None]
