"""The hearer of a listener: sends the attention of each chosen step to readouts, and sums up what they say."""

import warnings
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from PIL import Image

from goca.aggregation import AttentionAggregator
from goca.diffusion.attention_call import Sink
from goca.diffusion.denoiser_call import DenoiserCall
from goca.errors import GocaError
from goca.plan import Plan
from goca.tracing.collected import Collected, Planner
from goca.tracing.image import TracedImage


@dataclass
class Collector:
    """steps: those of the sampler to collect, None for all. vae_scale_factor: pixels a side of a latent's cell."""

    planner: Planner
    plan: Plan
    vae_scale_factor: int
    steps: Container[int] | None
    generations: dict[int, list[TracedImage]] = field(default_factory=dict)
    _readouts: list[AttentionAggregator] = field(default_factory=list)
    _last: int | None = None
    _missed: bool = False
    _failed: dict[int, str] = field(default_factory=dict)

    @property
    def images(self) -> tuple[TracedImage, ...]:
        """Those of which a step was read."""
        return tuple(one for images in self.generations.values() for one in images if one.steps)

    def misses(self) -> None:
        """Remembered for `reason`."""
        self._missed = True

    def starts(self, one: DenoiserCall) -> Sink | None:
        """A readout for each image, where the step is wanted."""
        self._last = one.step
        if one.generation in self._failed or (self.steps is not None and one.step not in self.steps):
            return None
        if one.generation not in self.generations:
            self.generations[one.generation] = [
                TracedImage(Collected.of(self.plan, self.planner, said, one.latent, self.vae_scale_factor))
                for said in one.prompts
            ]
        self._readouts = readouts = [image.collected.readout() for image in self.generations[one.generation]]
        return lambda image, call: readouts[image].add(call)

    def ends(self, one: DenoiserCall) -> None:
        """Add what the readouts say to what there was; where they cannot, warn: the image itself is still made."""
        readouts, self._readouts = self._readouts, []
        try:
            for image, readout in zip(self.generations[one.generation], readouts, strict=True):
                image.collected.take(readout, one)
        except GocaError as error:
            self.breaks(one)
            self._failed[one.generation] = str(error)
            warnings.warn(f"nothing is traced of this call: {error}", stacklevel=2)

    def breaks(self, one: DenoiserCall) -> None:
        """Forget the images of a generation that failed: half a step is in them."""
        self._readouts = []
        del self.generations[one.generation]

    def shows(self, generation: int, images: Sequence[Image.Image]) -> None:
        """The images themselves, where the pipeline decoded one for each latent."""
        traced = self.generations.get(generation, [])
        if len(images) == len(traced):
            for traced_image, image in zip(traced, images, strict=True):
                traced_image.image = image.convert("RGB")

    def reason(self) -> str:
        """Why there is no image."""
        if self._failed:
            return next(iter(self._failed.values()))
        if self._last is not None and self.steps is not None:
            return (
                f"none of the steps asked for came: the sampler made {self._last + 1}, numbered 0 to {self._last}; "
                "choose from them"
            )
        if self._last is None and self._missed:
            return (
                "nothing was traced: the denoiser ran, but attended to no prompt that was encoded inside the "
                "`with trace(pipe)` block; pass the pipeline its prompt as text"
            )
        return "nothing was traced: call the pipeline, with a prompt as text, inside the `with trace(pipe)` block"
