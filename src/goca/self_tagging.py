"""The diffusion model as its own tagger: of some candidates it keeps those that it sees, without a second model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from goca.diffusion.backbone import BackboneSession
from goca.diffusion.timesteps import target
from goca.errors import GocaError
from goca.imaging import images
from goca.plan import Options
from goca.planned_model import PlannedModel
from goca.recipe import GOCA_BALANCED, Recipe
from goca.tagging import is_self, tagger_named
from goca.tagging.answers import parse, write
from goca.tagging.base import ImageCollection, TaggableImage, Tagger
from goca.text.nouns import in_vocabulary, parse_nouns


@runtime_checkable
class PresenceScorer(Protocol):
    """Says how surely an image shows each of some candidates; what scores at least `threshold` counts as shown."""

    @property
    def name(self) -> str: ...

    @property
    def threshold(self) -> float: ...

    def scores(
        self, segmenter: PlannedModel, image: Image.Image, candidates: Sequence[str]
    ) -> Float[Tensor, " candidate"]:
        """A score for each candidate, the higher the surer; -inf for one that was dropped on the way."""
        ...


@dataclass(frozen=True, kw_only=True)
class DenoisingErrorScorer:
    """Which candidate helps the model most to tell the noise from the image, compared position by position.

    Each candidate alone is the prompt, at several timesteps, each with one noise for all candidates. A candidate's
    score is the share of the image where the error, averaged over a window, falls most with it. The drop over the whole
    image says less: it misses small things, and a prompt of one noun is wrong about all the others.

    Attributes:
        timesteps: training timesteps, 0 to 1000.
        window: side of the window, as a share of the image's.
        threshold: see `PresenceScorer`.
    """

    timesteps: tuple[int, ...] = (400, 600, 800)
    window: float = 0.3
    threshold: float = 0.115
    name: str = "error"

    def scores(
        self, segmenter: PlannedModel, image: Image.Image, candidates: Sequence[str]
    ) -> Float[Tensor, " candidate"]:
        backbone, batch = segmenter.backbone, segmenter.batch
        latents = backbone.latents([image], images.fit(image, segmenter.plan.size, backbone.size_multiple))
        session = backbone.session()
        by_shape: dict[Any, list[int]] = {}  # prompts of one shape can share a batch
        for index, name in enumerate(candidates):
            by_shape.setdefault(session.prompt(name).shape, []).append(index)
        batches = [
            indices[start : start + batch] for indices in by_shape.values() for start in range(0, len(indices), batch)
        ]
        errors = []
        # Every timestep has a noise of its own: what one noise happens to hide, another shows.
        for seed, timestep in enumerate(self.timesteps):
            captions = ([candidates[index] for index in indices] for indices in batches)
            squares = [self._squares(session, latents, part, timestep, seed) for part in captions]
            errors.append(self._near(torch.cat(squares)))
        best = torch.stack(errors).sum(0).argmin(0).flatten()
        scores = torch.zeros(len(candidates))
        counts = torch.bincount(best.cpu(), minlength=len(candidates))
        scores[[index for indices in batches for index in indices]] = counts / len(best)
        return scores

    def _near(self, squares: Float[Tensor, "candidate height width"]) -> Float[Tensor, "candidate height width"]:
        """Means over windows, divided by the mean over all, so that every timestep counts the same."""
        kernel = [max(1, round(side * self.window)) // 2 * 2 + 1 for side in squares.shape[-2:]]
        padding = [side // 2 for side in kernel]
        near = F.avg_pool2d(squares[:, None], kernel, stride=1, padding=padding, count_include_pad=False)[:, 0]
        return near / near.mean()

    def _squares(
        self,
        session: BackboneSession,
        latents: Float[Tensor, "1 channel height width"],
        captions: Sequence[str],
        timestep: int,
        seed: int,
    ) -> Float[Tensor, "candidate height width"]:
        """The denoiser's squared error under each caption, the mean over channels."""
        backbone = session.backbone
        truth = target(backbone.pipeline.scheduler, latents, timestep, seed)
        repeated = latents.expand(len(captions), -1, -1, -1)
        output: Any = session.forward(repeated, captions, timestep, seed, lambda index, call: None)
        if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[-2:] != truth.shape[-2:]:
            raise GocaError(f'{backbone.name} packs its answer, which "self:error" does not read: use "self:map"')
        # Channels behind those of the latents are a variance.
        prediction = output[:, : truth.shape[1]].to(truth)
        # Some flow models point from noise to image.
        sign = -1.0 if backbone.family.flow and float((prediction * truth).sum()) < 0 else 1.0
        return (sign * prediction - truth).square().mean(1)


