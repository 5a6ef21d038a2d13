"""Semantic-aware guidance: attention that decides, at every step and pixel, how much the prompt guides.

with guide(pipe, recipe=GOCA) as guided:
    image = pipe("a cat on grass", guidance_scale=5.0).images[0]
guided.rates
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int, UInt16
from torch import Tensor

from goca.aggregation import AttentionAggregator
from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.backbone import Backbone
from goca.diffusion.denoiser_call import DenoiserCall, PromptTokens, step_numbers
from goca.diffusion.guidance_scale import how_to_guide
from goca.diffusion.session import GenerationSession, check_generation
from goca.errors import GocaError
from goca.imaging.images import common_grid
from goca.maths import Grid
from goca.maths import guidance as maths
from goca.maths.rules import name_of
from goca.plan import Options, Plan, plan
from goca.recipe import GOCA, RECIPES, Recipe, recipe_named
from goca.text.token_spans import Indices, NounTokens
from goca.text.tokens import Tokens

ENERGY = "energy"
"""The name of guidance without attention."""
CLAMP, LIMIT = (0.8, 3.0), 15.0
"""The authors' bounds of the rate, and of scale times rate."""


@dataclass(frozen=True)
class SpecialTokens:
    """The numbers of the tokens that a pipeline's tokenizers put in front of a text, and behind it."""

    starts: frozenset[int]
    ends: frozenset[int]

    @classmethod
    def of(cls, backbone: Backbone) -> "SpecialTokens":
        """Those of the tokenizers whose tokens the denoiser attends to."""
        texts = (getattr(backbone.pipeline, text.tokenizer, None) for text in backbone.family.texts)
        tokenizers = [tokenizer for tokenizer in texts if tokenizer is not None]

        def numbers(*names: str) -> frozenset[int]:
            values = (getattr(tokenizer, name, None) for tokenizer in tokenizers for name in names)
            return frozenset(value for value in values if value is not None)

        return cls(numbers("bos_token_id", "cls_token_id"), numbers("eos_token_id", "sep_token_id"))

    def start(self, texts: Sequence[Tokens]) -> int | None:
        """The column of the first start token that the denoiser attends to."""
        columns = (text.start + index for text in texts for index, token in enumerate(text.ids) if token in self.starts)
        return next((column for column in columns if column >= 0), None)


@dataclass(frozen=True)
class Columns:
    """The columns of an image's global map that guidance reads.

    Attributes:
        competing: The tokens that compete for each pixel: of each text the first to the last of the prompt, and so
            what the tokenizer or a template puts in front as well, such as CLIP's start token and T5's lone gaps.
        prompt: Those of the prompt: stop words and punctuation count, special tokens and templates do not.
        start: The start token; None where the denoiser is given none.
        end: The end token behind the prompt; without one, what follows the prompt.
    """

    competing: Indices
    prompt: Indices
    start: int | None
    end: int

    @classmethod
    def of(cls, texts: Sequence[Tokens], special: SpecialTokens) -> "Columns":
        """Find them in what each tokenizer made of a prompt."""
        competing, prompt, ends = set[int](), set[int](), list[int]()
        for text in texts:
            positions = [index for index, flag in enumerate(text.special) if not flag]
            if not positions:
                continue
            last, count = positions[-1], len(text.special)
            competing.update(range(max(0, text.start), text.start + last + 1))
            prompt.update(text.start + index for index in positions)
            behind = (index for index, token in enumerate(text.ids) if index > last and token in special.ends)
            ends.append(text.start + next(behind, min(last + 1, count - 1)))
        return cls(tuple(sorted(competing)), tuple(sorted(prompt)), special.start(texts), ends[0] if ends else 0)


