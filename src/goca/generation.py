"""Generate images from a prompt, a seed each, and show what the words of the prompt attended to."""

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
"""Words of a name in a list; a prompt with a longer part is taken for a sentence."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """What a pipeline is asked for; None leaves it to the pipeline. scale: of guidance, 1 for none. size: px a side."""

    prompt: str
    steps: int | None = None
    scale: float | None = None
    size: int | None = None


@dataclass(frozen=True)
class Progress:
    """A step of the sampler is done: `step` of `steps`, from 1, for the image of `seed`."""

    step: int
    steps: int
    seed: int


@dataclass(frozen=True, repr=False)
class GuidedImage:
    """What guided an image.

    Attributes:
        steps: Its rates and regions, evaluation by evaluation.
        names: {region: its word}.
        plain: The image that the pipeline makes of the same seed by itself, where the two are compared.
    """

    steps: tuple[GuidedStep, ...]
    names: dict[int, str]
    plain: Image.Image | None = None

    def __repr__(self) -> str:
        return f"GuidedImage({len(self.steps)} evaluations, scale {self.effective_scale:.1f} in effect)"

    @property
    def effective_scale(self) -> float:
        """The scale of plain guidance as strong as this was, the mean over the evaluations."""
        return float(np.mean([step.effective_scales[0] for step in self.steps]))

    @property
    def rates(self) -> Float[np.ndarray, "height width"]:
        """The mean over the evaluations, on the grid of the prediction."""
        return np.stack([step.rates[0] for step in self.steps]).mean(0, dtype=np.float32)

    @property
    def regions(self) -> UInt16[np.ndarray, "height width"] | None:
        """Those of the evaluation in the middle; None where guidance needs none."""
        regions = self.steps[len(self.steps) // 2].regions
        return None if regions is None else regions[0]


@dataclass(frozen=True, repr=False)
class Generated:
    """An image, the seed it came from, its trace, if it was traced, and what guided it, if something did."""

    image: Image.Image
    seed: int
    traced: TracedImage | None = None
    guided: GuidedImage | None = None

    def __repr__(self) -> str:
        known = "".join(f", {each!r}" for each in (self.traced, self.guided) if each is not None)
        return f"Generated({self.image.width} x {self.image.height} px, seed {self.seed}{known})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the image, and what guided it."""
        return html.gallery(repr(self), row(self, None))


@dataclass(frozen=True, repr=False)
class Explained:
    """Heat maps and masks of what the names of a prompt attended to. left_out: names that the model was not given."""

    generated: Generated
    heatmaps: dict[str, Image.Image]
    masks: Segmentation
    left_out: tuple[str, ...]

    def __repr__(self) -> str:
        left_out = f", without {', '.join(self.left_out)}" if self.left_out else ""
        return f"Explained({self.generated!r}: {', '.join(self.heatmaps)}{left_out})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the image, what guided it, its masks, and the heat map of each name."""
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
    """Generate an image for each seed: the same for the same seed, whatever else is asked for.

    Args:
        pipeline: A diffusers pipeline. It runs in a thread of its own, and no further than the step after the one
            where the iteration is abandoned.
        options: What it is asked for.
        seeds: One for each image.
        explain, recipe, keep: Whether to trace the images, with what, and what is kept, see `goca.tracing.trace`.
        guidance, every: What guides them, see `goca.guidance.guiding`.
        compare: Whether each image is also made without that guidance.

    Yields:
        `Progress` after each step, and `Generated` behind the last step of each image.

    Raises:
        GocaError: The prompt is empty, or the pipeline refuses the options.
    """
    check_prompt(options.prompt, options.scale)
    # From its own thread, a pipeline of which this one keeps a part would wait for ever.
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
        GocaError: The pipeline refuses the options, or the batch does not fit the memory.
    """
    arguments = {**_arguments(pipeline, options), "prompt": list(prompts)}
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    try:
        return _images(pipeline(**arguments, generator=generators))
    except torch.OutOfMemoryError:
        raise GocaError(f"{len(prompts)} images at once do not fit the memory: lower the batch", "batch") from None
    except (ValueError, TypeError) as error:
        raise GocaError(f"the pipeline refuses: {error}") from None


def explain(generated: Generated, step: int | None = None) -> Explained:
    """Show what the names of a traced image attended to: the parts of a list, or the words of a sentence that may name
    something.

    Args:
        generated: An image that was traced.
        step: A step of the sampler, from 0, of an image of which the steps are kept; by default all together.

    Raises:
        GocaError: The image was not traced, the step is not kept, or its prompt names nothing.
    """
    traced = generated.traced
    if traced is None:
        raise GocaError("the image was not traced: generate it with explain=True")
    traced.attention.maps(step)  # names are left out below, a step is not
    heatmaps, left_out = {}, []
    for name in _names(traced):
        try:
            heatmaps[name] = traced.heatmap(name, step=step)
        except GocaError:  # cut off by the tokenizer's limit, or stop words alone
            left_out.append(name)
    if not heatmaps:
        raise GocaError(f'"{shortened(traced.prompt)}" has no word to explain: name things')
    return Explained(generated, heatmaps, traced.segment(tuple(heatmaps), step=step), tuple(left_out))


def row(generated: Generated, explained: Explained | None) -> list[Cell]:
    """For a contact sheet: the image, and what is known of it.

    First what guided it: the plain image, the guided one, its regions and its rates. Then what explains it: its masks,
    and the heat map of every name, marked with its mask's colour.
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
    """The regions that guided an image, and the words that each belongs to; None where there were none."""
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
    """What observes and guides a generation: a recipe to trace with, and the arguments of `generate`."""

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
    """Ends a pipeline whose images nobody waits for."""


def _generate_one(
    pipeline: Any, arguments: dict[str, Any], seed: int, observing: _Observing
) -> Iterator[Progress | Generated]:
    """One image, by a pipeline that runs in another thread while its events are consumed in this one."""
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
            events.put(GocaError(f"the pipeline refuses: {error}"))
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
    """Tell of every step of the scheduler, for one call; `callback_on_step_end` is not known to every pipeline.

    stepped: called with the number of the step, from 1, and how many there are.
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
    """What the pipeline is called with."""
    parameters = inspect.signature(pipeline.__call__).parameters
    facts = read_facts(pipeline_folder(pipeline))
    facts.check_call(pipeline)
    arguments: dict[str, Any] = {**facts.settings.get("options", {}), "prompt": options.prompt}
    if options.steps is not None:
        arguments["num_inference_steps"] = options.steps
    if options.scale is not None:
        # Guidance is two rows or calls a step, but for models that take its scale as input; some pipelines know both.
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
    """The images that a pipeline returned; of videos, their one frame."""
    images = answer.images if hasattr(answer, "images") else answer.frames
    return [_still(image).convert("RGB") for image in images]


def _still(image: Any) -> Image.Image:
    while isinstance(image, list | tuple):
        image = image[0]
    return image
