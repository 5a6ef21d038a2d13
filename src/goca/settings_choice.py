"""Settings for an unlisted checkpoint, chosen by its attention to images, without labels.

The model processes a few images at several timesteps. For every block that may be the reference, and every block that
may refine, a criterion measures how much of an image's structure its affinity shows; the best ones are taken. The order
stays the family's. docs/settings.md has the benefit and the cost.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from goca.aggregation import dense_feature
from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.backbone import Backbone, BackboneSession, BatchItem
from goca.diffusion.checkpoints import AUTO, automatic_settings_of, kept_settings, write_settings
from goca.diffusion.families.spec import CheckpointSettings
from goca.diffusion.fingerprint import has_meta_weights
from goca.diffusion.timesteps import check_timestep
from goca.errors import GocaError
from goca.imaging import images as image_files
from goca.imaging.images import ImageLike
from goca.maths import Grid
from goca.maths.attention import affinity_blocks, joint_blocks, probabilities
from goca.maths.structure import (
    Affinities,
    Figures,
    Repeatability,
    explained_by_others,
    mirrored,
    pooled,
    pooling,
    predicted,
    segments,
)
from goca.plan import Options
from goca.planned_model import PlannedModel, prototypes_of
from goca.prototype_learning import LearningOptions, paint, palette
from goca.recipe import GOCA_OPEN, Recipe
from goca.segmenter import Segmenter
from goca.text.nouns import Noun, caption_of, parse_nouns
from goca.text.token_spans import NounTokens, find_noun_tokens

CELLS: Grid = (16, 16)
"""All affinities are compared on this grid of cells: 262 KB each, whatever the model's grids are."""
TIMESTEPS = (50, 100, 200, 300)
"""Timesteps that are tried, besides the family's own."""
REFINING = 3
"""Number of blocks that refine: as many as the authors took of SD 1.5's 16."""
PAINTED = 16
"""Number of images that a model generates for the choice."""
LOADING = ("device", "dtype", "revision", "variant", "batch")
"""Arguments of `Segmenter.from_pretrained` that matter when settings are chosen; the others plan."""
SEED = 0
"""Seeds of the generated images, and of the noise that is added to images."""


class Looks:
    """The looks at one image at one timestep; those that no criterion asks for are not made.

    Args:
        look: Makes a look, at the mirrored image or not, under noise of a seed.
        colours: Colours of the cells, 0 to 1.
    """

    def __init__(self, look: "Callable[[bool, int], AffinityLook]", colours: Float[Tensor, "3 cell"]) -> None:
        self._look, self.colours = look, colours

    @cached_property
    def plain(self) -> "AffinityLook":
        """The look at the unflipped image."""
        return self._look(False, SEED)

    @cached_property
    def mirror(self) -> "AffinityLook":
        """The look at the mirrored image."""
        return self._look(True, SEED)

    @property
    def affinities(self) -> Affinities:
        """Affinities of the candidates: those for the reference, then those for refinement."""
        return self.plain.candidates()

    @property
    def others(self) -> Affinities:
        """For each candidate, the mean self-attention of the other blocks."""
        return self.plain.others()

    @property
    def reseeded(self) -> Affinities:
        """Affinities of the candidates under other noise."""
        return self._look(False, SEED + 1).candidates()

    @property
    def mirrored(self) -> Affinities:
        """Affinities of the candidates on the mirrored image, mirrored back."""
        return mirrored(self.mirror.candidates(), CELLS)

    @property
    def nouns(self) -> Float[Tensor, "noun cell"]:
        """Each noun's share of the attention to nouns, the mean over blocks."""
        return self.plain.nouns()

    @property
    def mirrored_nouns(self) -> Float[Tensor, "noun cell"]:
        """The same for the mirrored image, mirrored back."""
        return self.mirror.nouns().reshape(-1, *CELLS).flip(-1).flatten(1)


class Criterion(Protocol):
    """Sums up the looks at images at one timestep."""

    def add(self, looks: Looks) -> None:
        """Add an image."""
        ...

    def value(self) -> Figures:
        """How good each candidate is; higher is better."""
        ...


