"""Generate images from a prompt, one per seed, and show what the words of the prompt attended to."""

import inspect
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt16
from PIL import Image

from goca.diffusion.exclusive import exclusive, patched
from goca.diffusion.model_facts import pipeline_folder, read_facts
from goca.diffusion.own_calls import step_number, stepping
from goca.errors import GocaError
from goca.guidance import UNGUIDED, GuidedStep, drawing, guiding
from goca.imaging import draw, html
from goca.imaging.palette import palette
from goca.imaging.sheet import Cell
from goca.recipe import GOCA, Recipe
from goca.segmentation import Segmentation
from goca.text.nouns import NO_THINGS, check_prompt
from goca.text.spelling import forms
from goca.text.token_spans import shortened
from goca.tracing import TracedImage, trace

MAX_NAME_WORDS = 4
"""Most words of a name in a list; a prompt with a longer part is taken for a sentence."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Arguments of a pipeline; None leaves one to the pipeline. scale: of guidance, 1 for none. size: px per side."""

    prompt: str
    steps: int | None = None
    scale: float | None = None
    size: int | None = None


@dataclass(frozen=True)
class Progress:
    """A sampling step is done: `step` of `steps`, counted from 1, for the image of `seed`."""

    step: int
    steps: int
    seed: int


@dataclass(frozen=True, repr=False)
class GuidedImage:
    """The guidance of an image.

    Attributes:
        steps: Its rates and regions in each evaluation.
        names: {region: its word}.
        plain: The image of the same seed without it, if the two are compared; else None.
    """

    steps: tuple[GuidedStep, ...]
    names: dict[int, str]
    plain: Image.Image | None = None

    def __repr__(self) -> str:
        return f"GuidedImage({len(self.steps)} evaluations, scale {self.effective_scale:.1f} in effect)"

    @property
    def effective_scale(self) -> float:
        """The scale at which plain guidance is as strong, averaged over the evaluations."""
        return float(np.mean([step.effective_scales[0] for step in self.steps]))

    @property
    def rates(self) -> Float[np.ndarray, "height width"]:
        """The rates averaged over the evaluations, on the prediction's grid."""
        return np.stack([step.rates[0] for step in self.steps]).mean(0, dtype=np.float32)

    @property
    def regions(self) -> UInt16[np.ndarray, "height width"] | None:
        """The regions of the middle evaluation; None if the guidance has no regions."""
        regions = self.steps[len(self.steps) // 2].regions
        return None if regions is None else regions[0]


@dataclass(frozen=True, repr=False)
class Generated:
    """An image, its seed, its trace if it was traced, and its guidance if it was guided."""

    image: Image.Image
    seed: int
    traced: TracedImage | None = None
    guided: GuidedImage | None = None

    def __repr__(self) -> str:
        known = "".join(f", {each!r}" for each in (self.traced, self.guided) if each is not None)
        return f"Generated({self.image.width} x {self.image.height} px, seed {self.seed}{known})"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the image and its guidance."""
        return html.gallery(repr(self), row(self, None))


@dataclass(frozen=True, repr=False)
class Explained:
    """Heat maps and masks of the names in a prompt. left_out: names that were truncated, or consist of stop words."""

    generated: Generated
    heatmaps: dict[str, Image.Image]
    masks: Segmentation
    left_out: tuple[str, ...]

    def __repr__(self) -> str:
        left_out = f", without {', '.join(self.left_out)}" if self.left_out else ""
        return f"Explained({self.generated!r}: {', '.join(self.heatmaps)}{left_out})"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the image, its guidance, its masks, and the heat map of each name."""
        return html.gallery(repr(self), row(self.generated, self))


def generate(
    pipeline: Any,
    options: GenerationOptions,
    seeds: Iterable[int],
    explain: bool = False,
    recipe: Recipe | str = GOCA,
    guidance: str = UNGUIDED,
    every: int = 1,
    compare: bool = False,
    keep: str | Iterable[str] = (),
) -> Generator[Progress | Generated, None, None]:
    """Generate an image for each seed; it depends on nothing else but the options and the guidance.

    Args:
        pipeline: A diffusers pipeline. It runs in a thread of its own, and stops at most one step after the iteration
            is abandoned.
        options: The pipeline's arguments.
        seeds: One for each image.
        explain, recipe, keep: Whether to trace the images, by which recipe, and what to keep, see `goca.tracing.trace`.
        guidance, every: How to guide them, see `goca.guidance.guiding`.
        compare: Whether to generate each image without that guidance as well.

    Yields:
        `Progress` after each step, and `Generated` after the last step of each image.

    Raises:
        GocaError: The prompt is empty, or the pipeline does not accept the options.
    """
    check_prompt(options.prompt, options.scale)
    # In its own thread, a pipeline that this thread has locked would wait for ever.
    with exclusive(pipeline, nested=False):
        arguments = _arguments(pipeline, options)
    for seed in seeds:
        plain = None
        if guidance != UNGUIDED and compare:
            for event in _generate_one(pipeline, arguments, seed, _Observing()):
                if isinstance(event, Progress):
                    yield event
                else:
                    plain = event.image
        observing = _Observing(recipe if explain else None, guidance, every, plain, keep)
        yield from _generate_one(pipeline, arguments, seed, observing)


def generate_batch(
    pipeline: Any, prompts: Sequence[str], seeds: Sequence[int], options: GenerationOptions
) -> list[Image.Image]:
    """Generate an image for each prompt and its seed in one call of the pipeline; the prompt of `options` is not used.

    Raises:
        GocaError: The pipeline does not accept the options, or the batch does not fit in memory.
    """
    arguments = {**_arguments(pipeline, options), "prompt": list(prompts)}
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    try:
        return _images(pipeline(**arguments, generator=generators))
    except torch.OutOfMemoryError:
        raise GocaError(f"{len(prompts)} images at once do not fit in memory: lower the batch", "batch") from None
    except (ValueError, TypeError) as error:
        raise GocaError(f"the pipeline does not accept this: {error}") from None


def explain(generated: Generated, step: int | None = None) -> Explained:
    """Show what the names of a traced image attended to: the parts of a list, or the words of a sentence that may name
    something.

    Args:
        generated: An image that was traced.
        step: A sampling step, counted from 0, if steps were kept; by default all together.

    Raises:
        GocaError: The image was not traced, the step was not kept, or the prompt names nothing.
    """
    traced = generated.traced
    if traced is None:
        raise GocaError("the image was not traced: generate it with explain=True")
    traced.attention.maps(step)  # raises for a missing step, while names are left out below
    heatmaps, left_out = {}, []
    for name in _names(traced):
        try:
            heatmaps[name] = traced.heatmap(name, step=step)
        except GocaError:  # truncated by the tokenizer, or only stop words
            left_out.append(name)
    if not heatmaps:
        raise GocaError(f'"{shortened(traced.prompt)}" has no word to explain: name some things')
    return Explained(generated, heatmaps, traced.segment(tuple(heatmaps), step=step), tuple(left_out))


def row(generated: Generated, explained: Explained | None) -> list[Cell]:
    """A row of a contact sheet: the image and its explanation.

    First its guidance: the plain image, the guided one, its regions and its rates. Then its masks, and the heat map of
    every name, marked with its mask's colour.
    """
    image = Cell(generated.image, f"seed {generated.seed}")
    cells = [image] if generated.guided is None else _guidance_cells(generated, generated.guided)
    if explained is None:
        return cells
    masks = explained.masks
    named = zip(masks.classes, palette(len(masks.classes))[1:], strict=True)
    return [
        *cells,
        Cell(draw.painted(masks.image, masks.labels, len(masks.classes)), "masks"),
        *(Cell(explained.heatmaps[name], name, tuple(colour.tolist())) for name, colour in named),
    ]


def region_overlay(generated: Generated, legend: bool = True) -> Image.Image | None:
    """The regions that guided an image, with the word of each; None if there were none."""
    guided = generated.guided
    if guided is None or (regions := guided.regions) is None:
        return None
    return drawing.region_overlay(generated.image, regions, guided.names, legend)


def _guidance_cells(generated: Generated, guided: GuidedImage) -> list[Cell]:
    cells = [Cell(generated.image, f"seed {generated.seed}, guided: scale {guided.effective_scale:.1f} in effect")]
    if guided.plain is not None:
        cells.insert(0, Cell(guided.plain, f"seed {generated.seed}, plain"))
    if (regions := region_overlay(generated, legend=False)) is not None:
        cells.append(Cell(regions, "regions at half the steps"))
    return [*cells, drawing.rate_cell(generated.image, guided.rates)]


@dataclass(frozen=True)
class _Observing:
    """How a generation is traced and guided: a recipe, and the arguments of `generate`."""

    recipe: Recipe | str | None = None
    guidance: str = UNGUIDED
    every: int = 1
    plain: Image.Image | None = None
    keep: str | Iterable[str] = ()

    def run(self, pipeline: Any, seed: int, arguments: dict[str, Any]) -> Generated:
        """Call the pipeline."""
        generator = torch.Generator().manual_seed(seed)
        with ExitStack() as stack:
            guided: Any = stack.enter_context(guiding(pipeline, self.guidance, self.every))
            tracing = None if self.recipe is None else trace(pipeline, self.recipe, keep=self.keep)
            traced = None if tracing is None else stack.enter_context(tracing)
            answer = pipeline(**arguments, generator=generator)
        if guided is not None:
            guided = GuidedImage(guided.steps, guided.region_names.get(0, {}), self.plain)
        return Generated(_images(answer)[0], seed, None if traced is None else traced[0], guided)


class _Abandoned(BaseException):
    """Ends a pipeline whose images are no longer wanted."""


def _generate_one(
    pipeline: Any, arguments: dict[str, Any], seed: int, observing: _Observing
) -> Iterator[Progress | Generated]:
    """Generate one image in another thread, and yield its events in this one."""
    events: SimpleQueue[Progress | Generated | BaseException] = SimpleQueue()
    is_abandoned = Event()

    def stepped(step: int, steps: int) -> None:
        if is_abandoned.is_set():
            raise _Abandoned
        events.put(Progress(step, steps, seed))

    def run() -> None:
        try:
            with _steps_counted(pipeline, stepped):
                generated = observing.run(pipeline, seed, arguments)
            events.put(generated)
        except (ValueError, TypeError) as error:
            events.put(GocaError(f"the pipeline does not accept this: {error}"))
        except BaseException as error:
            events.put(error)

    thread = Thread(target=copy_context().run, args=(run,), name="goca-generate")
    thread.start()
    try:
        while True:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, Generated):
                return
    finally:
        is_abandoned.set()
        thread.join()


