"""The timestep of a denoiser pass: adding its noise, and schedulers with that timestep only.

Timesteps are training timesteps, 0 to 999; for a flow model, whose sigma goes from 0 to 1, thousandths of sigma.
"""

from copy import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from goca.errors import GocaError
from goca.maths.resize import constant

NUM_TRAIN_TIMESTEPS = 1000


def is_flow(scheduler: Any) -> bool:
    """Whether the model was trained on straight lines between image and noise."""
    prediction = getattr(scheduler.config, "prediction_type", None)
    return "FlowMatch" in type(scheduler).__name__ or prediction == "flow_prediction"


def add_noise(
    scheduler: Any, latents: Float[Tensor, "image channel height width"], timestep: int, seed: int
) -> Float[Tensor, "image channel height width"]:
    """Latents with the noise of a timestep, as in any sampler's scaled input.

    sqrt(a) x + sqrt(1 - a) n with a = alphas_cumprod[timestep]; for a flow model (1 - s) x + s n with
    s = timestep / 1000. Every image gets the noise of `seed`, so that a result does not depend on its batch.

    Raises:
        GocaError: The timestep is outside the scheduler's training timesteps.
    """
    check_timestep(scheduler, timestep)
    noise = _noise(latents, seed)
    if is_flow(scheduler):
        return (1 - timestep / NUM_TRAIN_TIMESTEPS) * latents + timestep / NUM_TRAIN_TIMESTEPS * noise
    kept = scheduler.alphas_cumprod[timestep].to(
        "cpu", latents.dtype
    )  # on the CPU, so that no synchronisation is needed
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def check_timestep(scheduler: Any, timestep: int) -> None:
    """Raise GocaError for a timestep outside the scheduler's training timesteps."""
    steps = NUM_TRAIN_TIMESTEPS if is_flow(scheduler) else len(scheduler.alphas_cumprod)
    if not 0 <= timestep < steps:
        raise GocaError(
            f"timestep {timestep} is out of range: this model was trained on timesteps 0 to {steps - 1}",
            hint="timestep",
        )


def target(
    scheduler: Any, latents: Float[Tensor, "image channel height width"], timestep: int, seed: int
) -> Float[Tensor, "image channel height width"]:
    """What a perfect denoiser would predict from `add_noise`'s result: the noise, the velocity, or the image.

    Some flow models predict the velocity from noise to image, the negative of this one.

    Raises:
        GocaError: The scheduler's prediction type is unknown.
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
    prediction = scheduler.config.prediction_type
    if prediction not in kinds:
        raise GocaError(
            f'a model that predicts "{prediction}" is not supported: use one that predicts {", ".join(kinds)}'
        )
    return kinds[prediction]


def scales(scheduler: Any, timestep: int) -> tuple[float, float]:
    """(signal, noise): the factors of a latent and the noise in `add_noise`."""
    if is_flow(scheduler):
        return 1 - timestep / NUM_TRAIN_TIMESTEPS, timestep / NUM_TRAIN_TIMESTEPS
    kept = float(scheduler.alphas_cumprod[timestep])
    return kept**0.5, (1 - kept) ** 0.5


def timestep_at(scheduler: Any, level: float) -> int:
    """The timestep at which noise / (signal + noise), see `scales`, is closest to `level`, between 0 and 1."""
    steps = NUM_TRAIN_TIMESTEPS if is_flow(scheduler) else len(scheduler.alphas_cumprod)

    def distance(timestep: int) -> float:
        signal, noise = scales(scheduler, timestep)
        return abs(noise / (signal + noise) - level)

    return min(range(steps), key=distance)


def latent_error(scheduler: Any, timestep: int) -> float:
    """Factor from a squared error of the prediction, see `target`, to that of the clean latent."""
    signal, noise = scales(scheduler, timestep)
    if is_flow(scheduler):
        return noise**2
    return {"epsilon": (noise / signal) ** 2, "v_prediction": noise**2, "sample": 1.0}[scheduler.config.prediction_type]


def _noise(latents: Float[Tensor, "image channel height width"], seed: int) -> Float[Tensor, "channel height width"]:
    return _seeded(latents.shape[1:], seed, latents.device, latents.dtype)


@constant
def _seeded(
    shape: torch.Size, seed: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "channel height width"]:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return noise.to(device, dtype)


def pinned(scheduler: Any, timestep: int, edm_sigmas: bool = False) -> Any:
    """A scheduler like this one whose only timestep is `timestep`, whatever number of steps a pipeline sets.

    edm_sigmas: Whether its sigmas are EDM's, sigma / (1 - sigma).
    """
    return _pinned_flow(scheduler, timestep, edm_sigmas) if is_flow(scheduler) else _pinned(scheduler, timestep)


def _pinned(scheduler: Any, timestep: int) -> Any:
    class Pinned(type(scheduler)):  # type: ignore[misc]
        def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **unused: Any) -> None:
            self.timesteps = torch.full((1,), timestep, device=device)
            self.num_inference_steps = 1

        def scale_model_input(self, sample: Tensor, *unused: Any) -> Tensor:
            return sample

    out = copy(scheduler)
    out.__class__ = Pinned
    return out


def _pinned_flow(scheduler: Any, timestep: int, edm_sigmas: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    sigma = timestep / NUM_TRAIN_TIMESTEPS

    class Pinned(FlowMatchEulerDiscreteScheduler):
        # Pipelines inspect the signature before they pass their own sigmas or a shift.
        def set_timesteps(
            self,
            num_inference_steps: int | None = None,
            device: Any = None,
            sigmas: Any = None,
            mu: float | None = None,
            timesteps: Any = None,
        ) -> None:
            self.sigmas = torch.tensor([sigma / (1 - sigma) if edm_sigmas else sigma, 0.0], device=device)
            self.timesteps = torch.full((1,), sigma, device=device) * self.config.num_train_timesteps
            self.num_inference_steps = 1
            self._step_index = self._begin_index = None

        def scale_model_input(self, sample: Tensor, *unused: Any) -> Tensor:
            # Bria's pipeline calls it on every scheduler but FlowMatchEulerDiscreteScheduler itself.
            return sample

    # Its table of training timesteps is never used, and a configuration may ask for any length. Cosmos
    # stores more in its scheduler's configuration than a scheduler takes, and reads it from there.
    out = Pinned(num_train_timesteps=1)
    out.register_to_config(**scheduler.config)
    return out
