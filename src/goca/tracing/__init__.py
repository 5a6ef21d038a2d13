"""Trace: heat maps, labelled masks and weights of what a pipeline attends to while it generates.

with trace(pipe) as tr:
    image = pipe("a cat on grass").images[0]
tr.heatmap("cat")
tr.segment(["cat", "grass"])
"""

from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from goca.diffusion.session import Generating, Listener
from goca.errors import GocaError
from goca.imaging.images import ImageLike
from goca.recipe import AUTO, GOCA, Recipe
from goca.segmentation import Segmentation
from goca.text.nouns import Classes
from goca.text.token_spans import Word
from goca.tracing.collected import Planner, Step
from goca.tracing.collector import Collector
from goca.tracing.image import TracedImage

__all__ = ["Step", "Trace", "TracedImage", "trace"]


def trace(pipe: Any, recipe: Recipe | str = GOCA, steps: Any = None) -> "Trace":
    """Listen to a loaded pipeline, text-to-image, img2img or inpainting, while it is called inside a `with` block.

    The images are those that the pipeline makes anyway, to the bit, where it runs PyTorch's own attention: attention
    slicing, xformers and compiled graphs step aside meanwhile, and they round otherwise. The pipeline belongs to the
    block's thread until its end: segmenters in others wait.

    recipe: a `Recipe` or its name. steps: of the sampler, from 0, a range or any numbers; by default all. Samplers
    of second order make two passes a step; PNDM makes one pass more than it has steps, and each counts as a step. Of a
    batch with guidance only the prompts' own branch is read. Raises GocaError for a pipeline that is not supported, and
    inside the block, from the pipeline's call, for one that cannot be traced. Where what was read cannot be summed up
    there is a warning, and the image all the same.
    """
    return Trace(pipe, recipe, steps)


class Trace:
    """What was read while a pipeline generated: see `trace`.

    `images`, also by index, are in the pipeline's order, those of a second call behind the first's. What else can be
    asked is asked of the first image: see `TracedImage`.
    """

    def __init__(self, pipe: Any, recipe: Recipe | str, steps: Any) -> None:
        backbone = Generating(pipe)
        planner = Planner(backbone.settings, backbone.blocks, backbone.name, backbone.device, backbone.dtype)
        self._collector = Collector(planner, planner.plan(recipe), backbone.vae_scale_factor, _checked(steps))
        self._listener = Listener(backbone, self._collector)
        self._stack = ExitStack()

    def __enter__(self) -> "Trace":
        self._stack.enter_context(self._listener.attached())
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def images(self) -> tuple[TracedImage, ...]:
        """Every image so far; GocaError where there is none, saying why."""
        if not self._collector.images:
            raise GocaError(self._collector.reason())
        return self._collector.images

    def __getitem__(self, index: int) -> TracedImage:
        images = self.images
        if not isinstance(index, Integral) or not -len(images) <= int(index) < len(images):
            raise GocaError(
                f"there is no image {index!r}: {len(images)} were traced, choose from 0 to {len(images) - 1}"
            )
        return images[int(index)]

    def __iter__(self) -> Iterator[TracedImage]:
        return iter(self._collector.images)

    def __len__(self) -> int:
        return len(self._collector.images)

    def words(self) -> tuple[Word, ...]:
        """See `TracedImage.words`."""
        return self[0].words()

    def map(self, word: str | Word, occurrence: int | None = None) -> Float32[np.ndarray, "height width"]:
        """See `TracedImage.map`."""
        return self[0].map(word, occurrence)

    def heatmap(self, word: str | Word, occurrence: int | None = None) -> Image.Image:
        """See `TracedImage.heatmap`."""
        return self[0].heatmap(word, occurrence)

    def segment(
        self,
        classes: Classes,
        background_classes: Sequence[str] = (),
        background: str | float | None = AUTO,
        image: ImageLike | None = None,
        recipe: Recipe | str | None = None,
    ) -> Segmentation:
        """See `TracedImage.segment`."""
        return self[0].segment(classes, background_classes, background, image, recipe)

    def overlay(self, *classes: str) -> Image.Image:
        """See `TracedImage.overlay`."""
        return self[0].overlay(*classes)

    @property
    def steps(self) -> tuple[Step, ...]:
        """See `TracedImage.steps`."""
        return self[0].steps

    def save(self, folder: str | Path, stem: str = "image") -> tuple[Path, ...]:
        """Every image as `TracedImage.save` writes it; where there are several, as STEM-1, STEM-2 and so on."""
        images = self.images
        stems = [stem] if len(images) == 1 else [f"{stem}-{number}" for number in range(1, len(images) + 1)]
        return tuple(path for image, own in zip(images, stems, strict=True) for path in image.save(folder, own))


def _checked(steps: Any) -> Container[int] | None:
    if steps is None:
        return None
    try:
        listed = [] if isinstance(steps, str | bytes) else list(steps)
    except TypeError:
        listed = []
    if not listed or not all(
        isinstance(one, Integral) and not isinstance(one, bool) and int(one) >= 0 for one in listed
    ):
        raise GocaError(f"steps {steps!r} are no steps of a sampler: give a range or numbers from 0, or None for all")
    return frozenset(map(int, listed))
