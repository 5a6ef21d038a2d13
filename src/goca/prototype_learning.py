"""Learn prototypes: a model generates images of nouns, segments them, and so shows what the nouns look like to it.

Nothing is trained and no labels are needed: the published method labels each generated image with the nouns of its own
caption, and each noun's pixels are averaged over the features of a pass without a caption; nouns that come in several
shapes are split into a few groups.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.backbone import BatchItem
from goca.diffusion.timesteps import check_timestep
from goca.errors import GocaError
from goca.generation import Generated, GenerationOptions, generate
from goca.maths import Grid
from goca.maths.prototypes import ClassMoments, discriminants, k_means
from goca.maths.resize import resize
from goca.plan import Options, versions
from goca.planned_model import PlannedModel
from goca.prototypes import CAPTION, Prototypes, features_of, weight_sample
from goca.recipe import GOCA_BALANCED
from goca.request import PreparedImage, SegmentationRequest
from goca.segmentation import Segmentation
from goca.segmenter import Segmenter
from goca.text.background_nouns import background_nouns
from goca.text.nouns import Noun, caption_of, in_vocabulary, parse_nouns

Outcome = TypeVar("Outcome")
CallSink = Callable[[AttentionCall], None]
STYLES = 1_000_000
"""Distance between the seeds of an image's styles."""
SAMPLED = 50
"""Most cells of each noun in each image from which the groups are found."""
PURE = 0.9
"""A cell of the common grid counts if more than this share of its pixels has one label."""


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """How prototypes are learned.

    Attributes:
        images: Number of images to generate for each noun.
        steps, scale: Number of sampling steps, and guidance scale; None for the pipeline's own.
        seed: Seed of the captions, and of the first image.
        timestep: Noise level of the features, 0 to 999; None for the model's own.
        shrinkage: See `goca.maths.prototypes.discriminants`.
        max_channels: A block with more channels is projected onto this many random directions.
        restyled: Number of further passes over each image in other colours, so that nouns are recognised beyond the
            style in which the model generates them.
        gaussians: Number of groups for the cells of a noun; the surrounding nouns have one group each.
    """

    images: int = 15
    steps: int | None = 20
    scale: float | None = None
    seed: int = 0
    timestep: int | None = None
    shrinkage: float = 0.03
    max_channels: int = 64
    restyled: int = 2
    gaussians: int = 4

    def __post_init__(self) -> None:
        for name in ("images", "max_channels", "gaussians", *(() if self.steps is None else ("steps",))):
            if getattr(self, name) < 1:
                raise GocaError(f"{name} {getattr(self, name)} is too few: give 1 or more", hint=name)
        if not self.shrinkage > 0:
            raise GocaError(f"shrinkage {self.shrinkage} is not valid: give a number above 0", hint="shrinkage")


@dataclass(frozen=True)
class Learned:
    """Progress: how many of the images have been generated and processed."""

    done: int
    images: int


class Palette(NamedTuple):
    """The nouns of the captions. Each image shows one or two of `leading` and one or two of `around`."""

    leading: tuple[Noun, ...]
    around: tuple[Noun, ...]

    @property
    def nouns(self) -> tuple[Noun, ...]:
        return self.leading + self.around

    def captions(self, count: int, seed: int) -> Iterator[tuple[Noun, ...]]:
        """Captions as tuples of nouns; each leading noun comes first equally often, joined by others at random."""
        draw = random.Random(seed)
        for index in range(count):
            first = self.leading[index % len(self.leading)]
            others = [noun for noun in self.leading if noun is not first]
            nouns = [first, *draw.sample(others, min(len(others), draw.randint(0 if self.around else 1, 1)))]
            nouns += draw.sample(self.around, min(len(self.around), draw.randint(1, 2)))
            draw.shuffle(nouns)
            yield tuple(nouns)


def palette(model: PlannedModel, classes: Sequence[str], background_classes: Sequence[str] | None = None) -> Palette:
    """The nouns to generate with a model, in its own words.

    Args:
        model: The model, with its list of background nouns.
        classes: The wanted nouns; those on the model's list are generated around the others.
        background_classes: The nouns around them; None for the model's list, minus those that compete with a class.

    Raises:
        GocaError: The list has fewer than two nouns, or one that the model does not know.
    """
    wanted, around = parse_nouns(classes, background_classes)
    listed = model.plan.background_classes
    if background_classes is None:
        around = background_nouns(listed, wanted)
    if known := model.backbone.settings.nouns:
        nouns = [
            Noun(noun.words[0], noun.words[:1]) for noun in in_vocabulary(wanted + around, known, model.backbone.name)
        ]
        wanted, around = tuple(nouns[: len(wanted)]), tuple(nouns[len(wanted) :])
    leading = tuple(noun for noun in wanted if noun.name not in listed)
    around += tuple(noun for noun in wanted if noun.name in listed)
    if len(leading + around) < 2:
        raise GocaError("prototypes distinguish nouns: name two or more", hint="classes")
    return Palette(leading, around) if leading else Palette(around, ())


