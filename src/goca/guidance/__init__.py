"""Semantic-aware guidance: attention that decides, at every step and pixel, how much the prompt guides.

with guide(pipe, recipe=GOCA) as guided:
    image = pipe("a cat on grass", guidance_scale=5.0).images[0]
guided.rates
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from numbers import Integral, Real
from typing import Any, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float16, UInt16
from PIL import Image
from torch import Tensor

from goca.diffusion.backbone import Backbone
from goca.diffusion.denoiser_call import step_numbers
from goca.diffusion.guidance_scale import check_guidance, unguided
from goca.diffusion.session import GenerationSession, check_generation, observers_of
from goca.errors import GocaError
from goca.guidance.drawing import CLAMP, rate_cell, region_overlay
from goca.guidance.observer import GuidanceObserver, GuidedStep, Settings
from goca.guidance.regions import SpecialTokens
from goca.imaging import html
from goca.imaging.palette import palette
from goca.imaging.sheet import Cell
from goca.maths.rules import name_of
from goca.plan import Options, plan
from goca.recipe import GOCA, RECIPES, Recipe, recipe_named

__all__ = ["Guide", "GuidedStep", "guidance_named", "guide", "guide_arguments", "guiding"]

UNGUIDED, ENERGY = "none", "energy"
"""The names of guidance by the pipeline alone, and of guidance without attention."""
LIMIT = 15.0
"""The authors' bound of scale times rate."""
GREY = (128, 128, 128)
"""The canvas of an unknown image."""


