"""The observer that guides: it reads regions from attention, and returns a changed prediction."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, UInt16
from torch import Tensor

from goca.aggregation import AttentionAggregator
from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.denoiser_call import DenoiserCall
from goca.errors import GocaError
from goca.guidance.regions import Columns, Regions, Specials, column, column_names, start_column
from goca.maths import Grid
from goca.maths import guidance as maths
from goca.plan import Plan
from goca.recipe import Recipe
from goca.text.token_spans import NounTokens


@dataclass(frozen=True)
class GuidedStep:
    """The guidance of one evaluation, on the prediction's grid: 4 bytes per pixel, image and step.

    Attributes:
        generation: Number of the pipeline's call in the block, from 0.
        step: Step of the sampler, from 0.
        timestep: The scheduler's timestep.
        scale: The scale of the pipeline's guidance.
        rates: The factors by which it was multiplied.
        regions: The region at each pixel, as in `Guide.region_names`; None if the rate needs no regions.
        effective_scales: For each image <e - u, c - u> / |c - u|^2, the scale at which plain guidance is as strong.
    """

    generation: int
    step: int
    timestep: float
    scale: float
    rates: Float16[np.ndarray, "image height width"] = field(repr=False)
    regions: UInt16[np.ndarray, "image height width"] | None = field(repr=False)
    effective_scales: tuple[float, ...]


@dataclass(frozen=True)
class Settings:
    """The checked arguments of `guide`. recipe: None if no attention is read."""

    recipe: Recipe | None
    rate: float | None
    masks: tuple[Int[Tensor, "_high _wide"], ...]
    clamp: tuple[float, float] | None
    limit: float | None
    smooth: bool
    steps: frozenset[int] | None
    every: int


@dataclass
class _Generation:
    """The state of one call of the pipeline.

    Attributes:
        index: Its number.
        regions: {image: its regions, as they were last read}.
        read_at: The evaluation in which they were read.
        is_guided: Whether an evaluation had both branches.
    """

    index: int = -1
    regions: dict[int, Regions] = field(default_factory=dict)
    read_at: int | None = None
    is_guided: bool = False


@dataclass
class _Evaluation:
    """The state of one evaluation, which takes one or two denoiser calls.

    Attributes:
        index: Its number in the generation.
        predictions: {image: the prediction with its prompt}.
        columns: {image: the columns of its prompt}.
        cond, uncond: {image: the sum of the attention of that branch}.
        starts: {image: the column of the start token of its negative prompt}.
    """

    index: int = -1
    predictions: dict[int, Tensor] = field(default_factory=dict)
    columns: dict[int, Columns] = field(default_factory=dict)
    cond: dict[int, AttentionAggregator] = field(default_factory=dict)
    uncond: dict[int, AttentionAggregator] = field(default_factory=dict)
    starts: dict[int, int] = field(default_factory=dict)


class GuidanceObserver:
    """Returns predictions for the "uncond" rows with which plain guidance has the wanted rates; see `guide`.

    Attributes:
        steps: The guidance of each evaluation.
        region_names: For each image of the last generation, {region: the token's word}.
    """

    def __init__(
        self, settings: Settings, plan: Plan | None, specials: Specials, unguided: Callable[[], GocaError]
    ) -> None:
        """Prepare to guide.

        Args:
            settings: The settings.
            plan: Plan of the settings' recipe for the pipeline.
            specials: Special tokens of the pipeline's tokenizers.
            unguided: Makes the error for a pipeline without guidance.
        """
        self.steps: list[GuidedStep] = []
        self.region_names: dict[int, dict[int, str]] = {}
        self._settings, self._plan, self._specials, self._unguided = settings, plan, specials, unguided
        self._generation, self._evaluation = _Generation(), _Evaluation()

    def begin(self, call: DenoiserCall) -> Sink | None:
        """Start an aggregator for each row whose attention makes regions, if this evaluation is read.

        Raises:
            GocaError: The pipeline does not use guidance, makes a video, or its denoiser gets a reference image.
        """
        if call.frames > 1:
            raise GocaError(
                f"a video of {call.frames} latent frames cannot be guided: generate one frame, num_frames=1"
            )
        if call.references:
            raise GocaError(
                "the denoiser gets a reference image beside the one that it generates, and their regions cannot be "
                "told apart: leave the reference image out"
            )
        if call.generation != self._generation.index:
            self._generation, self._evaluation, self.region_names = _Generation(call.generation), _Evaluation(), {}
            if call.scale is None or call.scale <= 1:
                raise self._unguided()
        if call.evaluation != self._evaluation.index:
            if self._evaluation.index >= 0 and not self._generation.is_guided:
                raise self._unguided()
            self._evaluation = _Evaluation(call.evaluation)
        settings, read_at = self._settings, self._generation.read_at
        if self._plan is None or not self._guides(call):
            return None
        if read_at not in (None, call.evaluation) and call.evaluation - (read_at or 0) < settings.every:
            return None
        self._generation.read_at = call.evaluation
        taken = dict(self._aggregators(call, self._plan))

        def take(row: int, attention: AttentionCall) -> None:
            if row in taken:
                taken[row].add(attention)

        return take if taken else None

    def end(self, call: DenoiserCall, noise_pred: Tensor) -> Tensor | None:
        """The prediction with which plain guidance continues, once both branches are known."""
        state = self._evaluation
        state.predictions |= {image: noise_pred[row] for image, (row, _) in call.images_of("cond").items()}
        rows = {image: row for image, (row, _) in call.images_of("uncond").items()}
        images = sorted(rows.keys() & state.predictions.keys())
        self._generation.is_guided |= bool(images)
        if not images or not self._guides(call):
            return None
        assert call.scale is not None
        answer, rates, scales = noise_pred.clone(), [], []
        for image in images:
            u, c = (_as_map(part, call.latent_size) for part in (noise_pred[rows[image]], state.predictions[image]))
            energy = maths.energy(c - u)
            rate = self._rate(image, len(images), energy, call)
            moved = maths.moved_uncond(u, c, rate, call.scale)
            answer[rows[image]] = _like(moved, noise_pred[rows[image]])
            rates.append(rate.cpu().numpy().astype(np.float16))
            scales.append(maths.effective_scale(rate, energy, call.scale))
        regions = [self._generation.regions[image].labels for image in images if image in self._generation.regions]
        labels = np.stack(regions) if len(regions) == len(images) else None
        self.steps.append(
            GuidedStep(call.generation, call.step, call.timestep, call.scale, np.stack(rates), labels, tuple(scales))
        )
        self._evaluation = _Evaluation(call.evaluation)  # predictions and attention are large
        return answer

    def _guides(self, call: DenoiserCall) -> bool:
        """Whether to change this call; a pipeline may stop guiding at a later step."""
        steps = self._settings.steps
        return call.scale is not None and call.scale > 1 and (steps is None or call.step in steps)

    def _aggregators(self, call: DenoiserCall, plan: Plan) -> Iterator[tuple[int, AttentionAggregator]]:
        """(row, its aggregator), for the rows whose attention is needed."""
        state, grid = self._evaluation, plan.common_grid(call.latent_size)
        for image, (row, prompt) in call.images_of("cond").items():
            columns = state.columns[image] = Columns.of(prompt.texts, self._specials)
            if columns.prompt:
                self.region_names[image] = column_names(prompt.texts, columns)
                tokens = NounTokens(prompt.prompt, (), (), columns.prompt)
                state.cond[image] = AttentionAggregator(plan, tokens, grid)
                yield row, state.cond[image]
        for image, (row, prompt) in call.images_of("uncond").items():
            known = state.columns.get(image)  # None if this branch comes first
            if known is not None and (image not in state.cond or known.start is None):
                continue
            start = start_column(prompt.texts, self._specials)
            if start is None and known is not None:
                start = known.start
            if start is not None:
                state.starts[image] = start
                # Only one column of this branch is needed, and no refinement.
                tokens = NounTokens(prompt.prompt, (), (), ())
                state.uncond[image] = AttentionAggregator(replace(plan, refine=(), order=0), tokens, grid)
                yield row, state.uncond[image]

    def _rate(
        self, image: int, images: int, energy: Float[Tensor, "height width"], call: DenoiserCall
    ) -> Float[Tensor, "height width"]:
        """The rate of an image, one of `images`."""
        settings, state, regions = self._settings, self._evaluation, self._generation.regions
        grid = (energy.shape[0], energy.shape[1])
        if settings.rate is not None:
            return torch.full_like(energy, settings.rate)
        if image in state.cond:
            start_map = None
            if image in state.uncond:
                start_map = column(state.uncond[image].global_map(), state.starts[image])
            regions[image] = Regions.read(state.columns[image], state.cond[image], start_map, grid)
        elif settings.masks and image not in regions:
            regions[image] = Regions.drawn(_mask_of(settings.masks, image, images, grid), grid, energy)
        if image in regions:
            if not bool(regions[image].foreground.any()):
                return torch.ones_like(energy)  # no foreground to compare with: an object may be smaller than a cell
            rate = maths.rate_of_regions(energy, regions[image].masks, regions[image].foreground)
        elif settings.recipe is None:
            rate = maths.rate_of_energy(energy)
        else:
            return torch.ones_like(energy)  # an empty prompt has no regions
        assert call.scale is not None
        rate = maths.clamped(rate, settings.clamp, settings.limit, call.scale)
        return maths.smoothed(rate) if settings.smooth else rate


def _mask_of(masks: Sequence[Tensor], image: int, images: int, grid: Grid) -> Tensor:
    """The mask of an image. Raises GocaError if there is none for it, or its aspect differs."""
    if len(masks) not in (1, images):
        raise GocaError(
            f"{len(masks)} masks were given for {images} images: give one for all, or one each", hint="masks"
        )
    mask = masks[image % len(masks)]
    (height, width), (rows, columns) = mask.shape, grid
    if abs(height * columns - width * rows) > max(height, width):  # by more than one cell
        raise GocaError(
            f"a mask of {height} x {width} has another aspect than the image, {rows} x {columns} cells: give one in "
            "the image's (height, width)",
            hint="masks",
        )
    return mask


def _as_map(predicted: Tensor, latent_size: Grid) -> Float[Tensor, "channel height width"]:
    """An image's prediction in float32; if 2 x 2 cells are packed, on the packed grid."""
    if predicted.ndim == 2:  # (position, channel)
        return predicted.float().T.unflatten(-1, (latent_size[0] // 2, latent_size[1] // 2))
    return predicted.float().flatten(0, -3)  # a video's single frame


def _like(moved: Float[Tensor, "channel height width"], predicted: Tensor) -> Tensor:
    """A map in the shape and dtype of its prediction."""
    return moved.flatten(1).T if predicted.ndim == 2 else moved.reshape(predicted.shape)
