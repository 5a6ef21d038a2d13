"""The model under test, and the measurements that checks share, each made on first use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, UInt16
from PIL import Image
from torch import Tensor

from goca import bundled
from goca.diffusion.exclusive import patched
from goca.errors import GocaError
from goca.generation import GenerationOptions, generate_batch
from goca.recipe import GOCA
from goca.request import SegmentationRequest
from goca.segmenter import Segmenter
from goca.tracing import trace

PAIRS = (
    ("cat", "grass"),
    ("boat", "water"),
    ("car", "road"),
    ("airplane", "sky"),
    ("dog", "snow"),
    ("elephant", "sand"),
    ("apple", "wood"),
    ("house", "brick"),
)
"""An object and its surroundings; words that every text-to-image model knows, including the bundled ones."""
STEPS = 16
"""Number of sampling steps of a generated image."""
BATCH = 4
_Measured = TypeVar("_Measured")

Labels = UInt16[np.ndarray, "height width"]
"""1 for the object, 2 for its surroundings."""


@dataclass(frozen=True)
class Shown:
    """An image, the nouns that it shows and, if the model generated it, the labels from its trace."""

    image: Image.Image
    nouns: tuple[str, ...]
    meant: Labels | None = None


class Subject:
    """A pipeline under test.

    Args:
        pipeline: A loaded text-to-image pipeline.
        size: Side of the images in pixels; by default the side of training.
        images: Number of images that it generates, at most eight.

    Raises:
        GocaError: The pipeline is not supported.
    """

    def __init__(self, pipeline: Any, size: int | None = None, images: int = len(PAIRS)) -> None:
        self.pipeline = pipeline
        self.model = Segmenter.from_pipeline(pipeline, GOCA, size=size, batch=BATCH)
        self.backbone, self.plan = self.model.backbone, self.model.plan
        self.pairs = PAIRS[:images]
        self._once: dict[Callable[[Subject], Any], Any] = {}

    def once(self, measure: "Callable[[Subject], _Measured]") -> _Measured:
        """The cached result of a function of this subject, or the error that it raised."""
        if measure not in self._once:
            try:
                self._once[measure] = measure(self)
            except Exception as error:
                self._once[measure] = error
        measured = self._once[measure]
        if isinstance(measured, Exception):
            raise measured
        return measured

    @property
    def side(self) -> int:
        """Side of the generated and shown images in pixels: a multiple of the patch size."""
        multiple = self.backbone.size_multiple
        return max(1, self.plan.size // multiple) * multiple

    @property
    def latent_size(self) -> tuple[int, int]:
        """(height, width) of the latents of such images."""
        cells = self.side // self.backbone.vae_scale_factor
        return cells, cells

    @cached_property
    def refusal(self) -> GocaError | None:
        """Why the pipeline cannot generate images; None if it can."""
        prompt = ", ".join(self.pairs[0])
        try:
            self.paint([prompt], [0], steps=2)
        except GocaError as error:
            return error
        return None

    def paint(self, prompts: Sequence[str], seeds: Sequence[int], steps: int = STEPS) -> list[Image.Image]:
        """Generate an image for each prompt. Raises GocaError if the pipeline does not support it."""
        with patched(self.pipeline, "_progress_bar_config", {"disable": True}):
            options = GenerationOptions(prompt=prompts[0], steps=steps, size=self.side)
            return generate_batch(self.pipeline, prompts, seeds, options)

    @property
    def painted(self) -> tuple[Shown, ...]:
        """The images that the model generates, with fixed seeds."""
        return self.once(_painted)

    @property
    def shown(self) -> tuple[Shown, ...]:
        """Images that the model generates or, if it cannot, scenes that ship with goca."""
        return self.painted if self.refusal is None else self.scenes

    @cached_property
    def scenes(self) -> tuple[Shown, ...]:
        """Scenes that ship with goca, each with its two largest classes; their labels are not used."""
        return tuple(Shown(scene.image, _largest(scene)) for scene in islice(bundled.scenes(), len(self.pairs)))

    @cached_property
    def scene_latents(self) -> Float[Tensor, "scene channel height width"]:
        """The latents of `scenes`, at the side of generated images."""
        images = [scene.image for scene in self.scenes]
        return self.backbone.latents(images, (self.side, self.side), self.model.batch)

    @property
    def seen(self) -> tuple[Labels, ...]:
        """The labels of the images in `shown`."""
        return self.once(Subject.labels)

    def labels(self, timestep: int | None = None, seed: int = 0, mirrored: bool = False) -> tuple[Labels, ...]:
        """The labels of the images in `shown`, two classes and no background; mirrored images are mirrored back."""
        timesteps = self.plan.timestep if timestep is None else (timestep,)
        model = self.model.with_plan(replace(self.plan, timestep=timesteps, seeds=(seed,)))
        requests = [
            SegmentationRequest(_mirrored(each.image) if mirrored else each.image, each.nouns, (), None)
            for each in self.shown
        ]
        outcomes = [outcome for _, outcome in model.stream(requests)]
        for outcome in outcomes:
            if isinstance(outcome, GocaError):
                raise outcome
        labels = [outcome.labels for outcome in outcomes if not isinstance(outcome, GocaError)]
        return tuple(each[:, ::-1] if mirrored else each for each in labels)


def _painted(subject: Subject) -> tuple[Shown, ...]:
    painted = []
    for start in range(0, len(subject.pairs), BATCH):
        pairs = subject.pairs[start : start + BATCH]
        prompts, seeds = [", ".join(pair) for pair in pairs], range(start, start + len(pairs))
        # The first steps are mostly noise, and every second step is as good as all.
        with trace(subject.pipeline, steps=range(STEPS // 3, STEPS, 2)) as traced:
            images = subject.paint(prompts, seeds)
        for pair, image, each in zip(pairs, images, traced, strict=True):
            painted.append(Shown(image, pair, each.segment(pair, background=None).labels))
    return tuple(painted)


def _largest(scene: bundled.Scene) -> tuple[str, ...]:
    counts = np.bincount(scene.labels.ravel(), minlength=len(scene.classes) + 1)[1:]
    return tuple(scene.classes[index] for index in sorted(np.argsort(-counts)[:2]))


def _mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def skill(first: Sequence[Labels], second: Sequence[Labels]) -> tuple[float, float, float]:
    """How much better two labellings of the same images agree than by chance.

    Args:
        first, second: Labels of each image, with two classes.

    Returns:
        (skill, mean IoU, mean IoU with the labels of the other images): skill is 1 for equal labels, 0 for chance.
    """
    same = [overlap(*pair) for pair in zip(first, second, strict=True)]
    others = [overlap(a, b) for i, a in enumerate(first) for j, b in enumerate(second) if i != j and a.shape == b.shape]
    mean, chance = float(np.mean(same)), float(np.mean(others)) if others else 0.0
    return (mean - chance) / max(1e-9, 1 - chance), mean, chance


def overlap(first: Labels, second: Labels) -> float:
    """The mean IoU of the classes that occur in either."""
    ious = [
        ((first == label) & (second == label)).sum() / union
        for label in np.union1d(first, second)
        if (union := ((first == label) | (second == label)).sum())
    ]
    return float(np.mean(ious))