class _Repeated:
    """A candidate is good if a second affinity shows the same structure in each image."""

    def __init__(self, second: Callable[[Looks], Affinities]) -> None:
        self._second, self._sums = second, Repeatability()

    def add(self, looks: Looks) -> None:
        self._sums.add(looks.affinities, self._second(looks))

    def value(self) -> Figures:
        return self._sums.value()


class _Mean:
    """A candidate is as good as its mean figure over images."""

    def __init__(self, figures: Callable[[Looks], Figures]) -> None:
        self._of, self._figures = figures, list[Figures]()

    def add(self, looks: Looks) -> None:
        self._figures.append(self._of(looks))

    def value(self) -> Figures:
        return torch.stack(self._figures).mean(0)


def _few_segments(looks: Looks) -> Figures:
    """Highest midway, on a logarithmic scale, between a single segment and one segment per cell."""
    middle = 0.5 * np.log(CELLS[0] * CELLS[1])
    return -(segments(looks.affinities) - middle).abs()


CRITERIA: Mapping[str, Callable[[], Criterion]] = {
    "agreement": partial(_Repeated, lambda looks: looks.others),
    "noise": partial(_Repeated, lambda looks: looks.reseeded),
    "mirror": partial(_Repeated, lambda looks: looks.mirrored),
    "segments": partial(_Mean, _few_segments),
    "colour": partial(_Mean, lambda looks: explained_by_others(looks.affinities, looks.colours)),
    "nouns": partial(_Mean, lambda looks: explained_by_others(looks.affinities, looks.nouns)),
    "prediction": partial(_Mean, lambda looks: predicted(looks.affinities, looks.nouns, looks.mirrored_nouns)),
}
"""The criteria of a good affinity:

- agreement: it shows the same structure of each image as the mean self-attention of the other blocks.
- noise, mirror: it shows the same structure under other noise, and in the mirrored image.
- segments: it separates a few segments, neither one nor one per cell.
- colour, nouns: the colours, or noun maps, of a cell follow from those of the cells that it attends to.
- prediction: noun maps that it refines agree better with those of the mirrored image.
"""
CRITERION = "agreement"
"""The criterion that is used."""


@dataclass(frozen=True)
class Measured:
    """The figures of every candidate by several criteria.

    Attributes:
        timesteps: The timesteps that were tried.
        references, refinements: The candidate blocks for each, in the order in which they run.
        figures: {criterion: figures of the references, then of the refinements}.
    """

    timesteps: tuple[int, ...]
    references: tuple[str, ...]
    refinements: tuple[str, ...]
    figures: Mapping[str, Float[Tensor, "timestep candidate"]]

    def best(self, criterion: str = CRITERION, refining: int = REFINING) -> dict[str, Any]:
        """The timestep, reference and refine of settings: those with the largest sum of figures.

        Ties go to the earlier candidate. refining: number of blocks that refine.
        """
        options = []
        for timestep, figures in zip(self.timesteps, self.figures[criterion], strict=True):
            references, refinements = figures.split([len(self.references), len(self.refinements)])
            first = int(references.argmax())
            chosen = sorted(refinements.argsort(descending=True, stable=True)[:refining].tolist())
            settings = {
                "timestep": timestep,
                "reference": self.references[first],
                "refine": tuple(self.refinements[index] for index in chosen),
            }
            options.append((float(references[first] + refinements[chosen].mean()), settings))
        return max(options, key=lambda option: option[0])[1]