def learn(
    segmenter: Segmenter,
    classes: Sequence[str],
    background_classes: Sequence[str] | None = None,
    options: LearningOptions = LearningOptions(),
) -> Iterator[Learned | Prototypes]:
    """Learn prototypes of nouns from images that the model generates; its pipeline is not changed.

    Args:
        segmenter: Its model, size and batch are used; its recipe is not.
        classes, background_classes: The nouns, see `palette`; all of them get prototypes.
        options: See `LearningOptions`.

    Yields:
        `Learned` after each batch of images, and finally the `Prototypes`.

    Raises:
        GocaError: Nouns or options are not valid, the pipeline cannot generate, or its images never show
            one of the nouns.
    """
    nouns = palette(segmenter, classes, background_classes)
    learner = PrototypeLearner(segmenter, nouns, options)
    count = options.images * len(nouns.nouns)
    painting = enumerate(nouns.captions(count, options.seed), start=options.seed)
    done = 0
    while drawn := list(islice(painting, segmenter.batch)):
        images = [paint(segmenter, caption, seed, options) for seed, caption in drawn]
        learner.add(learner.label(images, [caption for _, caption in drawn]), drawn[0][0])
        done += len(drawn)
        yield Learned(done, count)
    yield learner.prototypes()


def paint(model: PlannedModel, nouns: Sequence[Noun], seed: int, options: LearningOptions) -> Image.Image:
    """Generate an image of the nouns, by the model's own pipeline and sampler."""
    sampling = GenerationOptions(
        prompt=caption_of(nouns), steps=options.steps, scale=options.scale, size=model.plan.size
    )
    events = generate(model.backbone.pipeline, sampling, [seed])
    return next(event.image for event in events if isinstance(event, Generated))


def restyled(image: Image.Image, seed: int) -> Image.Image:
    """The image in another style: other colours; sometimes softer, sharper or flatter; outlined every second time."""
    draw = random.Random(seed)
    hue, saturation, value = image.convert("HSV").split()
    shift = draw.randint(-20, 20)
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    ranges = ((ImageEnhance.Color, 0.3, 1.6), (ImageEnhance.Contrast, 0.7, 1.4), (ImageEnhance.Brightness, 0.75, 1.25))
    for enhancer, low, high in ranges:
        image = enhancer(image).enhance(draw.uniform(low, high))
    kind = draw.random()
    if kind < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(draw.uniform(0.3, 0.9)))
    elif kind < 0.6:
        image = image.filter(ImageFilter.UnsharpMask(2, draw.randint(80, 250), 0))
    image = ImageOps.posterize(image, draw.randint(2, 3)) if draw.random() < 0.3 else image
    return outlined(image, draw) if draw.random() < 0.5 else image


def outlined(image: Image.Image, draw: random.Random) -> Image.Image:
    """The image with its edges drawn in a dark colour."""
    slope = np.hypot(*np.gradient(np.asarray(image.convert("L"), np.float32)))
    opacity = 255 * draw.uniform(0.4, 1) * (slope / draw.uniform(25, 60)).clip(max=1)
    ink = Image.new("RGB", image.size, tuple(draw.randint(0, 70) for _ in range(3)))
    return Image.composite(ink, image, Image.fromarray(opacity.astype(np.uint8)))


def _done(outcome: Outcome | GocaError) -> Outcome:
    if isinstance(outcome, GocaError):
        raise outcome
    return outcome


class Reduction(NamedTuple):
    """A reduction of a block's channels to a few standardised features: (channels - mean) @ matrix."""

    mean: Float[Tensor, " channel"]
    matrix: Float[Tensor, "channel feature"]