@contextmanager
def _steps_counted(pipeline: Any, stepped: Callable[[int, int], None]) -> Iterator[None]:
    """Report every step of the scheduler in one call; not every pipeline has `callback_on_step_end`.

    stepped: Called with the number of the step, counted from 1, and their total.
    """
    scheduler, evaluations = pipeline.scheduler, count()

    def told() -> None:
        evaluation, last = next(evaluations), len(scheduler.timesteps) - 1
        done = step_number(scheduler, evaluation)
        if evaluation == last or step_number(scheduler, evaluation + 1) > done:
            stepped(done + 1, step_number(scheduler, last) + 1)

    with stepping(scheduler, told), patched(pipeline, "_progress_bar_config", {"disable": True}):
        yield


def _arguments(pipeline: Any, options: GenerationOptions) -> dict[str, Any]:
    """The arguments of the pipeline's call."""
    parameters = inspect.signature(pipeline.__call__).parameters
    facts = read_facts(pipeline_folder(pipeline))
    facts.check_call(pipeline)
    arguments: dict[str, Any] = {**facts.settings.get("options", {}), "prompt": options.prompt}
    if options.steps is not None:
        arguments["num_inference_steps"] = options.steps
    if options.scale is not None:
        # Guidance takes two rows or calls per step, except in models with the scale as an input; some know both.
        denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
        if "true_cfg_scale" in parameters and not getattr(denoiser.config, "guidance_embeds", False):
            arguments = {"negative_prompt": " ", **arguments, "true_cfg_scale": options.scale}
        else:
            arguments["guidance_scale"] = options.scale
    size = options.size or facts.settings.get("size")
    if size is not None:
        arguments.update(height=size, width=size)
    if "num_frames" in parameters:
        arguments.update(num_frames=1, output_type="pil")
    return arguments


def _names(traced: TracedImage) -> tuple[str, ...]:
    parts = (re.sub(r"^[\W_]+|[\W_]+$", "", part).lower() for part in traced.prompt.split(","))
    # "traffic light" and "traffic-light" are one name.
    names = tuple({forms(name): name for name in parts if name}.values())
    if len(names) > 1 and all(len(name.split()) <= MAX_NAME_WORDS for name in names):
        return names
    return tuple(dict.fromkeys(word.name for word in traced.words() if word.name not in NO_THINGS))


def _images(answer: Any) -> list[Image.Image]:
    """The images that a pipeline returned; for videos, their single frame."""
    images = answer.images if hasattr(answer, "images") else answer.frames
    return [_still(image).convert("RGB") for image in images]


def _still(image: Any) -> Image.Image:
    while isinstance(image, list | tuple):
        image = image[0]
    return image
