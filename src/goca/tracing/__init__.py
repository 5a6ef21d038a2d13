"""Trace: heat maps, labelled masks and weights of what a pipeline attends to while it generates.

with trace(pipe) as tr:
    image = pipe("a cat on grass").images[0]
tr.heatmap("cat")
tr.segment(["cat", "grass"])
"""

from collections.abc import Iterable, Iterator
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex

from PIL import Image

from goca.diffusion.backbone import Backbone
from goca.diffusion.denoiser_call import step_numbers
from goca.diffusion.session import GenerationSession, check_generation
from goca.errors import GocaError
from goca.imaging import html
from goca.recipe import GOCA, Recipe
from goca.tracing.image import TracedImage
from goca.tracing.keep import Keep
from goca.tracing.observer import TraceObserver
from goca.tracing.steps import TracedAttention, TracedStep, plan_for

__all__ = ["Trace", "TracedImage", "TracedStep", "trace"]

SHOWN_IMAGES = 4
"""How many images a notebook shows."""


def trace(
    pipe: Any,
    recipe: Recipe | str = GOCA,
    steps: Iterable[SupportsIndex] | None = None,
    keep: str | Iterable[str] = (),
    layers: str | Iterable[str] | None = None,
) -> "Trace":
    """Trace a loaded pipeline, text-to-image, img2img or inpainting, while it is called inside a `with` block.

    The images are bit-identical to those without a trace, where the pipeline runs PyTorch's own attention: attention
    slicing, xformers and compiled graphs step aside meanwhile, and they round otherwise. The pipeline and its parts
    belong to the block's thread until its end: segmenters in others wait. Only what a call of this very pipeline makes
    is traced, not what another one with the same denoiser does meanwhile; of guided generations only the prompts' own
    branch, once a step. Attention that cannot be summed up makes a warning, and the image all the same.

    Args:
        pipe: A diffusers pipeline.
        recipe: A `Recipe` or the name of one.
        steps: Steps of the sampler, from 0, such as a range; by default all. They are counted as the scheduler counts:
            a step of a second-order sampler, and the first one of PNDM, are two denoiser calls.
        keep: What is kept beside the sums over steps, as a name or several. A map takes 4 bytes a cell, 16 KB on the
            usual grid of 64 x 64, in the memory of the CPU but for the sums; there is room for 1 GiB in all, and what
            comes behind is left out.

            - "steps": the map of each of the prompt's tokens in each denoiser call, for `step=` and `animation`.
            - "layers": its map in each layer, on the layer's own grid, for `layer_map`.
            - "heads": its map in each head of each layer too: as many maps as the model has heads.
            - "special": maps of the special tokens too, wherever those of the prompt's are kept.
            - "negative": the same of the negative prompt's tokens, for `negative`: twice as much of all.
            - "references": the same of the images that the denoiser is given beside the one that it makes, such as
              those that Flux Kontext edits, for `references`: as much again for each.
        layers: The blocks to which "layers" and "heads" are limited; by default all that attend to the text.

    Returns:
        The trace, to be entered.

    Raises:
        GocaError: The pipeline or the recipe is not supported, or the steps or what is to be kept are not any; and
            inside the block, from the pipeline's call, for a call that cannot be traced.
    """
    return Trace(pipe, recipe, steps, keep, layers)


class Trace(TracedImage):
    """What was traced of a pipeline's calls: see `trace`.

    `images`, also by index, are in the pipeline's order, those of a second call behind the first's. As a `TracedImage`
    it is the first of them.
    """

    def __init__(
        self,
        pipe: Any,
        recipe: Recipe | str,
        steps: Iterable[SupportsIndex] | None,
        keep: str | Iterable[str],
        layers: str | Iterable[str] | None,
    ) -> None:
        backbone = Backbone(pipe, check=check_generation)
        plans = plan_for(backbone)
        self._steps = step_numbers(steps)
        kept = Keep.of(keep, layers, backbone.blocks)
        self._observer = TraceObserver(plans(recipe), plans, backbone.vae_scale_factor, self._steps, kept)
        self._session = GenerationSession(backbone, [self._observer])

    def __enter__(self) -> "Trace":
        self._session.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._session.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"Trace({', '.join(map(repr, self)) or 'nothing yet'})"

    def _repr_html_(self) -> str:
        """What a notebook shows: each of the first images as `TracedImage` shows it."""
        images = self._traced()
        more = html.figure(f"and {len(images) - SHOWN_IMAGES} more") if len(images) > SHOWN_IMAGES else ""
        return "".join(image._repr_html_() for image in images[:SHOWN_IMAGES]) + more or html.figure(repr(self))

    @property
    def images(self) -> tuple[TracedImage, ...]:
        """Every image so far; GocaError where there is none, saying why."""
        images = self._traced()
        if not images:
            raise GocaError(self._reason())
        return images

    @property
    def attention(self) -> TracedAttention:
        """See `TracedImage.attention`."""
        return self[0].attention

    @property
    def image(self) -> Image.Image:
        """See `TracedImage.image`."""
        return self[0].image

    def __getitem__(self, number: int) -> TracedImage:
        images = self.images
        if not isinstance(number, SupportsIndex) or not -len(images) <= index(number) < len(images):
            raise GocaError(
                f"there is no image {number!r}: {len(images)} were traced, choose from 0 to {len(images) - 1}"
            )
        return images[number]

    def __iter__(self) -> Iterator[TracedImage]:
        return iter(self._traced())

    def __len__(self) -> int:
        return len(self._traced())

    def save(self, folder: str | Path, stem: str = "image") -> tuple[Path, ...]:
        """Write every image as `TracedImage.save` does; where there are several, as STEM-1, STEM-2 and so on."""
        images = self.images
        stems = [stem] if len(images) == 1 else [f"{stem}-{number}" for number in range(1, len(images) + 1)]
        return tuple(path for image, stem in zip(images, stems, strict=True) for path in image.save(folder, stem))

    def _traced(self) -> tuple[TracedImage, ...]:
        """The images of which a step was traced, as the pipeline decoded them, if it did."""
        for generation, images in self._observer.generations.items():
            for traced in images:
                traced.attention.given = self._session.given.get(generation, ())
            decoded = self._session.images.get(generation, [])
            if len(decoded) == len(images):
                for traced, frames in zip(images, decoded, strict=True):
                    traced.attention.decoded, traced.decoded = frames, frames[len(frames) // 2]
        return tuple(image for images in self._observer.generations.values() for image in images if image.steps)

    def _reason(self) -> str:
        """Why there is no image."""
        observer = self._observer
        if observer.failures:
            return next(iter(observer.failures.values()))
        if observer.last_step is not None and self._steps is not None:
            return (
                f"none of the steps asked for came: the sampler made {observer.last_step + 1}, numbered 0 to "
                f"{observer.last_step}; choose from them"
            )
        if self._session.missed is not None:
            return f"nothing was traced: {self._session.missed}"
        return "nothing was traced: call the pipeline, with a prompt as text, inside the `with trace(pipe)` block"