class AffinityLook:
    """The affinities of one pass, and each noun's attention: `add` while the denoiser runs."""

    def __init__(self, blocks: Sequence[str], feature: str, tokens: NounTokens) -> None:
        self.blocks, self.feature, self.tokens = frozenset(blocks), feature, tokens
        self.references: dict[str, Float[Tensor, "cell cell"]] = {}
        self.refinements: dict[str, Float[Tensor, "cell cell"]] = {}
        self._nouns: list[Float[Tensor, "noun cell"]] = []

    def add(self, call: AttentionCall) -> None:
        if call.block not in self.blocks:
            return
        pool = pooling(call.grid, CELLS, call.q)
        if call.text is not None:
            feature = dense_feature(call, self.feature)[None]
            rows = affinity_blocks(feature, feature, feature.shape[-1] ** -0.5)
            self.references[call.block] = pooled(rows, pool)
            attention = _attention_to_text(call)
            nouns = torch.stack([attention[:, list(columns)].mean(1) for columns in self.tokens.nouns])
            self._nouns.append(nouns @ pool.T)
        if call.image is not None:
            rows = affinity_blocks(call.q, call.k, call.scale, image=call.image, mask=call.mask)
            self.refinements[call.block] = pooled(rows, pool)

    def nouns(self) -> Float[Tensor, "noun cell"]:
        """See `Looks.nouns`."""
        total = torch.stack(self._nouns).sum(0)
        return total / total.sum(0).clamp(min=1e-12)

    def candidates(self) -> Affinities:
        """See `Looks.affinities`."""
        return torch.stack([*self.references.values(), *self.refinements.values()])

    def others(self) -> Affinities:
        """See `Looks.others`."""
        total = torch.stack([*self.refinements.values()]).sum(0)
        means = {block: total / len(self.refinements) for block in self.references}
        means |= {block: (total - each) / (len(self.refinements) - 1) for block, each in self.refinements.items()}
        return torch.stack([means[block] for block in (*self.references, *self.refinements)])


def _attention_to_text(call: AttentionCall) -> Float[Tensor, "pixel token"]:
    """The mean over heads."""
    if call.image is None or call.text is None:
        return probabilities(call.q, call.k, call.scale, call.mask).mean(0)
    blocks = joint_blocks(call.q, call.k, call.scale, None, call.text, call.image, call.mask)
    return torch.cat([tokens for _, tokens, _ in blocks])


def choose_settings(
    model: PlannedModel, images: Sequence[ImageLike] | None = None, nouns: Sequence[str] | None = None
) -> CheckpointSettings:
    """Choose the settings of a model's checkpoint by its attention to images, without labels.

    The same images give the same settings, in any order.

    Args:
        model: A `Segmenter`; its size and batch are used, its own settings are not.
        images: Two or more; by default the model generates some, with fixed seeds.
        nouns: Nouns to generate, and that the prompt names; by default the vocabulary of a model that knows no other
            words, else its background nouns.

    Returns:
        Settings to pass as `settings` to `from_pretrained` or `from_pipeline`, or to write to a file with
        `write_settings`.

    Raises:
        GocaError: There are fewer than two images or nouns, or an image or the model's attention cannot be read.
    """
    listed = tuple(nouns or model.backbone.settings.nouns or model.backbone.settings.background_classes)
    if images is not None and len(images) < 2:
        raise GocaError("settings are chosen by comparing images: give two or more", hint="images")
    measured = measure(model, painted(model, listed) if images is None else images, listed, [CRITERION])
    source = "generated by the model" if images is None else "of the user's"
    count = PAINTED if images is None else len(images)
    return replace(
        model.backbone.settings,
        **measured.best(),
        origin=f'chosen without labels, by the criterion "{CRITERION}" on {count} images {source}',
    )


def automatic_settings(model: Segmenter) -> CheckpointSettings:
    """The settings behind "auto": chosen on 16 images that the model generates, then kept in the user's cache.

    The seeds are fixed, the images have the model's own size, and the cache is keyed by the weights, so every process
    gets the same settings. From then on `settings="auto"` finds them.

    Args:
        model: Created without settings; its batch is used.

    Raises:
        GocaError: As for `choose_settings`.
    """
    backbone = model.backbone
    # An offloaded model's weights are on no device; its fingerprint would equal that of its fine-tunes.
    known = not has_meta_weights(backbone.pipeline)
    if known and (kept := automatic_settings_of(backbone.pipeline, backbone.settings, backbone.blocks, backbone.name)):
        return kept
    chosen = choose_settings(model.with_plan(replace(model.plan, size=backbone.settings.size)))
    if known:
        with suppress(GocaError):  # if they cannot be written, they are chosen again next time
            write_settings(chosen, kept_settings(backbone.pipeline))
    return chosen