class ChannelMoments:
    """The mean and standard deviation of each channel of every block, over all pixels that were added."""

    def __init__(self) -> None:
        self.count: dict[str, int] = {}
        self.sums: dict[str, Float[Tensor, "2 channel"]] = {}

    def add(self, call: AttentionCall) -> None:
        if call.text is None:
            return
        channels = features_of(call).cpu().double()
        sums = torch.stack([channels.sum(1), channels.square().sum(1)])
        self.count[call.block] = self.count.get(call.block, 0) + channels.shape[1]
        self.sums[call.block] = self.sums.get(call.block, 0) + sums

    def reductions(self, max_channels: int, seed: int) -> dict[str, Reduction]:
        """One feature per channel of a block or, if there are more than `max_channels`, random sums of them."""
        return {block: self._reduction(block, max_channels, seed) for block in self.count}

    def _reduction(self, block: str, max_channels: int, seed: int) -> Reduction:
        mean, square = self.sums[block] / self.count[block]
        std = (square - mean.square()).clamp(min=0).sqrt()
        matrix = torch.where(std > 0, 1 / std, 0.0).diag()
        if len(mean) > max_channels:
            generator = torch.Generator().manual_seed(seed)
            directions = torch.randn(len(mean), max_channels, generator=generator, dtype=torch.float64)
            matrix = matrix @ directions / len(mean) ** 0.5
        return Reduction(mean, matrix)


class FeatureMap:
    """The reduced features of one window, each block's on its own grid: `add` while the denoiser runs, then `value`."""

    def __init__(self, reductions: Mapping[str, Reduction]) -> None:
        self.reductions = reductions
        self._maps: dict[str, Float[Tensor, "feature height width"]] = {}

    def add(self, call: AttentionCall) -> None:
        if call.text is None:
            return
        channels = features_of(call)
        mean, matrix = self.reductions[call.block]
        reduced = matrix.T.to(channels) @ (channels - mean.to(channels)[:, None])
        self._maps[call.block] = rearrange(reduced, "feature (h w) -> feature h w", h=call.grid[0])

    def value(self, grid: Grid) -> Float[Tensor, "feature height width"]:
        """The features of all blocks on the common grid."""
        return torch.cat([resize(self._maps[block], grid) for block in self.reductions])


