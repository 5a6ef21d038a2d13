"""Images from a prompt, a seed each, and what the pipeline looked at while it painted them."""

import inspect
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from goca.diffusion.exclusive import patched
from goca.errors import GocaError
from goca.imaging import draw
from goca.imaging.palette import palette
from goca.imaging.sheet import Cell
from goca.recipe import GOCA, Recipe
from goca.segmentation import Segmentation
from goca.text.spelling import forms
from goca.tracing import TracedImage, trace

LONGEST_NAME = 4
"""Words of a name in a list; with a longer part the prompt is taken for a sentence."""
_NO_THINGS = """
about above across after around as at behind below beneath beside between by down for from front he her his in inside
into is are it its near next of off on onto or out outside over she some that their them these they this those through
to toward towards under up upon was were which while who with
"""
NO_THINGS = frozenset(_NO_THINGS.split())
"""Words of a sentence that name nothing to be seen."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a pipeline; None leaves it to the pipeline. scale: of the guidance; size: pixels a side."""

    prompt: str
    steps: int | None = None
    scale: float | None = None
    size: int | None = None


@dataclass(frozen=True)
class Generated:
    """An image, the seed it came from, and, if it was asked for, the trace of how it came about."""

    image: Image.Image
    seed: int
    traced: TracedImage | None


@dataclass(frozen=True)
class Explained:
    """An image's heat maps, by name, and what was labelled; left_out: names that the model was not told of."""

    generated: Generated
    heatmaps: dict[str, Image.Image]
    masks: Segmentation
    left_out: tuple[str, ...]


def generate(
    pipeline: Any,
    asked: Asked,
    seeds: Sequence[int],
    explain: bool = False,
    recipe: Recipe | str = GOCA,
    begins: Callable[[int], None] = lambda steps: None,
    advances: Callable[[], None] = lambda: None,
) -> Iterator[Generated]:
    """One image for each seed: the same for the same seed, whatever else is asked for.

    begins: called with the number of steps before an image; advances: after each step. Raises GocaError for an empty
    prompt, and for whatever the pipeline refuses.
    """
    if not asked.prompt.strip():
        raise GocaError('the prompt is empty: say what to paint, for instance "cat, grass, sky"')
    if asked.scale is not None and not 0 <= asked.scale < math.inf:
        raise GocaError(f"scale {asked.scale} is none: give a number from 0, 1 for no guidance")
    options = _options(pipeline, asked)
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        with _watched(pipeline, begins, advances), trace(pipeline, recipe) if explain else nullcontext() as traced:
            try:
                made = pipeline(**options, generator=generator)
            except (ValueError, TypeError) as error:
                raise GocaError(f"the pipeline refuses: {error}") from None
        yield Generated(_image(made), seed, traced[0] if traced is not None else None)


def explain(one: Generated) -> Explained:
    """What a traced image's names looked at: those of a prompt that is a list, or the words of a sentence that may
    name something.

    Raises GocaError where the image was not traced, or its prompt has no words.
    """
    if one.traced is None:
        raise GocaError("the image was not traced: generate it with explain=True")
    heatmaps, left_out = {}, []
    for name in _names(one.traced):
        left_out.append(name)
        with suppress(GocaError):  # behind the tokenizer's limit, or stop words alone
            heatmaps[name] = one.traced.heatmap(name)
            left_out.pop()
    if not heatmaps:
        raise GocaError(f'"{one.traced.prompt}" has no word to explain: name things')
    return Explained(one, heatmaps, one.traced.segment(tuple(heatmaps)), tuple(left_out))


def row(explained: Explained) -> list[Cell]:
    """For a contact sheet: the image, its masks, and the heat map of every name, marked with its mask's colour."""
    masks = explained.masks
    named = zip(masks.classes, palette(len(masks.classes))[1:], strict=True)
    return [
        Cell(explained.generated.image, f"seed {explained.generated.seed}"),
        Cell(draw.painted(masks.image, masks.labels, len(masks.classes)), "masks"),
        *(Cell(explained.heatmaps[name], name, tuple(colour.tolist())) for name, colour in named),
    ]


def _options(pipeline: Any, asked: Asked) -> dict[str, Any]:
    known = inspect.signature(pipeline.__call__).parameters
    options: dict[str, Any] = {"prompt": asked.prompt}
    if asked.steps is not None:
        options["num_inference_steps"] = asked.steps
    if asked.scale is not None:
        options |= _guidance(pipeline, asked.scale, known)
    if asked.size is not None:
        options.update(height=asked.size, width=asked.size)
    if "num_frames" in known:
        options.update(num_frames=1, output_type="pil")
    return options


def _guidance(pipeline: Any, scale: float, known: Collection[str]) -> dict[str, Any]:
    """Guidance is two passes at each step, but for models that are told its scale; some pipelines know both ways."""
    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    if "true_cfg_scale" in known and not getattr(denoiser.config, "guidance_embeds", False):
        return {"true_cfg_scale": scale, "negative_prompt": " "}
    return {"guidance_scale": scale}


def _names(traced: TracedImage) -> tuple[str, ...]:
    parts = (re.sub(r"^[\W_]+|[\W_]+$", "", part).lower() for part in traced.prompt.split(","))
    # "traffic light" and "traffic-light" are one name.
    names = tuple({forms(name): name for name in parts if name}.values())
    if len(names) > 1 and all(len(name.split()) <= LONGEST_NAME for name in names):
        return names
    return tuple(dict.fromkeys(word.name for word in traced.words() if word.name not in NO_THINGS))


def _watched(
    pipeline: Any, begins: Callable[[int], None], advances: Callable[[], None]
) -> AbstractContextManager[None]:
    """For one call, the progress bar that every pipeline moves step by step speaks to us."""

    class Bar:
        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def update(self, count: int = 1) -> None:
            for _ in range(count):
                advances()

    def progress_bar(iterable: Any = None, total: int | None = None) -> Any:
        begins(len(iterable) if total is None else total)
        return Bar() if iterable is None else _counted(iterable, advances)

    return patched(pipeline, "progress_bar", progress_bar)


def _counted(items: Any, advances: Callable[[], None]) -> Iterator[Any]:
    for item in items:
        yield item
        advances()


def _image(made: Any) -> Image.Image:
    """The one image of a pipeline's answer; of a video's, the one frame."""
    found = made.images if hasattr(made, "images") else made.frames
    while isinstance(found, list | tuple):
        found = found[0]
    return found.convert("RGB")