@dataclass(frozen=True)
class Regions:
    """The regions of an image, and its foreground, on the grid of the prediction.

    Attributes:
        masks: The pixels of each region; where several tokens are equally strong, of each of theirs.
        foreground: The pixels of the foreground.
        labels: The region at each pixel: a token index, or the user's label.
    """

    masks: Bool[Tensor, "region height width"]
    foreground: Bool[Tensor, "height width"]
    labels: UInt16[np.ndarray, "height width"]

    @classmethod
    def read(
        cls, columns: Columns, cond: AttentionAggregator, start_map: Float[Tensor, "high wide"] | None, grid: Grid
    ) -> "Regions":
        """Read them off the attention of a step.

        Args:
            columns: Those of the prompt.
            cond: What was summed of the branch with the prompt.
            start_map: The start token's column in the branch without it; None without one.
            grid: Of the prediction.
        """
        global_map, order = cond.global_map(), cond.plan.order
        competing = torch.stack([column(global_map, index) for index in columns.competing])
        prompt = torch.stack([column(global_map, index) for index in columns.prompt]).sum(0)
        masks = maths.winners(maths.token_maps(competing, prompt, cond.plan.rescale, cond.affinity, order))
        nothing = column(global_map, columns.end) if start_map is None else start_map
        foreground = maths.foreground_of(maths.foreground_map(nothing, cond.affinity, order))
        return cls.of(maths.to_grid(masks, grid), maths.to_grid(foreground, grid), columns.competing)

    @classmethod
    def drawn(cls, labels: Int[Tensor, "high wide"], grid: Grid, like: Tensor) -> "Regions":
        """Those of a user's layout, in which 0 is the background."""
        labels = maths.to_grid(labels, grid).to(like.device)
        return cls.of(maths.regions_of(labels), labels != 0, labels.unique().tolist())

    @classmethod
    def of(
        cls, masks: Bool[Tensor, "_ height width"], foreground: Bool[Tensor, "height width"], numbers: Sequence[int]
    ) -> "Regions":
        """Regions of such numbers; empty ones, as most tokens of a long prompt have, are left out."""
        present = masks.any(-1).any(-1).cpu()
        labels = np.array(numbers, dtype=np.uint16)[present.numpy()][masks[present].int().argmax(0).cpu().numpy()]
        return cls(masks[present], foreground, labels)


def column(global_map: Float[Tensor, "token high wide"], index: int) -> Float[Tensor, "high wide"]:
    """A token's map; a pipeline may mask the end of a text, and nothing attends there."""
    return global_map[index] if index < len(global_map) else torch.zeros_like(global_map[0])


@dataclass(frozen=True)
class GuidedStep:
    """What guided one evaluation of a generation, on the grid of the prediction: 4 bytes a pixel, image and step.

    Attributes:
        generation: Number of the pipeline's call in the block, from 0.
        step: Step of the sampler, from 0.
        timestep: The scheduler's timestep.
        scale: The scale of the pipeline's guidance.
        rates: What it was multiplied by.
        regions: The region at each pixel, as `Guide.region_names` names it; None where the rate needed none.
        effective_scales: For each image <e - u, c - u> / |c - u|^2, the scale of plain guidance of the same strength.
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
    """The arguments of `guide`, checked; plan: None where no attention is read."""

    plan: Plan | None
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
        read_at: The evaluation that they were read in.
        is_guided: Whether an evaluation had both branches.
    """

    index: int = -1
    regions: dict[int, Regions] = field(default_factory=dict)
    read_at: int | None = None
    is_guided: bool = False


