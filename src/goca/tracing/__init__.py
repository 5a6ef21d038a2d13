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
"""Most images that a notebook shows."""


def trace(
    pipe: Any,
    recipe: Recipe | str = GOCA,
    steps: Iterable[SupportsIndex] | None = None,
    keep: str | Iterable[str] = (),
    layers: str | Iterable[str] | None = None,
) -> "Trace":
    """Trace a loaded pipeline, text-to-image, img2img or inpainting, while it is called inside a `with` block.

    The images are bit-identical to those without a trace if the pipeline runs PyTorch's own attention: attention
    slicing, xformers and compiled graphs are switched off meanwhile, and they round differently. The pipeline and its
    parts are locked by the block's thread until its end; segmenters in other threads wait. Only calls of this pipeline
    are traced, not those of another one with the same denoiser; in guided ones only the prompt's own branch, once
    per step. Attention that cannot be summed gives a warning, and the image is still generated.

    Args:
        pipe: A diffusers pipeline.
        recipe: A `Recipe` or the name of one.
        steps: Sampling steps, counted from 0, such as a range; by default all. They are counted like the scheduler's:
            a step of a second-order sampler, and the first one of PNDM, are two denoiser calls.
        keep: What to keep besides the sums over steps, one name or several. A map takes 4 bytes per cell, 16 KB on the
            usual grid of 64 x 64, in CPU memory except for the sums; the limit is 1 GiB in total, and later maps are
            left out.

            - "steps": the map of each of the prompt's tokens in each denoiser call, for `step=` and `animation`.
            - "layers": its map in each layer, on the layer's own grid, for `layer_map`.
            - "heads": also its map in each head of each layer: as many maps as the model has heads.
            - "special": maps of the special tokens too, wherever those of the prompt's are kept.
            - "negative": the same for the negative prompt's tokens, for `negative`: doubles everything.
            - "references": the same for reference images that the denoiser gets, such as those that Flux Kontext edits,
              for `references`: as much again for each.
        layers: The blocks to which "layers" and "heads" are limited; by default all that attend to the text.

    Returns:
        The trace, a context manager.

    Raises:
        GocaError: The pipeline or the recipe is not supported, or the steps or names are not valid; also raised
            inside the block, by the pipeline's call, for a call that cannot be traced.
    """
    return Trace(pipe, recipe, steps, keep, layers)


class Trace(TracedImage):
    """The trace of a pipeline's calls; see `trace`.

    `images`, also by index, are in the pipeline's order, those of a second call after the first's. As a `TracedImage`,
    it stands for the first of them.
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
        """HTML for notebooks: the first images, each as `TracedImage` shows it."""
        images = self._traced()
        more = html.figure(f"and {len(images) - SHOWN_IMAGES} more") if len(images) > SHOWN_IMAGES else ""
        return "".join(image._repr_html_() for image in images[:SHOWN_IMAGES]) + more or html.figure(repr(self))

    @property
    def images(self) -> tuple[TracedImage, ...]:
        """Every image so far. Raises GocaError, with the reason, if there is none."""
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
        """Write every image as `TracedImage.save` does; several as STEM-1, STEM-2 and so on."""
        images = self.images
        stems = [stem] if len(images) == 1 else [f"{stem}-{number}" for number in range(1, len(images) + 1)]
        return tuple(path for image, stem in zip(images, stems, strict=True) for path in image.save(folder, stem))

    def _traced(self) -> tuple[TracedImage, ...]:
        """The images with a traced step, as decoded by the pipeline, if it did."""
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
                f"none of the chosen steps was reached: the sampler made {observer.last_step + 1}, numbered 0 to "
                f"{observer.last_step}; choose from them"
            )
        if self._session.missed is not None:
            return f"nothing was traced: {self._session.missed}"
        return "nothing was traced: call the pipeline, with a prompt as text, inside the `with trace(pipe)` block"