@dataclass(frozen=True, kw_only=True)
class AttentionMapScorer:
    """How unevenly a candidate's share of the aggregated map is spread over the image, before any min-max.

    All candidates are one prompt. The lower half is dropped and the rest is scored again, until `few` are left: a noun
    that is not in the image disturbs the others' shares. A candidate's score is its share's standard deviation.

    Attributes:
        recipe: how maps are aggregated.
        few: candidates of the last round, 1 or more.
        threshold: see `PresenceScorer`.
    """

    recipe: Recipe = GOCA_BALANCED
    few: int = 8
    threshold: float = 0.0715
    name: str = "map"

    def scores(
        self, segmenter: PlannedModel, image: Image.Image, candidates: Sequence[str]
    ) -> Float[Tensor, " candidate"]:
        recipe = replace(self.recipe, rescale=("share", "blur"), order=0, refine=())
        # A segmenter, which stands above this module and can ask it.
        scorer: Any = type(segmenter)(segmenter.backbone, recipe, Options(size=segmenter.plan.size), segmenter.batch)
        remaining = list(range(len(candidates)))
        while True:
            result = scorer(image, [candidates[index] for index in remaining], (), background=0.5)
            deviation = torch.from_numpy(result.scores.grid).std((1, 2), correction=0)
            if len(remaining) <= self.few:
                break
            kept = deviation.topk(max(self.few, ceil(len(remaining) / 2))).indices.sort().values
            remaining = [remaining[index] for index in kept.tolist()]
        scores = torch.full((len(candidates),), -torch.inf)
        scores[remaining] = deviation
        return scores


SCORERS: Mapping[str, PresenceScorer] = {
    scorer.name: scorer for scorer in (DenoisingErrorScorer(), AttentionMapScorer())
}


@dataclass(frozen=True)
class SelfPruningTagger:
    """Keeps the candidates that its scorer is sure of; the best one alone if it is sure of none.

    Args:
        segmenter: its model, size and batch are used; its recipe is not.
        scorer: how sure the model is of a candidate.
        candidates: () for the data set's classes or, without any, the nouns that the model knows.
    """

    segmenter: PlannedModel
    scorer: PresenceScorer
    candidates: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"self {self.scorer.name}"

    def tag(self, sample: TaggableImage, dataset: ImageCollection) -> str:
        candidates = self.candidates or dataset.class_names or self.segmenter.backbone.settings.nouns
        if not candidates:
            raise GocaError('no candidates are named: write them behind a colon, such as "self:map:cat, dog, grass"')
        return write((noun,) for noun in self.pruned(images.load(sample.image), candidates))

    def pruned(self, image: Image.Image, candidates: Sequence[str]) -> tuple[str, ...]:
        """The candidates that the image shows; GocaError if the model does not know one."""
        scores = self.scores(image, candidates)
        kept = scores >= min(self.scorer.threshold, float(scores.max()))
        return tuple(name for name, keep in zip(candidates, kept.tolist(), strict=True) if keep)

    def scores(self, image: Image.Image, candidates: Sequence[str]) -> Float[Tensor, " candidate"]:
        """The scorer's score of each candidate."""
        wanted, _ = parse_nouns(candidates)
        if self.segmenter.backbone.settings.nouns:
            in_vocabulary(wanted, self.segmenter.backbone.settings.nouns)
        return self.scorer.scores(self.segmenter, image, candidates).cpu()


DEFAULT = "error"
"""The scorer of the tagger "self"."""


def self_tagger(name: str, segmenter: PlannedModel | None) -> SelfPruningTagger:
    """The tagger "self:NAME", a scorer's name that may end in candidates: "map:cat, dog"; GocaError for any other."""
    scorer, colon, listed = name.partition(":")
    candidates = tuple(noun for group in parse(listed) for noun in group)
    scorer = scorer.strip() or DEFAULT
    if scorer not in SCORERS or (colon and not candidates):
        raise GocaError(f'no tagger "self:{name}": there are {", ".join(f"self:{name}" for name in SCORERS)}')
    if segmenter is None:
        raise GocaError("to be its own tagger a segmenter has to be given: load one")
    return SelfPruningTagger(segmenter, SCORERS[scorer], candidates)


def tagger_for(spec: str, segmenter: PlannedModel | None, **options: Any) -> Tagger:
    """A tagger by its name, be it the segmenter's own model or another; options: those of `tagger_named`."""
    return self_tagger(spec.partition(":")[2].strip(), segmenter) if is_self(spec) else tagger_named(spec, **options)
