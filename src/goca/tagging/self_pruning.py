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
from goca.evaluation.caption_nouns import write
from goca.evaluation.datasets.base import Dataset, Sample
from goca.imaging import images
from goca.plan import Options
from goca.recipe import GOCA_BALANCED, Recipe
from goca.segmenter import Segmenter
from goca.text.nouns import in_vocabulary, parse_nouns


@runtime_checkable
class Judge(Protocol):
    """How present each candidate seems. threshold: what is at least as high is kept."""

    @property
    def name(self) -> str: ...

    @property
    def threshold(self) -> float: ...

    def scores(
        self, segmenter: Segmenter, image: Image.Image, candidates: Sequence[str]
    ) -> Float[Tensor, " candidate"]:
        """A score for each candidate, the higher the surer; -inf for one that fell out on the way."""
        ...


@dataclass(frozen=True)
class ByError:
    """Which candidate helps the model most to tell the noise from the image, place by place.

    Each candidate is the prompt by itself, at several timesteps, each with one noise for all candidates. A
    candidate's score is the share of the image where the error, averaged over a window, falls most with it. The drop
    over the whole image says less: it forgets small things, and a prompt of one noun is wrong about all the others.

    timesteps: training timesteps. window: its side, as a share of the image's.
    """

    timesteps: tuple[int, ...] = (400, 600, 800)
    window: float = 0.3
    threshold: float = 0.115
    name: str = "error"

    def scores(
        self, segmenter: Segmenter, image: Image.Image, candidates: Sequence[str]
    ) -> Float[Tensor, " candidate"]:
        backbone, batch = segmenter.backbone, segmenter.batch
        latents = backbone.latents([image], images.fit(image, segmenter.plan.size, backbone.size_multiple))
        session = backbone.session()
        alike: dict[Any, list[int]] = {}  # what can share a batch
        for index, name in enumerate(candidates):
            alike.setdefault(session.prompt(name).shape, []).append(index)
        parts = [some[start : start + batch] for some in alike.values() for start in range(0, len(some), batch)]
        looks = []
        # Every timestep with a noise of its own: what the noise happens to hide at one, it does not hide at all.
        for seed, timestep in enumerate(self.timesteps):
            named = ([candidates[index] for index in part] for part in parts)
            squares = [self._squares(session, latents, part, timestep, seed) for part in named]
            looks.append(self._near(torch.cat(squares)))
        best = torch.stack(looks).sum(0).argmin(0).flatten()
        scores = torch.zeros(len(candidates))
        scores[[index for part in parts for index in part]] = torch.bincount(
            best.cpu(), minlength=len(candidates)
        ) / len(best)
        return scores

    def _near(self, squares: Float[Tensor, "candidate height width"]) -> Float[Tensor, "candidate height width"]:
        """Means over windows, in units of the mean over all, so that every timestep counts the same."""
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
        right = target(backbone.pipeline.scheduler, latents, timestep, seed)
        many = latents.expand(len(captions), -1, -1, -1)
        said: Any = session.forward(many, captions, timestep, seed, lambda index, call: None)
        if not isinstance(said, Tensor) or said.ndim != 4 or said.shape[-2:] != right.shape[-2:]:
            raise GocaError(f'{backbone.name} packs its answer, which "self:error" does not read: use "self:map"')
        # What is behind the latent's channels is a variance.
        found = said[:, : right.shape[1]].to(right)
        # Some flow models point from noise to image.
        sign = -1.0 if backbone.family.flow and float((found * right).sum()) < 0 else 1.0
        return (sign * found - right).square().mean(1)


@dataclass(frozen=True)
class ByMap:
    """How unevenly a candidate's share of the aggregated map is spread over the image, before any min-max.

    All candidates are one prompt. The lower half falls out and the rest is asked again, until `few` are left: a noun
    that is not in the image disturbs the others' shares. A candidate's score is its share's standard deviation.
    """

    recipe: Recipe = GOCA_BALANCED
    few: int = 8
    threshold: float = 0.0715
    name: str = "map"

    def scores(
        self, segmenter: Segmenter, image: Image.Image, candidates: Sequence[str]
    ) -> Float[Tensor, " candidate"]:
        shares = replace(self.recipe, rescale=("share", "blur"), order=0, refine=())
        asker = Segmenter(segmenter.backbone, shares, Options(size=segmenter.plan.size), segmenter.batch)
        left = list(range(len(candidates)))
        while True:
            result = asker(image, [candidates[index] for index in left], background=0.5)
            spread = torch.from_numpy(result.scores.grid).std((1, 2), correction=0)
            if len(left) <= self.few:
                break
            kept = spread.topk(max(self.few, ceil(len(left) / 2))).indices.sort().values
            left = [left[index] for index in kept.tolist()]
        scores = torch.full((len(candidates),), -torch.inf)
        scores[left] = spread
        return scores


JUDGES: Mapping[str, Judge] = {judge.name: judge for judge in (ByError(), ByMap())}


@dataclass(frozen=True)
class SelfPruning:
    """Keeps the candidates that its judge is sure of; the best one alone, where it is sure of none.

    segmenter: its model, size and batch are used; its recipe is not. candidates: () for the data set's categories.
    """

    segmenter: Segmenter
    judge: Judge
    candidates: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"self {self.judge.name}"

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        candidates = self.candidates or tuple(one.name for one in dataset.categories)
        return write((one,) for one in self.pruned(images.load(sample.image), candidates))

    def pruned(self, image: Image.Image, candidates: Sequence[str]) -> tuple[str, ...]:
        """Those of the candidates that the image shows. Raises GocaError for a word that the model does not know."""
        scores = self.scores(image, candidates)
        kept = scores >= min(self.judge.threshold, float(scores.max()))
        return tuple(one for one, keep in zip(candidates, kept.tolist(), strict=True) if keep)

    def scores(self, image: Image.Image, candidates: Sequence[str]) -> Float[Tensor, " candidate"]:
        """What the judge says of each candidate."""
        wanted, _ = parse_nouns(candidates)
        known = self.segmenter.backbone.settings.nouns
        if known:
            in_vocabulary(wanted, known)
        return self.judge.scores(self.segmenter, image, candidates).cpu()