class Guided:
    """The guidance of a pipeline's calls so far."""

    _observer: GuidanceObserver | None = None

    @property
    def steps(self) -> tuple[GuidedStep, ...]:
        """The guidance of each evaluation, in order; a sampler may make two evaluations per step."""
        return tuple(self._observer.steps) if self._observer is not None else ()

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
        """{image of the last call: {region: its word}}; "<start>" and "<special>" are not the prompt's."""
        return self._observer.region_names if self._observer is not None else {}

    def _told(self) -> str:
        """The number of guided evaluations and the effective scales, in a line."""
        if not self.steps:
            return f"{type(self).__name__}(nothing yet)"
        scales = [scale for step in self.steps for scale in step.effective_scales]
        least, most = min(scales), max(scales)
        return f"{type(self).__name__}({len(self.steps)} evaluations, scale {least:.1f} to {most:.1f} in effect)"

    def _repr_html_(self) -> str:
        """HTML for notebooks: for each image of the last call, its regions at half the steps, and its mean rate."""
        steps = [step for step in self.steps if step.generation == self.steps[-1].generation]
        if not steps:
            return html.figure(self._told())
        middle = steps[len(steps) // 2]
        cells, rows, colours = [], [], []
        for image, canvas in enumerate(self._canvases(middle)):
            if middle.regions is not None:
                regions, names = middle.regions[image], self.region_names.get(image, {})
                cells.append(Cell(region_overlay(canvas, regions, names, legend=False), "regions at half the steps"))
                numbers = np.unique(regions)
                colours += palette(len(numbers))[1:].tolist()
                rates = [float(middle.rates[image][regions == number].mean()) for number in numbers]
                words = [names.get(int(number), str(number)) for number in numbers]
                rows += [(word, f"{rate:.2f}", str(image)) for word, rate in zip(words, rates, strict=True)]
            cells.append(rate_cell(canvas, np.stack([step.rates[image] for step in steps]).mean(0, dtype=np.float32)))
        return html.gallery(self._told(), cells, ("region", "its rate", "image"), rows, colours)

    def _canvases(self, step: GuidedStep) -> Sequence[Image.Image]:
        """The images over which the rates of a step are drawn."""
        height, width = step.rates.shape[1:]
        return [Image.new("RGB", (8 * width, 8 * height), GREY)] * len(step.rates)


class Guide(Guided):
    """The guidance of a pipeline's calls; see `guide`."""

    def __init__(self, backbone: Backbone, settings: Settings) -> None:
        self._pipe = backbone.pipeline
        self._observer = observer_of(backbone, settings, partial(unguided, self._pipe, backbone.family))
        self._session = GenerationSession(backbone, [self._observer])

    def __repr__(self) -> str:
        return self._told()

    def _canvases(self, step: GuidedStep) -> Sequence[Image.Image]:
        images = [frames[0] for frames in self._session.images.get(step.generation, [])]
        return images if len(images) == len(step.rates) else super()._canvases(step)

    def __enter__(self) -> "Guide":
        if any(isinstance(observer, GuidanceObserver) for observer in observers_of(self._pipe)):
            raise GocaError("this pipeline is guided by a `with` block around this one: leave one of the two out")
        self._session.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._session.__exit__(kind, error, trace)
        if kind is None and not self.steps:
            reason = self._session.missed or "the pipeline was not called, or did not reach any of the chosen steps"
            warnings.warn(f"nothing was guided: {reason}", stacklevel=2)


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
    """Guide each region of an image as strongly as its foreground, for pipeline calls in a `with` block.

    Semantic-aware guidance (Shen et al., CVPR 2024) with any recipe as its segmenter: the tokens of the prompt compete
    for each pixel, and the scale of a region is multiplied by the prompt's effect in the foreground divided by its
    effect in the region. Works with stock pipelines and any scheduler, guiding in one batch or in two calls.

    The foreground is where attention to the start token is weak, without the prompt (CLIP, BERT, Gemma and Llama have a
    start token), or with the prompt if a pipeline guides away from zeros, as SDXL does without a negative prompt. If a
    tokenizer has none, or it is part of a template that is cut off, the foreground is where attention to the end token
    is weak with the prompt, as for T5 and Qwen.

    Later steps of the pipeline see the prompt's prediction unchanged: `guidance_rescale`, normalised guidance and
    skip-layer guidance act as usual, on the guided prediction. Changes to the denoiser itself, such as FreeU, come
    first: rates follow its changed predictions. Perturbed attention (PAG) and pipelines that set their own attention
    processors are refused.

    Args:
        pipe: A diffusers pipeline with classifier-free guidance: text-to-image, img2img or inpainting.
        recipe: Makes the regions. None for no regions: the energy of c - u decides, pixel by pixel.
        rate: The same rate everywhere, instead of regions; clamp, limit and smooth do not apply to it.
        masks: The regions, instead of attention's: an integer label map (height, width) in the image's aspect, or one
            for each image. Every label is a region; 0 is the background, all others together are the foreground. A map
            of True and False has one region and its background; an image without foreground is guided plainly.
        clamp: (least, most) rate; None for no bounds.
        limit: Largest value of scale times rate; None for no bound.
        smooth: Whether rates are blurred by one pixel.
        steps: Sampling steps that are guided so, counted from 0, such as a range; by default all. Others are plain.
        every: Attention is read in every `every`-th evaluation, and its regions are used until the next; rates always
            come from a step's own predictions.

    Returns:
        The guide, a context manager. It keeps 4 bytes per latent pixel, image and step: 16 KB at 64 x 64.

    Raises:
        GocaError: The pipeline, the recipe or another argument is not supported; also raised inside the block, by the
            pipeline's call, for a call without guidance, such as with a scale of 1.
    """
    backbone = Backbone(pipe, check=check_generation)
    check_guidance(pipe)
    settings = checked(
        recipe, rate=rate, masks=masks, clamp=clamp, limit=limit, smooth=smooth, steps=steps, every=every
    )
    return Guide(backbone, settings)


def checked(
    recipe: Recipe | str | None,
    *,
    rate: float | None,
    masks: Any,
    clamp: tuple[float, float] | None,
    limit: float | None,
    smooth: bool,
    steps: Iterable[SupportsIndex] | None,
    every: int,
) -> Settings:
    """The arguments of `guide`, checked. Raises GocaError for one that is not supported."""
    if rate is not None and not _is_positive(rate):
        raise GocaError(f"rate {rate!r} is not a positive number: give one, 1 for plain guidance", hint="rate")
    if rate is not None and masks is not None:
        raise GocaError("rate and masks both say how to guide: give one of them", hint="masks")
    pair = isinstance(clamp, tuple | list) and len(clamp) == 2 and all(map(_is_positive, clamp))
    if clamp is not None and not (pair and clamp[0] <= clamp[1]):
        raise GocaError(f"clamp {clamp!r} is not (least, most) rate: give two positive numbers, or None", hint="clamp")
    if limit is not None and not _is_positive(limit):
        raise GocaError(f"limit {limit!r} is not a positive number: give one, or None", hint="limit")
    if isinstance(every, bool) or not isinstance(every, Integral) or every < 1:
        raise GocaError(f"every {every!r} is not a number of steps: give 1 or more", hint="every")
    chosen = recipe_named(recipe) if recipe is not None and rate is None and masks is None else None
    if chosen is not None:
        _check_recipe(chosen)
    return Settings(
        recipe=chosen,
        rate=None if rate is None else float(rate),
        masks=_label_maps(masks),
        clamp=clamp,
        limit=limit,
        smooth=smooth,
        steps=step_numbers(steps),
        every=int(every),
    )


def observer_of(backbone: Backbone, settings: Settings, unguided: Callable[[], GocaError]) -> GuidanceObserver:
    """The observer that guides a pipeline. unguided: makes the error for a pipeline without guidance."""
    names = {text.tokenizer for text in backbone.family.texts}
    specials = {name: SpecialTokens.of(getattr(backbone.pipeline, name, None)) for name in names}
    made = None
    if settings.recipe is not None:
        is_joint = backbone.family.joint is not None
        made = plan(settings.recipe, backbone.settings, backbone.blocks, backbone.name, Options(), joint=is_joint)
    return GuidanceObserver(settings, made, specials, unguided)


def guiding(pipe: Any, name: str, every: int = 1) -> AbstractContextManager[Guide | None]:
    """`guide` by name: a recipe, "energy" for no regions, or a number, the rate everywhere; no guide for "none".

    Raises:
        GocaError: The name is unknown, or as for `guide`.
    """
    arguments = guide_arguments(name)
    return nullcontext() if arguments is None else guide(pipe, **arguments, every=every)


def guidance_named(name: str) -> str:
    """A name in the form of `guide_arguments`: lower case, with hyphens."""
    return name.lower().replace("_", "-")


def guide_arguments(name: str) -> dict[str, Any] | None:
    """The arguments of `guide` for a name, see `guiding`; None for "none". Raises GocaError for an unknown name."""
    key = guidance_named(name)
    if key == UNGUIDED:
        return None
    if key == ENERGY:
        return {"recipe": None}
    if key in RECIPES:
        _check_recipe(RECIPES[key])
        return {"recipe": key}
    try:
        rate = float(name)
    except ValueError:
        rate = math.nan
    if not _is_positive(rate):
        raise GocaError(
            f'no guidance "{name}": give {UNGUIDED}, a recipe such as goca, {ENERGY}, or a rate, a positive number',
            hint="guide",
        )
    return {"rate": rate}


def _is_positive(number: Any) -> bool:
    return isinstance(number, Real) and not isinstance(number, bool) and 0 < float(number) < math.inf


def _check_recipe(recipe: Recipe) -> None:
    for is_set, reason in (
        (recipe.maps is not None, "weighs nouns against each other, but guidance weighs tokens"),
        (recipe.keys == "side", "needs classes beside the prompt, but guidance only has the prompt"),
        (recipe.refit is not None, "refits scores of classes, but guidance weighs tokens"),
        (recipe.evidence is not None, "measures evidence of classes, but guidance has none"),
    ):
        if is_set:
            name = name_of(recipe, RECIPES)
            raise GocaError(f'recipe "{name}" {reason}: choose another, such as goca', hint="guide")


def _array(labels: Any) -> Any:
    return np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)


def _label_maps(masks: Any) -> tuple[Tensor, ...]:
    """The user's label maps, one for all images or one for each."""
    if masks is None:
        return ()
    # Only lists and arrays may have an axis of images; the third axis of a colour PIL image is its channels.
    several = isinstance(masks, list | tuple) or (isinstance(masks, np.ndarray | Tensor) and masks.ndim == 3)
    maps = [_array(labels) for labels in (masks if several else [masks])]
    for labels in maps:
        if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in "iub":
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
