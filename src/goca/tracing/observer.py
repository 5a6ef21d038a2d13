"""The observer of a trace: sums the attention of the prompts' own rows, image by image."""

import warnings
from collections.abc import Container
from dataclasses import replace
from itertools import chain

from torch import Tensor

from goca.aggregation import AttentionAggregator
from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.denoiser_call import DenoiserCall, PromptTokens
from goca.errors import GocaError
from goca.plan import Plan
from goca.tracing.image import TracedImage
from goca.tracing.keep import Keep
from goca.tracing.steps import PlanFor, TracedAttention


class TraceObserver:
    """Collects the attention of the "cond" rows, and of the "uncond" rows if requested; predictions are not changed.

    Attributes:
        last_step: The last sampling step that was reached, traced or not.
        failures: {generation: why it is not traced}.
    """

    def __init__(
        self,
        plan: Plan,
        plan_for: PlanFor,
        vae_scale_factor: int,
        steps: Container[int] | None,
        keep: Keep | None = None,
    ) -> None:
        """Prepare a trace of some sampling steps, None for all, that keeps its sums and what `keep` says."""
        self.last_step: int | None = None
        self.failures: dict[int, str] = {}
        self._generations: dict[int, list[TracedImage]] = {}
        self._plan, self._plan_for, self._steps = plan, plan_for, steps
        self._keep = keep or Keep.of((), None, ())
        self._vae_scale_factor = vae_scale_factor
        self._begun: tuple[DenoiserCall, dict[int, list[tuple[TracedAttention, AttentionAggregator]]]] | None = None

    def begin(self, call: DenoiserCall) -> Sink | None:
        """Start an aggregator for each row of a prompt that is kept, if the step is wanted."""
        if self._begun is not None:
            self._drop(self._begun[0])
        if call.rows_of("cond"):
            self.last_step = call.step
        if call.generation in self.failures or (self._steps is not None and call.step not in self._steps):
            return None
        taken = {
            row: [(part, part.aggregator()) for part in (attention, *attention.references)]
            for row, attention in self._attentions(call).items()
        }
        if not taken:
            return None
        self._begun = call, taken

        def take(row: int, call: AttentionCall) -> None:
            if call.reference < len(taken.get(row, ())):
                attention, aggregator = taken[row][call.reference]
                aggregator.add(call)
                if attention.layer_maps is not None:
                    attention.layer_maps.add(call)

        return take

    def _attentions(self, call: DenoiserCall) -> dict[int, TracedAttention]:
        """{row: the collected attention to which it belongs}."""
        cond = call.rows_of("cond")
        if cond and call.generation not in self._generations:
            made = [self._attention(row.prompt, call) for row in cond.values() if row.prompt is not None]
            for attention in made if self._keep.references else ():
                beside = [replace(call, latent_size=size) for size in call.references]
                attention.references = [self._attention(attention.prompt, reference) for reference in beside]
            self._generations[call.generation] = [TracedImage(attention) for attention in made]
        images = [image.attention for image in self._generations.get(call.generation, [])]
        taken = dict(zip(cond, images, strict=True)) if cond else {}
        if self._keep.negative:
            for number, (row, prompt) in call.images_of("uncond").items():
                if number < len(images) and prompt.texts:
                    negative = images[number].negative or self._attention(prompt, call)
                    taken[row] = images[number].negative = negative
        return taken

    def _attention(self, prompt: PromptTokens, call: DenoiserCall) -> TracedAttention:
        """An empty collection for an image or a video of a call's size."""
        height, width = (side * self._vae_scale_factor for side in call.latent_size)
        grid = self._plan.common_grid(call.latent_size)
        if call.frame_grid is not None:  # the patches' grid, so that resizing does not mix frames
            grid = call.frames * call.frame_grid[0], call.frame_grid[1]
        return TracedAttention(self._plan, self._plan_for, prompt, (height, width), grid, call.frames, self._keep)

    def end(self, call: DenoiserCall, noise_pred: Tensor) -> None:
        """Add the aggregators' sums; warn if that fails, as the image is still generated."""
        if self._begun is None:
            return
        _, taken = self._begun
        try:
            for attention, aggregator in chain.from_iterable(taken.values()):
                attention.add(aggregator, call)
        except GocaError as error:
            self.failures[call.generation] = str(error)
            warnings.warn(f"this call is not traced: {error}", stacklevel=2)
            self._drop(call)
        self._begun = None

    @property
    def generations(self) -> dict[int, list[TracedImage]]:
        """{generation: its images}; empty for a call that failed, as only half of it was collected."""
        unfinished = None if self._begun is None else self._begun[0].generation
        return {generation: images for generation, images in self._generations.items() if generation != unfinished}

    def _drop(self, call: DenoiserCall) -> None:
        del self._generations[call.generation]
        self._begun = None
