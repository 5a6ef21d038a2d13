"""The timestep of the one denoiser pass.

Timesteps are training timesteps, 0 to 999. To a flow model, whose noise is a share from 0 to 1, they are thousandths.
"""

import inspect
from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from goca.errors import GocaError

NUM_TRAIN_TIMESTEPS = 1000


def is_flow(scheduler: Any) -> bool:
    """Whether the model was trained on straight lines between image and noise."""
    asked = getattr(scheduler.config, "prediction_type", None)
    return "FlowMatch" in type(scheduler).__name__ or asked == "flow_prediction"


def add_noise(
    scheduler: Any, latents: Float[Tensor, "image channel height width"], timestep: int, seed: int
) -> Float[Tensor, "image channel height width"]:
    """sqrt(a) x + sqrt(1 - a) n with a = alphas_cumprod[timestep]: what any epsilon or v sampler's scaled input amounts
    to. For a flow model (1 - s) x + s n, with s = timestep / 1000.

    Every image gets the noise of `seed`, so that a result does not depend on what shares its batch. Raises GocaError
    for a timestep outside the scheduler's training timesteps.
    """
    steps = NUM_TRAIN_TIMESTEPS if is_flow(scheduler) else len(scheduler.alphas_cumprod)
    if not 0 <= timestep < steps:
        raise GocaError(f"noise {timestep} is out of range: this model was trained on timesteps 0 to {steps - 1}")
    noise = _noise(latents, seed)
    if is_flow(scheduler):
        return (1 - timestep / NUM_TRAIN_TIMESTEPS) * latents + timestep / NUM_TRAIN_TIMESTEPS * noise
    kept = scheduler.alphas_cumprod[timestep].to(latents)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def target(
    scheduler: Any, latents: Float[Tensor, "image channel height width"], timestep: int, seed: int
) -> Float[Tensor, "image channel height width"]:
    """What a denoiser without fault would say of `add_noise`'s result: the noise, the velocity, or the image.

    Some flow models give the velocity from noise to image, which is this one's negative.
    """
    noise = _noise(latents, seed).expand_as(latents)
    if is_flow(scheduler):
        return noise - latents
    kept = scheduler.alphas_cumprod[timestep].to(latents)
    kinds = {
        "epsilon": noise,
        "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * latents,
        "sample": latents,
    }
    asked = scheduler.config.prediction_type
    if asked not in kinds:
        raise GocaError(f'a model that predicts "{asked}" is not supported: there are {", ".join(kinds)}')
    return kinds[asked]


def _noise(latents: Float[Tensor, "image channel height width"], seed: int) -> Float[Tensor, "channel height width"]:
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return noise.to(latents)


def pinned(scheduler: Any, timestep: int, edm_sigmas: bool = False) -> Any:
    """A scheduler like this one whose only timestep, whatever it is asked for, is `timestep`.

    edm_sigmas: it counts noise against the image.
    """
    return _pinned_flow(scheduler, timestep, edm_sigmas) if is_flow(scheduler) else _pinned(scheduler, timestep)


def _pinned(scheduler: Any, timestep: int) -> Any:
    class Pinned(type(scheduler)):  # type: ignore[misc]
        def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **unused: Any) -> None:
            self.timesteps = torch.tensor([timestep], device=device)
            self.num_inference_steps = 1

        def scale_model_input(self, sample: Tensor, *unused: Any) -> Tensor:
            return sample

    out = copy(scheduler)
    out.__class__ = Pinned
    return out


def _pinned_flow(scheduler: Any, timestep: int, edm_sigmas: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    share = timestep / NUM_TRAIN_TIMESTEPS

    class Pinned(FlowMatchEulerDiscreteScheduler):
        # Pipelines look at the signature before they hand over sigmas of their own or a shift.
        def set_timesteps(
            self,
            num_inference_steps: int | None = None,
            device: Any = None,
            sigmas: Any = None,
            mu: float | None = None,
            timesteps: Any = None,
        ) -> None:
            self.sigmas = torch.tensor([share / (1 - share) if edm_sigmas else share, 0.0], device=device)
            self.timesteps = torch.tensor([share], device=device) * self.config.num_train_timesteps
            self.num_inference_steps = 1
            self._step_index = self._begin_index = None

        def scale_model_input(self, sample: Tensor, *unused: Any) -> Tensor:
            # Bria's pipeline asks for it of anything but the very class.
            return sample

    known = inspect.signature(FlowMatchEulerDiscreteScheduler.__init__).parameters
    out = Pinned(**{name: value for name, value in scheduler.config.items() if name in known})
    # Cosmos writes more into its scheduler's configuration, and reads it there.
    out.register_to_config(**{name: value for name, value in scheduler.config.items() if name not in known})
    return out
