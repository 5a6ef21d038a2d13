"""The observer of a trace: sums up the attention of the prompts' own rows, image by image."""

import warnings
from collections.abc import Container

from torch import Tensor

from goca.aggregation import AttentionAggregator
from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.denoiser_call import DenoiserCall
from goca.errors import GocaError
from goca.plan import Plan
from goca.tracing.image import TracedImage
from goca.tracing.steps import PlanFor, TracedAttention


class TraceObserver:
    """Collects the attention of the "cond" rows; the prediction is left as it is.

    Attributes:
        last_step: The last step of the sampler that was seen, traced or not.
        failures: {generation: why nothing is traced of it}.
    """

    def __init__(self, plan: Plan, plan_for: PlanFor, vae_scale_factor: int, steps: Container[int] | None) -> None:
        """Prepare a trace of some steps of the sampler, None for all."""
        self.last_step: int | None = None
        self.failures: dict[int, str] = {}
        self._generations: dict[int, list[TracedImage]] = {}
        self._plan, self._plan_for, self._steps = plan, plan_for, steps
        self._vae_scale_factor = vae_scale_factor
        self._begun: tuple[DenoiserCall, dict[int, AttentionAggregator]] | None = None

    def begin(self, call: DenoiserCall) -> Sink | None:
        """An aggregator for each row of a prompt, where the step is wanted."""
        if self._begun is not None:
            self._drop(self._begun[0])
        rows = call.rows_of("cond")
        if not rows:
            return None
        self.last_step = call.step
        if call.generation in self.failures or (self._steps is not None and call.step not in self._steps):
            return None
        if call.generation not in self._generations:
            height, width = (side * self._vae_scale_factor for side in call.latent_size)
            self._generations[call.generation] = [
                TracedImage(TracedAttention(self._plan, self._plan_for, row.prompt, (height, width), call.latent_size))
                for row in rows.values()
                if row.prompt is not None
            ]
        images = self._generations[call.generation]
        aggregators = {index: image.attention.aggregator() for index, image in zip(rows, images, strict=True)}
        self._begun = call, aggregators

        def take(row: int, attention: AttentionCall) -> None:
            if row in aggregators:
                aggregators[row].add(attention)

        return take

    def end(self, call: DenoiserCall, noise_pred: Tensor) -> None:
        """Add what the aggregators have seen; where they cannot be summed up, warn: the image itself is still made."""
        if self._begun is None:
            return
        _, aggregators = self._begun
        try:
            for image, aggregator in zip(self._generations[call.generation], aggregators.values(), strict=True):
                image.attention.add(aggregator, call)
        except GocaError as error:
            self.failures[call.generation] = str(error)
            warnings.warn(f"nothing is traced of this call: {error}", stacklevel=2)
            self._drop(call)
        self._begun = None

    @property
    def generations(self) -> dict[int, list[TracedImage]]:
        """{generation: its images}; none where the last call failed, for half of it is in them."""
        unfinished = None if self._begun is None else self._begun[0].generation
        return {generation: images for generation, images in self._generations.items() if generation != unfinished}

    def _drop(self, call: DenoiserCall) -> None:
        del self._generations[call.generation]
        self._begun = None