class PrototypeLearner:
    """Gathers the features of nouns in images: `add` a batch of images at a time, then `prototypes`.

    Every image is kept, because cells can be grouped only after all images have been added.
    """

    def __init__(self, segmenter: PlannedModel, nouns: Palette, options: LearningOptions) -> None:
        size = Options(size=segmenter.plan.size)
        self.segmenter = Segmenter(segmenter.backbone, GOCA_BALANCED, size, segmenter.batch)
        self.timestep = self.segmenter.plan.timestep[0] if options.timestep is None else options.timestep
        check_timestep(segmenter.backbone.pipeline.scheduler, self.timestep)
        self.nouns, self.options = nouns.nouns, replace(options, timestep=self.timestep)
        self._groups = [options.gaussians] * len(nouns.leading) + [1] * len(nouns.around)
        self._session = segmenter.backbone.session()
        self._reductions: dict[str, Reduction] = {}
        self._samples: list[list[Float[Tensor, "cell feature"]]] = [[] for _ in self.nouns]
        self._images: list[tuple[list[Segmentation], int]] = []

    def label(self, images: Sequence[Image.Image], captions: Sequence[Sequence[Noun]]) -> list[Segmentation]:
        """Label every pixel of images with the nouns of their captions. Raises GocaError if that fails."""
        requests = [
            SegmentationRequest(image, [noun.name for noun in caption], background=None)
            for image, caption in zip(images, captions, strict=True)
        ]
        return [_done(outcome) for _, outcome in self.segmenter.stream(requests, self._session)]

    def add(self, labelled: Sequence[Segmentation], seed: int) -> None:
        """Add labelled images. seed: of the first image, and of the noise over them."""
        for features, each in zip(self._features(labelled, seed), labelled, strict=True):
            cells, nouns = self._pure_cells(features, each)
            for index in nouns.unique().tolist():
                of_noun = cells[nouns == index]
                self._samples[index].append(of_noun[:: -(-len(of_noun) // SAMPLED)].clone())
        self._images.append((list(labelled), seed))

    def prototypes(self) -> Prototypes:
        """The prototypes of all nouns that the images show. Raises GocaError if that is fewer than two."""
        moments = self._moments()
        parts = moments.counts.split(self._groups)
        shown = [index for index, part in enumerate(parts) if part.any()]
        if len(shown) < 2:
            raise GocaError("the images show fewer than two nouns: generate more of them", hint="images")
        rows = moments.counts.nonzero().flatten()
        reductions = self._reductions.values()
        reduced, bias = discriminants(moments, self.options.shrinkage)
        by_block = reduced.split([reduction.matrix.shape[1] for reduction in reductions], 1)
        weight = torch.cat([part @ each.matrix.T for part, each in zip(by_block, reductions, strict=True)], 1)[rows]
        # From the weights as they are stored, so that large channel means are subtracted exactly.
        shift = weight.float().double() @ torch.cat([reduction.mean for reduction in reductions])
        backbone = self.segmenter.backbone
        return Prototypes(
            nouns=tuple(self.nouns[index].name for index in shown),
            channels={block: len(reduction.mean) for block, reduction in self._reductions.items()},
            timestep=self.timestep,
            gaussians=tuple(int(parts[index].count_nonzero()) for index in shown),
            weight=weight.float(),
            bias=(bias[rows] - shift).float(),
            sample=weight_sample(backbone.denoiser),
            facts={
                "model": backbone.name,
                "recipe": self.segmenter.plan.recipe,
                "batch": self.segmenter.batch,
                **asdict(self.options),
                "cells": {noun.name: int(part.sum()) for noun, part in zip(self.nouns, parts, strict=True)},
                "versions": dict(versions()),
            },
        )

    def _moments(self) -> ClassMoments:
        """The moments of every noun's groups, over all images in their own and in other styles."""
        centres = [
            k_means(torch.cat(sample), count, self.options.seed) if sample else None
            for sample, count in zip(self._samples, self._groups, strict=True)
        ]
        first = torch.tensor([0, *self._groups]).cumsum(0)
        moments = ClassMoments(sum(self._groups), sum(each.matrix.shape[1] for each in self._reductions.values()))
        for labelled, seed in self._images:
            groups: list[Int[Tensor, " cell"]] = []
            for copy in range(self.options.restyled + 1):
                again = [
                    replace(each, image=restyled(each.image, seed + index + STYLES * copy)) if copy else each
                    for index, each in enumerate(labelled)
                ]
                cells = [
                    self._pure_cells(features, each)
                    for features, each in zip(self._features(again, seed), again, strict=True)
                ]
                # A cell stays in its group in every style.
                groups = groups or [first[nouns] + _nearest(points, nouns, centres) for points, nouns in cells]
                for (points, _), group in zip(cells, groups, strict=True):
                    moments.add(points.T, group)
        return moments

    def _features(self, labelled: Sequence[Segmentation], seed: int) -> list[Float[Tensor, "feature height width"]]:
        """One pass over single-window images without a caption; the first images set the scale of each channel."""
        requests = [SegmentationRequest(each.image, each.classes, background=None) for each in labelled]
        prepared = [_done(self.segmenter.prepare(request, self._session)) for request in requests]
        with self.segmenter.inference():
            if not self._reductions:
                moments = ChannelMoments()
                self._look(prepared, [moments.add] * len(prepared), seed)
                self._reductions = moments.reductions(self.options.max_channels, self.options.seed)
            maps = [FeatureMap(self._reductions) for _ in prepared]
            self._look(prepared, [each.add for each in maps], seed)
            return [each.value(image.windows.canvas).cpu() for each, image in zip(maps, prepared, strict=True)]

    def _look(
        self, images: Sequence[PreparedImage], sinks: Sequence[Callable[[AttentionCall], None]], seed: int
    ) -> None:
        """Run a pass; each sink takes its image's attention."""
        backbone = self.segmenter.backbone
        latents = [backbone.latents(image.tiles, image.size) for image in images]
        self._session.run(
            (
                BatchItem(latent, image.size, CAPTION, self.timestep, seed, sink)
                for latent, image, sink in zip(latents, images, sinks, strict=True)
            ),
            self.segmenter.batch,
        )

    def _pure_cells(
        self, features: Float[Tensor, "feature height width"], segmentation: Segmentation
    ) -> tuple[Float[Tensor, "cell feature"], Int[Tensor, " cell"]]:
        """The cells that show a single noun, and its index."""
        names = [noun.name for noun in self.nouns]
        labels = torch.from_numpy(segmentation.labels.astype(np.int64)) - 1
        masks = F.one_hot(labels, len(segmentation)).permute(2, 0, 1).float()
        purity, label = F.adaptive_avg_pool2d(masks, (features.shape[1], features.shape[2])).max(0)
        index = torch.tensor([names.index(name) for name in segmentation.classes])[label]
        pure = purity > PURE
        return features[:, pure].T, index[pure]


def _nearest(
    points: Float[Tensor, "cell feature"],
    nouns: Int[Tensor, " cell"],
    centres: Sequence[Float[Tensor, "_group feature"] | None],
) -> Int[Tensor, " cell"]:
    """The nearest group of each cell, among those of its noun."""
    nearest = torch.zeros_like(nouns)
    for index in nouns.unique().tolist():
        of_noun = nouns == index
        of_centres = centres[index]
        assert of_centres is not None  # every noun with cells has a sample
        nearest[of_noun] = torch.cdist(points[of_noun], of_centres).argmin(1)
    return nearest