def load_segmenter(name: str | Path, recipe: Recipe | str = GOCA_OPEN, **options: Any) -> Segmenter:
    """`Segmenter.from_pretrained`, but the settings "auto" are chosen unless that was done before.

    Args:
        name, recipe: As for `Segmenter.from_pretrained`.
        options: Its further arguments.

    Raises:
        GocaError: As for `Segmenter.from_pretrained` and `automatic_settings`.
    """
    if options.get("settings") != AUTO:
        return Segmenter.from_pretrained(name, recipe, **options)
    loaded = Segmenter.from_pretrained(name, **{key: options[key] for key in LOADING if key in options})
    backbone = Backbone(loaded.backbone.pipeline, loaded.backbone.name, settings=automatic_settings(loaded))
    prototypes = prototypes_of(backbone, options.get("prototypes"))
    planning = {key: value for key, value in options.items() if key not in (*LOADING, "settings", "prototypes")}
    return Segmenter(backbone, recipe, Options(**planning), loaded.batch, prototypes)


def painted(model: PlannedModel, nouns: Sequence[str], count: int = PAINTED) -> list[Image.Image]:
    """Images of nouns that a model generates, always the same."""
    captions = islice(palette(model, nouns).captions(count, SEED), count)
    return [paint(model, caption, seed, LearningOptions()) for seed, caption in enumerate(captions, start=SEED)]


@torch.no_grad()
def measure(
    model: PlannedModel, images: Sequence[ImageLike], nouns: Sequence[str], criteria: Sequence[str]
) -> Measured:
    """The figures of a model's blocks by several criteria.

    An image takes a denoiser row at each timestep, and one more for each further look that a criterion needs. Memory:
    an affinity of one image at a time for each candidate and look, and two sums over all images for each criterion; for
    "agreement" and the 2 x 57 candidates of Flux.1 about 120 MB.
    """
    backbone, session = model.backbone, model.backbone.session()
    scheduler = backbone.pipeline.scheduler
    timesteps = tuple(sorted({*TIMESTEPS, backbone.settings.timestep}))
    for timestep in timesteps:
        check_timestep(scheduler, timestep)
    named, _ = parse_nouns(list(nouns), ())
    while len(named) > 2 and not backbone.fits(named):
        named = named[:-1]
    with model.inference():
        tokens = _tokens(session, named)
        figures: dict[str, list[Figures]] = {name: [] for name in criteria}
        seen = [_Seen.of(model, image) for image in images]
        blocks: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
        for timestep in timesteps:
            measures = {name: CRITERIA[name]() for name in criteria}
            for image in seen:
                looks = _looks(model, session, image, tokens, timestep)
                blocks = tuple(looks.plain.references), tuple(looks.plain.refinements)
                for each in measures.values():
                    each.add(looks)
            for name, each in measures.items():
                figures[name].append(each.value().float().cpu())
    return Measured(timesteps, *blocks, {name: torch.stack(each) for name, each in figures.items()})


def _tokens(session: BackboneSession, nouns: Sequence[Noun]) -> NounTokens:
    caption = caption_of(nouns)
    return find_noun_tokens(caption, session.backbone.texts(session.prompt(caption)), nouns, (), named=False)


@dataclass(frozen=True)
class _Seen:
    """An image as the model's input.

    Attributes:
        size: (height, width) in pixels.
        latents: The encoded image, and the mirrored one.
        colours: Colours of the cells, 0 to 1.
    """

    size: Grid
    latents: Float[Tensor, "2 channel height width"]
    colours: Float[Tensor, "3 cell"]

    @classmethod
    def of(cls, model: PlannedModel, image: ImageLike) -> "_Seen":
        backbone, loaded = model.backbone, image_files.load(image)
        size = backbone.fit(loaded, model.plan.size)
        latents = backbone.latents([loaded, ImageOps.mirror(loaded)], size, model.batch)
        cells = np.asarray(loaded.resize(CELLS[::-1], Image.Resampling.BOX), np.float32).reshape(-1, 3) / 255
        return cls(size, latents, torch.from_numpy(cells).T.to(latents.device))


def _looks(model: PlannedModel, session: BackboneSession, image: _Seen, tokens: NounTokens, timestep: int) -> Looks:
    """The looks at an image, each a pass of one row."""

    def look(is_mirrored: bool, seed: int) -> AffinityLook:
        backbone, latent = model.backbone, image.latents[int(is_mirrored)][None]
        made = AffinityLook(backbone.blocks, backbone.settings.feature, tokens)
        session.run([BatchItem(latent, image.size, tokens.caption, timestep, seed, made.add)], model.batch)
        return made

    return Looks(look, image.colours)
