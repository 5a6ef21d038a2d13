"""The noise level of the one denoiser pass."""

from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from goca.errors import GocaError


def add_noise(
    scheduler: Any, latents: Float[Tensor, "picture channel height width"], level: int, seed: int
) -> Float[Tensor, "picture channel height width"]:
    """sqrt(a) x + sqrt(1 - a) n with a = alphas_cumprod[level]: what any epsilon or v sampler's scaled input amounts
    to.

    Every picture gets the noise of `seed`, so that a result does not depend on what shares its batch. Raises GocaError
    for a level outside the scheduler's training timesteps.
    """
    steps = len(scheduler.alphas_cumprod)
    if not 0 <= level < steps:
        raise GocaError(f"noise {level} is out of range: this model was trained on timesteps 0 to {steps - 1}")
    kept = scheduler.alphas_cumprod[level].to(latents)
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    noise = noise.to(latents)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def pinned(scheduler: Any, level: int) -> Any:
    """A copy of the scheduler whose only timestep, whatever it is asked for, is `level`."""

    class Pinned(type(scheduler)):  # type: ignore[misc]
        def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **unused: Any) -> None:
            self.timesteps = torch.tensor([level], device=device)
            self.num_inference_steps = 1

        def scale_model_input(self, sample: Tensor, *unused: Any) -> Tensor:
            return sample

    out = copy(scheduler)
    out.__class__ = Pinned
    return out
