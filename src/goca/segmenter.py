"""Segmenter: image and class names in, labelled masks out, with a frozen text-to-image model."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from goca.aggregation import Maps, scores
from goca.diffusion.backbone import Backbone
from goca.diffusion.conditioning import EncodedPrompts
from goca.diffusion.families.spec import Family
from goca.diffusion.loading import load
from goca.errors import GocaError
from goca.imaging.images import ImageLike
from goca.maths.background import label
from goca.maths.edges import label_along_edges
from goca.recipe import AUTO, GOCA, Options, Recipe, plan, recipe_named
from goca.request import PreparedImage, SegmentationRequest, find_words, prepare
from goca.segmentation import ScoreMaps, Segmentation
from goca.text.token_spans import Classes
from goca.view import Row, View, ensemble_std, mean, together

LARGEST = 4
"""How many times the side that a model was trained at it may be shown: attention grows with the fourth power of it."""


class Segmenter:
    """A frozen text-to-image pipeline that labels images; nothing is trained.

    Make one with `from_pretrained` or `from_pipeline`. An image takes one denoiser pass, and more only for windows,
    several prompts, timesteps or seeds, and flips. `batch` rows go through the denoiser at once.
    """

    def __init__(self, backbone: Backbone, recipe: Recipe | str, overrides: Options, batch: int) -> None:
        recipe = recipe_named(recipe) if isinstance(recipe, str) else recipe
        if batch < 1:
            raise GocaError(f"batch {batch} is too small: give 1 or more")
        self.backbone, self.batch = backbone, batch
        joint = backbone.family.joint is not None
        made = plan(recipe, backbone.settings, backbone.blocks, backbone.name, overrides, joint)
        if made.size > LARGEST * backbone.settings.size:
            raise GocaError(
                f"size {made.size} is too large: {backbone.name} was trained at {backbone.settings.size} px a side, so "
                f"give {LARGEST * backbone.settings.size} or less, or window (--window) for large images"
            )
        self.plan = replace(made, device=backbone.device, dtype=backbone.dtype)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "bundled",
        recipe: Recipe | str = GOCA,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        variant: str | None = None,
        batch: int = 4,
        **overrides: Any,
    ) -> "Segmenter":
        """Load "bundled", a local diffusers folder or a Hub id.

        recipe: a `Recipe` or its name. overrides: fields of `recipe.Options`. Raises GocaError for what cannot be
        loaded.
        """
        pipeline = load(name, device, dtype, revision, variant)
        known_as = "@".join(str(part) for part in (name, revision, variant) if part is not None)
        return cls(Backbone(pipeline, known_as), recipe, Options.of(**overrides), batch)

    @classmethod
    def from_pipeline(
        cls, pipe: Any, recipe: Recipe | str = GOCA, batch: int = 4, family: Family | None = None, **overrides: Any
    ) -> "Segmenter":
        """Wrap a loaded pipeline; it stays as it is, and is used by one call at a time.

        family: the facts of its denoiser, where no family lists it: `goca.probing.probe(pipe)` finds them.
        """
        return cls(Backbone(pipe, family=family), recipe, Options.of(**overrides), batch)

    @overload
    def __call__(
        self,
        image: ImageLike,
        classes: Classes,
        background_classes: Sequence[str] = ...,
        background: Any = ...,
        caption: Any = ...,
    ) -> Segmentation: ...
    @overload
    def __call__(
        self,
        image: list[Any],
        classes: Classes,
        background_classes: Sequence[str] = ...,
        background: Any = ...,
        caption: Any = ...,
    ) -> list[Segmentation]: ...
    def __call__(
        self,
        image: ImageLike | list[Any],
        classes: Classes,
        background_classes: Sequence[str] = (),
        background: str | float | None = AUTO,
        caption: str | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Label an image, or each of a list.

        image: a path, a PIL image, or a (height, width, 3) uint8 array. classes: names, or {class: [synonyms]}.
        background_classes: nouns that take part but get no label. background: "auto" (the recipe's rule), a float
        (constant threshold on scores in [0, 1]), or None: every pixel gets a class. caption: the prompt, instead of the
        list of nouns; every noun must be in it. Raises GocaError for whatever of this cannot be done, saying why.
        """
        if isinstance(image, list):
            template = SegmentationRequest("", classes, background_classes, background, caption)
            return [_result(outcome) for _, outcome in self.stream(replace(template, image=item) for item in image)]
        request = SegmentationRequest(image, classes, background_classes, background, caption)
        return _result(next(self.stream([request]))[1])

    def stream(
        self, requests: Iterable[SegmentationRequest], prompts: EncodedPrompts | None = None
    ) -> Iterator[tuple[SegmentationRequest, Segmentation | GocaError]]:
        """Segment requests in their order, `batch` images at a time; a caption is encoded once in a stream.

        Args:
            requests: what to segment; read `batch` at a time.
            prompts: captions encoded before, by `check`.

        Yields:
            Each request with its segmentation, or with the error that says why it has none.
        """
        prompts = {} if prompts is None else prompts
        pending = iter(requests)
        while chunk := list(islice(pending, self.batch)):
            prepared = [self._prepare(request, prompts) for request in chunk]
            images = [image for image in prepared if not isinstance(image, GocaError)]
            with self._guarded():
                looks = list(self._looks(images, prompts))
            maps = zip(*looks, strict=True)
            for request, image in zip(chunk, prepared, strict=True):
                if isinstance(image, GocaError):
                    yield request, image
                else:
                    passes = next(maps)
                    yield request, self._settle(image, mean(passes), ensemble_std(passes))

    def check(
        self,
        classes: Classes,
        background_classes: Sequence[str] = (),
        caption: str | None = None,
        background: str | float | None = AUTO,
    ) -> EncodedPrompts:
        """Raise GocaError if this model cannot be asked this, before any image is read; the captions, encoded."""
        prompts: EncodedPrompts = {}
        with self._guarded():
            find_words(
                SegmentationRequest("", classes, background_classes, background, caption),
                self.plan,
                self.backbone,
                prompts,
            )
        return prompts

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Without gradients and without the caller's autocast; out of memory says which knob to turn."""
        try:
            with torch.no_grad(), torch.autocast(torch.device(self.backbone.device).type, enabled=False):
                yield
        except (MemoryError, RuntimeError) as error:
            # On a CPU torch raises a plain RuntimeError.
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
                raise GocaError(
                    f"out of memory with batch {self.batch} and size {self.plan.size}: lower one of them, "
                    'or load the model with dtype "float16" (--dtype)'
                ) from None
            raise

    def _prepare(self, request: SegmentationRequest, prompts: EncodedPrompts) -> PreparedImage | GocaError:
        try:
            with self._guarded():
                return prepare(request, self.plan, self.backbone, prompts)
        except GocaError as error:
            return error

    def _looks(self, images: Sequence[PreparedImage], prompts: EncodedPrompts) -> Iterator[list[Maps]]:
        """The maps of each image, once for every side, timestep and seed."""
        for mirrored in (False, True) if self.plan.flip else (False,):
            latents = [self._latents(image, mirrored) for image in images]
            for timestep, seed in product(self.plan.timestep, self.plan.seeds):
                views = [
                    View.of(self.plan, image, words, part, mirrored)
                    for image, part in zip(images, latents, strict=True)
                    for words in image.prompts
                ]
                maps = [one for part in self._batches(views) for one in self._maps(part, timestep, seed, prompts)]
                yield [
                    together([one for view, one in zip(views, maps, strict=True) if view.image is image], mirrored)
                    for image in images
                ]

    def _batches(self, views: Iterable[View]) -> Iterator[list[View]]:
        """Views whose rows fill a batch; a view is never divided, because its windows are joined."""
        part: list[View] = []
        for view in views:
            if part and sum(len(one.readouts) for one in (*part, view)) > self.batch:
                yield part
                part = []
            part.append(view)
        if part:
            yield part

    def _maps(self, views: Sequence[View], timestep: int, seed: int, prompts: EncodedPrompts) -> list[Maps]:
        """Send the rows of some views through the denoiser, each listened to by its readout; a view's maps."""
        alike: dict[Any, list[Row]] = {}  # what can share a batch
        for row in (row for view in views for row in view.rows()):
            alike.setdefault((row.size, self.backbone.prompt(row.caption, prompts).shape), []).append(row)
        for rows in alike.values():
            for part in (rows[start : start + self.batch] for start in range(0, len(rows), self.batch)):
                self.backbone.forward(
                    torch.cat([row.latent for row in part]),
                    [row.caption for row in part],
                    timestep,
                    seed,
                    lambda index, call, part=part: part[index].readout.add(call),  # type: ignore[misc]
                    prompts,
                    to_the_end=False,
                )
        found = [scores(self.plan, view.windows, view.readouts) for view in views]
        for view in views:
            view.readouts.clear()  # their affinities are large, and this was all they were for
        return found

    def _latents(self, image: PreparedImage, mirrored: bool) -> Tensor:
        """The encoding of every window of an image."""
        tiles = [ImageOps.mirror(tile) if mirrored else tile for tile in image.tiles]
        parts = (tiles[start : start + self.batch] for start in range(0, len(tiles), self.batch))
        return torch.cat([self.backbone.latents(part, image.size) for part in parts])

    def _settle(self, image: PreparedImage, maps: Maps, std: Tensor | None) -> Segmentation:
        """Upsample, settle the background, label; and write down the plan that ran."""
        if self.plan.refine_edges:
            pixels = torch.from_numpy(np.array(image.image)).to(maps.classes.device)
            labels = label_along_edges(maps.classes, maps.background, image.background, pixels)
        else:
            size = (image.image.height, image.image.width)
            labels = label(maps.classes, maps.background, image.background, size)
        ran = replace(
            self.plan,
            background=image.background,
            captions=tuple(words.caption for words in image.prompts),
            notes=image.notes,
        )
        return Segmentation(
            image=image.image,
            classes=image.classes,
            labels=labels.cpu().numpy().astype(np.uint16),
            scores=ScoreMaps(maps.classes.cpu().numpy(), _array(maps.background), _array(std)),
            plan=ran,
        )


def _result(outcome: Segmentation | GocaError) -> Segmentation:
    if isinstance(outcome, GocaError):
        raise outcome
    return outcome


def _array(maps: Tensor | None) -> np.ndarray | None:
    return None if maps is None else maps.cpu().numpy()