@dataclass
class _Evaluation:
    """The state of one evaluation, of one denoiser call or two.

    Attributes:
        index: Its number in the generation.
        predictions: {image: the prediction with its prompt}.
        columns: {image: those of its prompt}.
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
    """Answers with a prediction of the "uncond" rows that makes plain guidance guide by rates; see `guide`.

    Attributes:
        steps: What guided each evaluation.
        region_names: For each image of the last generation, {region: the token's word}.
    """

    def __init__(self, settings: Settings, special: SpecialTokens, remedy: str) -> None:
        """Prepare to guide; `remedy` says how the pipeline is made to guide at all."""
        self.steps: list[GuidedStep] = []
        self.region_names: dict[int, dict[int, str]] = {}
        self._settings, self._special, self._remedy = settings, special, remedy
        self._generation, self._evaluation = _Generation(), _Evaluation()

    def begin(self, call: DenoiserCall) -> Sink | None:
        """An aggregator for each row whose attention makes regions, where this evaluation is read.

        Raises:
            GocaError: The pipeline does not guide.
        """
        if call.generation != self._generation.index:
            self._generation, self._evaluation, self.region_names = _Generation(call.generation), _Evaluation(), {}
            if call.scale is None or call.scale <= 1:
                raise GocaError(f"there is no guidance whose scale could be changed: {self._remedy}")
        if call.evaluation != self._evaluation.index:
            if self._evaluation.index >= 0 and not self._generation.is_guided:
                raise GocaError(f"the prompt alone was evaluated, there is no guidance: {self._remedy}")
            self._evaluation = _Evaluation(call.evaluation)
        settings, read_at = self._settings, self._generation.read_at
        if settings.plan is None or not self._guides(call):
            return None
        if read_at not in (None, call.evaluation) and call.evaluation - (read_at or 0) < settings.every:
            return None
        self._generation.read_at = call.evaluation
        taken = dict(self._aggregators(call, settings.plan))

        def take(row: int, attention: AttentionCall) -> None:
            if row in taken:
                taken[row].add(attention)

        return take if taken else None

    def end(self, call: DenoiserCall, noise_pred: Tensor) -> Tensor | None:
        """The prediction that plain guidance goes on with, once both branches are there."""
        state, images = self._evaluation, []
        for index, row in call.rows_of("cond").items():
            state.predictions[_image(row.image)] = noise_pred[index]
        rows = {_image(row.image): index for index, row in call.rows_of("uncond").items()}
        images = sorted(rows.keys() & state.predictions.keys())
        self._generation.is_guided |= bool(images)
        if not images or not self._guides(call):
            return None
        assert call.scale is not None
        answer, rates, scales = noise_pred.clone(), [], []
        for image in images:
            u, c = (_as_map(part, call.latent_size) for part in (noise_pred[rows[image]], state.predictions[image]))
            rate = self._rate(image, len(images), u, c, call)
            moved = maths.moved_uncond(u, c, rate, call.scale)
            answer[rows[image]] = _like(moved, noise_pred[rows[image]])
            rates.append(rate.cpu().numpy().astype(np.float16))
            scales.append(maths.effective_scale(maths.guided(u, c, rate, call.scale), u, c))
        regions = [self._generation.regions[image].labels for image in images if image in self._generation.regions]
        labels = np.stack(regions) if len(regions) == len(images) else None
        self.steps.append(
            GuidedStep(call.generation, call.step, call.timestep, call.scale, np.stack(rates), labels, tuple(scales))
        )
        self._evaluation = _Evaluation(call.evaluation)  # predictions and attention are large
        return answer

    def _guides(self, call: DenoiserCall) -> bool:
        """Whether this call is to be changed; at a later step a pipeline may guide no more."""
        steps = self._settings.steps
        return call.scale is not None and call.scale > 1 and (steps is None or call.step in steps)

    def _aggregators(self, call: DenoiserCall, plan: Plan) -> Iterator[tuple[int, AttentionAggregator]]:
        """(row, what sums its attention up), of the rows whose attention is needed."""
        state, grid = self._evaluation, common_grid(call.latent_size, plan.grid)
        for index, row in call.rows_of("cond").items():
            image, prompt = _image(row.image), _prompt(row.prompt)
            columns = state.columns[image] = Columns.of(prompt.texts, self._special)
            if columns.prompt:
                self.region_names[image] = _names(prompt.texts, columns)
                tokens = NounTokens(prompt.prompt, (), (), columns.prompt)
                state.cond[image] = AttentionAggregator(plan, tokens, grid)
                yield index, state.cond[image]
        for index, row in call.rows_of("uncond").items():
            image, prompt = _image(row.image), _prompt(row.prompt)
            start = state.columns[image].start if image in state.cond else None
            if start is not None:
                found = self._special.start(prompt.texts)
                state.starts[image] = start if found is None else found
                # Of this branch there is one column, and it refines nothing.
                tokens = NounTokens(prompt.prompt, (), (), ())
                state.uncond[image] = AttentionAggregator(replace(plan, refine=(), order=0), tokens, grid)
                yield index, state.uncond[image]

    def _rate(
        self,
        image: int,
        images: int,
        u: Float[Tensor, "channel height width"],
        c: Float[Tensor, "channel height width"],
        call: DenoiserCall,
    ) -> Float[Tensor, "height width"]:
        """The rate of an image, one of `images`."""
        settings, state, regions = self._settings, self._evaluation, self._generation.regions
        energy, grid = maths.energy(c - u), (u.shape[-2], u.shape[-1])
        if settings.rate is not None:
            return torch.full_like(energy, settings.rate)
        if image in state.cond:
            start_map = None
            if image in state.uncond:
                start_map = column(state.uncond[image].global_map(), state.starts[image])
            regions[image] = Regions.read(state.columns[image], state.cond[image], start_map, grid)
        elif settings.masks and image not in regions:
            regions[image] = Regions.drawn(_mask_of(settings.masks, image, images, grid), grid, u)
        if image in regions:
            rate = maths.rate_of_regions(energy, regions[image].masks, regions[image].foreground)
        elif settings.plan is None:
            rate = maths.rate_of_energy(energy)
        else:
            return torch.ones_like(energy)  # an empty prompt has no regions
        assert call.scale is not None
        rate = maths.clamped(rate, settings.clamp, settings.limit, call.scale)
        return maths.smoothed(rate) if settings.smooth else rate


class Guide:
    """What guided a pipeline's calls: see `guide`.

    Attributes:
        steps: One `GuidedStep` for each evaluation that was guided.
    """

    def __init__(self, pipe: Any, backbone: Backbone, settings: Settings) -> None:
        self._observer = GuidanceObserver(settings, SpecialTokens.of(backbone), how_to_guide(pipe))
        self._session = GenerationSession(backbone, [self._observer])

    def __enter__(self) -> "Guide":
        self._session.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._session.__exit__(kind, error, trace)
        if kind is None and not self.steps:
            reason = self._session.missed or "none of the steps asked for came, or the pipeline was not called"
            warnings.warn(f"nothing was guided: {reason}", stacklevel=2)

    @property
    def steps(self) -> tuple[GuidedStep, ...]:
        """What guided each evaluation, in order; two evaluations of one step where the sampler makes two."""
        return tuple(self._observer.steps)

    @property
    def rates(self) -> tuple[Float16[np.ndarray, "image height width"], ...]:
        """See `GuidedStep.rates`."""
        return tuple(step.rates for step in self.steps)

    @property
    def regions(self) -> tuple[UInt16[np.ndarray, "image height width"] | None, ...]:
        """See `GuidedStep.regions`."""
        return tuple(step.regions for step in self.steps)

    @property
    def effective_scales(self) -> tuple[tuple[float, ...], ...]:
        """See `GuidedStep.effective_scales`."""
        return tuple(step.effective_scales for step in self.steps)

    @property
    def region_names(self) -> dict[int, dict[int, str]]:
        """{image of the last call: {region: its word}}; "<start>" and the like for what is not the prompt's."""
        return self._observer.region_names


def guide(
    pipe: Any,
    recipe: Recipe | str | None = GOCA,
    *,
    rate: float | None = None,
    masks: Any = None,
    clamp: tuple[float, float] | None = CLAMP,
    limit: float | None = LIMIT,
    smooth: bool = True,
    steps: Iterable[SupportsIndex] | None = None,
    every: int = 1,
) -> Guide:
    """Guide each region of an image as strongly as its foreground, while the pipeline is called in a `with` block.

    Semantic-aware guidance (Shen et al., CVPR 2024) with any recipe as its segmenter: the tokens of the prompt compete
    for each pixel, and the scale of a region is multiplied by what the prompt changes in the foreground over what it
    changes in the region. The pipeline is stock, with any scheduler; it guides in one batch or in two calls.

    The foreground is where the start token is weak that the model attends to without the prompt (CLIP, BERT, Gemma and
    Llama have one); where a tokenizer has none, or a template's is cut off, where the end token is weak with the
    prompt (T5, Qwen). Where a pipeline guides away from zeros, as SDXL without a negative prompt, the start token says
    nothing, and everything is foreground.

    What comes behind the denoiser sees the prediction of the prompt unchanged: `guidance_rescale`, normalised guidance
    and skip-layer guidance act as always, on the guided prediction. Methods that change what the denoiser itself
    predicts (FreeU, SEG as an attention patch) come first. Adaptive projected guidance in the place of plain guidance
    projects the changed difference. Perturbed attention (PAG) is refused.

    Args:
        pipe: A diffusers pipeline with classifier-free guidance: text-to-image, img2img or inpainting.
        recipe: Makes the regions. None for none: the energy of c - u alone, at each pixel the mean over its own.
        rate: The same rate everywhere, instead of regions; clamp, limit and smooth do not apply to it.
        masks: The regions, instead of attention's: an integer label map (height, width) in the image's aspect, or one
            for each image. Every label is a region; 0 is the background, and all others together the foreground.
        clamp: (least, most) rate; None for any.
        limit: The most that scale times rate may be; None for any.
        smooth: Whether rates are blurred by one pixel.
        steps: The sampler's steps that are guided so, from 0, such as a range; by default all. The rest are plain.
        every: Attention is read in every so many evaluations, and its regions are used until the next; rates always
            come from a step's own predictions.

    Returns:
        The guide, to be entered. It keeps 4 bytes for each pixel of the latent, image and step: 16 KB at 64 x 64.

    Raises:
        GocaError: The pipeline, the recipe or another argument is not supported; and inside the block, from the
            pipeline's call, for a call without guidance, such as with a scale of 1.
    """
    backbone = Backbone(pipe, check=check_generation)
    how_to_guide(pipe)
    if isinstance(rate, bool) or not (rate is None or (isinstance(rate, Real) and 0 < rate < float("inf"))):
        raise GocaError(f"rate {rate!r} is not a positive number: give one, 1 for plain guidance", hint="rate")
    if rate is not None and masks is not None:
        raise GocaError("rate and masks both say how to guide: give one of them", hint="masks")
    if clamp is not None and not (len(clamp) == 2 and 0 <= clamp[0] <= clamp[1]):
        raise GocaError(f"clamp {clamp!r} is not (least, most) rate: give two numbers, or None", hint="clamp")
    if limit is not None and not limit > 0:
        raise GocaError(f"limit {limit!r} is not a positive number: give one, or None", hint="limit")
    if isinstance(every, bool) or not isinstance(every, Integral) or every < 1:
        raise GocaError(f"every {every!r} is not a number of steps: give 1 or more", hint="every")
    reads = recipe is not None and rate is None and masks is None
    settings = Settings(
        plan=_plan(recipe, backbone) if reads and recipe is not None else None,
        rate=None if rate is None else float(rate),
        masks=_label_maps(masks),
        clamp=clamp,
        limit=limit,
        smooth=smooth,
        steps=step_numbers(steps),
        every=int(every),
    )
    return Guide(pipe, backbone, settings)


def guide_arguments(name: str) -> dict[str, Any]:
    """The arguments of `guide` that a name stands for.

    Args:
        name: A recipe, "energy" for guidance without attention, or a number, the rate everywhere.

    Raises:
        GocaError: It is none of these.
    """
    try:
        rate = float(name)
    except ValueError:
        key = name.lower().replace("_", "-")
        if key not in (*RECIPES, ENERGY):
            raise GocaError(
                f'no guidance "{name}": give a recipe, such as goca, "{ENERGY}", or a number', hint="guide"
            ) from None
        if key != ENERGY:
            _check_recipe(recipe_named(key))
        return {"recipe": None if key == ENERGY else key}
    if not 0 < rate < math.inf:
        raise GocaError(f"guidance {name} is not a positive number: give one, 1 for plain guidance", hint="guide")
    return {"rate": rate}


def _check_recipe(recipe: Recipe) -> None:
    reasons = (
        (recipe.maps is not None, "weighs nouns against each other, and guidance is given tokens"),
        (recipe.keys == "side", "asks for classes beside the prompt, and guidance is given the prompt alone"),
        (recipe.evidence is not None, "measures which classes there are, and guidance has none"),
    )
    for senseless, reason in reasons:
        if senseless:
            name = name_of(recipe, RECIPES)
            raise GocaError(f'recipe "{name}" {reason}: choose another, such as goca', hint="guide")


def _plan(recipe: Recipe | str, backbone: Backbone) -> Plan:
    chosen = recipe_named(recipe)
    _check_recipe(chosen)
    is_joint = backbone.family.joint is not None
    return plan(chosen, backbone.settings, backbone.blocks, backbone.name, Options(), joint=is_joint)


def _label_maps(masks: Any) -> tuple[Tensor, ...]:
    """The user's layout, one map for all images or one for each."""
    if masks is None:
        return ()
    several = isinstance(masks, list | tuple) or np.ndim(masks) == 3
    maps = [np.asarray(labels) for labels in (masks if several else [masks])]
    for labels in maps:
        if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "iu":
            raise GocaError(
                f"masks of shape {labels.shape} and type {labels.dtype} are not label maps: give integers (height, "
                "width), 0 for the background, or one such map for each image",
                hint="masks",
            )
        if labels.min() < 0 or labels.max() > np.iinfo(np.uint16).max:
            raise GocaError(f"masks have labels from {labels.min()} to {labels.max()}: give 0 to 65535", hint="masks")
    if not maps:
        raise GocaError("masks is an empty list: give one label map, or one for each image", hint="masks")
    return tuple(torch.from_numpy(labels.astype(np.int64)) for labels in maps)


def _mask_of(masks: Sequence[Tensor], image: int, images: int, grid: Grid) -> Tensor:
    """The layout of an image; GocaError where there is none for it, or it has another aspect."""
    if len(masks) not in (1, images):
        raise GocaError(
            f"{len(masks)} masks are given for {images} images: give one for all, or one each", hint="masks"
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


def _names(texts: Sequence[Tokens], columns: Columns) -> dict[int, str]:
    """What stands at each competing column."""
    names = dict.fromkeys(columns.competing, "<template>")
    if columns.start in names:
        names[columns.start] = "<start>"
    for text in texts:
        spans = zip(text.offsets, text.special, strict=True)
        names |= {text.start + index: text.text[a:b].strip() for index, ((a, b), flag) in enumerate(spans) if not flag}
    return names


def _image(image: int | None) -> int:
    assert image is not None  # rows of both branches have one
    return image


def _prompt(prompt: PromptTokens | None) -> PromptTokens:
    assert prompt is not None
    return prompt


def _as_map(predicted: Tensor, latent_size: Grid) -> Float[Tensor, "channel height width"]:
    """An image's prediction in full precision; where 2 x 2 cells are packed, on their grid."""
    if predicted.ndim == 2:  # (position, channel)
        return predicted.float().T.unflatten(-1, (latent_size[0] // 2, latent_size[1] // 2))
    return predicted.float().flatten(1, -3) if predicted.ndim == 4 else predicted.float()


def _like(moved: Float[Tensor, "channel height width"], predicted: Tensor) -> Tensor:
    """A map in the form that its prediction came in."""
    return moved.flatten(1).T if predicted.ndim == 2 else moved.reshape(predicted.shape)
