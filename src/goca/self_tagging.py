"""The diffusion model as its own tagger: it keeps the candidates that it sees, without a second model.

It first takes the evidence of one look (`goca.evidence`), then the denoising errors of the few candidates that remain
in doubt: so an image costs `PASSES` rows of the denoiser, however many candidates there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from goca.diffusion.backbone import BackboneSession
from goca.diffusion.latents import packed
from goca.diffusion.timesteps import target
from goca.errors import GocaError
from goca.evidence import Looking
from goca.imaging import images
from goca.maths.presence import PresenceRule, present, shown
from goca.planned_model import with_prototypes
from goca.request import SegmentationRequest, prepare
from goca.tagging import is_self, self_candidates, tagger_named
from goca.tagging.answers import write
from goca.tagging.base import ImageCollection, TaggableImage, Tagger
from goca.text.nouns import Classes, Noun, caption_of

PASSES = 9
"""Most denoiser rows that an image costs, unless the look alone takes more: each window, prompt, timestep, seed and
mirrored image is a row. With the pass that then labels its pixels, ten."""


_ERRORS = PresenceRule(sharpness=30.0, window=0.3, half=1.25)


@dataclass(frozen=True, kw_only=True)
class SelfRule:
    """The rule that decides for a candidate; `training.tune_tagger` chose its numbers.

    Attributes:
        clear: Evidence at which a candidate that reaches the floor is beyond doubt.
        timestep: Noise level at which denoising errors are compared.
        errors: How evidence is computed from them.
        weight: Weight of its log odds, relative to those of the look's evidence.
        floor: See `goca.maths.presence.present`.
    """

    clear: float = 0.85
    timestep: int = 600
    errors: PresenceRule = _ERRORS
    weight: float = 1.5
    floor: float = 0.5

    def combined(self, seen: "Seen") -> Float[Tensor, " candidate"]:
        """How surely the image shows each candidate, 0 to 1: the sum of the log odds of both kinds of evidence.

        A candidate gets the places near which the error is lowest with its noun in the caption; its share of the image
        counts in units of what each row would get by chance.
        """
        evidence = seen.evidence.clone()
        if seen.doubtful:
            doubtful = list(seen.doubtful)
            by_errors = self.errors.evidence(-seen.errors / seen.errors.mean())[1:].to(evidence)
            logits = torch.logit(evidence[doubtful]) + self.weight * torch.logit(by_errors)
            evidence[doubtful] = logits.sigmoid()
        return evidence


@dataclass(frozen=True)
class Seen:
    """The measurements of an image.

    Attributes:
        evidence: Of each candidate, by the look alone.
        doubtful: The candidates whose errors were measured, the likeliest first.
        errors: Of every place, without them in the caption, then with each; no row if none is in doubt.
    """

    evidence: Float[Tensor, " candidate"]
    doubtful: tuple[int, ...]
    errors: Float[Tensor, "row height width"]


def squared_errors(
    session: BackboneSession,
    latents: Float[Tensor, "1 channel height width"],
    captions: Sequence[str],
    timestep: int,
    batch: int,
    seed: int = 0,
) -> Float[Tensor, "caption row column"]:
    """The denoiser's squared error under each caption, with the same noise: the mean over the channels of a cell.

    Args:
        session: Session of the model.
        latents: Latents of the image.
        captions: One denoiser row each.
        timestep: Noise level.
        batch: Rows per pass.
        seed: Seed of the noise.

    Raises:
        GocaError: The layout of the denoiser's output is unknown.
    """
    by_shape: dict[Any, list[int]] = {}  # prompts of the same shape can share a pass
    for index, caption in enumerate(captions):
        by_shape.setdefault(session.prompt(caption).shape, []).append(index)
    truth = target(session.backbone.pipeline.scheduler, latents, timestep, seed)
    errors: dict[int, Tensor] = {}
    for indices in by_shape.values():
        for part in (indices[start : start + batch] for start in range(0, len(indices), batch)):
            repeated = latents.expand(len(part), -1, -1, -1)
            output = session.forward(repeated, [captions[i] for i in part], timestep, seed, lambda row, call: None)
            errors.update(zip(part, _squares(session, output, truth.expand_as(repeated)), strict=True))
    return torch.stack([errors[index] for index in range(len(captions))])


def _squares(
    session: BackboneSession, output: Any, truth: Float[Tensor, "caption channel height width"]
) -> Float[Tensor, "caption row column"]:
    backbone = session.backbone
    expected: Any = packed(backbone.pipeline, truth, (output,), {})
    if isinstance(output, list):
        output, expected = torch.stack(output), torch.stack(expected)
    # Patches have their channels last, everything else has them first.
    axis = -1 if output.ndim == 3 else 1
    # Channels after those of the latents are a variance.
    prediction = output.narrow(axis, 0, min(output.shape[axis], expected.shape[axis])).to(expected)
    if prediction.shape != expected.shape:
        raise GocaError(f"the layout of {backbone.name}'s predictions is unknown: choose another tagger", "tagger")
    # Some flow models predict the opposite direction, from noise to image.
    sign = -1.0 if backbone.family.flow and float((prediction * expected).sum()) < 0 else 1.0
    squares = (sign * prediction - expected).square().mean(axis)
    patch = 2 if output.ndim == 3 else 1
    return squares.reshape(len(truth), truth.shape[-2] // patch, truth.shape[-1] // patch)


@dataclass(frozen=True)
class SelfTagger:
    """Keeps the candidates that the model itself sees; the best one if none is seen but one is required.

    Args:
        model: A segmenter; its kind of evidence, size, windows, timesteps and seeds are used.
        candidates: () for the data set's classes or, without any, the nouns that the model knows.
        rule: See `SelfRule`.
    """

    model: Looking
    candidates: tuple[str, ...] = ()
    rule: SelfRule = SelfRule()
    name: str = "self"

    def tag(self, sample: TaggableImage, dataset: ImageCollection) -> str:
        """See `goca.tagging.base.Tagger`."""
        of_dataset = {category.name: category.synonyms for category in dataset.categories}
        classes: Classes = self.candidates or of_dataset or self.model.backbone.settings.nouns
        if not classes:
            raise GocaError('there are no candidates: name them after a colon, such as "self:cat, dog, grass"')
        return write((noun,) for noun in self.shown(images.load(sample.image), classes, dataset.background))

    def shown(self, image: Image.Image, classes: Classes, background: bool = True) -> tuple[str, ...]:
        """The candidates that the image shows; background: whether it may show none.

        Raises:
            GocaError: The model does not support one of them.
        """
        there = shown(self.rule.combined(self.seen(image, classes, background)), self.rule.floor, background)
        return tuple(name for name, is_there in zip(classes, there.tolist(), strict=True) if is_there)

    def seen(self, image: Image.Image, classes: Classes, background: bool = True) -> Seen:
        """The measurements behind `shown`: the look's evidence, and the errors of the likeliest doubtful candidates."""
        request, rule = SegmentationRequest(image, classes), self.rule
        model = self._looking.for_request(request)
        with model.inference():
            prepared = prepare(request, model.plan, self._session)
        (look,) = model.looks([prepared], self._session)
        nouns, evidence = prepared.nouns.classes, look.evidence
        clear = present(evidence, rule.floor, background) & (evidence >= rule.clear)
        order = evidence.argsort(descending=True).tolist()
        context = [nouns[index] for index in order if clear[index]]
        # Besides the look, one row has no doubtful candidate in the caption.
        doubtful = [index for index in order if not clear[index]][: max(0, PASSES - look.rows - 1)]
        if not doubtful:
            return Seen(evidence, (), torch.empty(0, 1, 1))
        captions = [self._caption(context), *(self._caption([*context, nouns[index]]) for index in doubtful)]
        backbone, plan = model.backbone, model.plan
        # The whole image, even if the look uses windows.
        size = backbone.fit(prepared.image, plan.size)
        with model.inference():
            latents = backbone.latents([prepared.image], size)
            errors = squared_errors(backbone.session(), latents, captions, rule.timestep, model.batch)
        return Seen(evidence, tuple(doubtful), errors)

    def _caption(self, nouns: Sequence[Noun]) -> str:
        """The nouns as a caption, without those before the last one that do not fit in the prompt."""
        names = [Noun(noun.name, noun.words[:1]) for noun in nouns]
        while len(names) > 1 and not self.model.backbone.fits(names):
            del names[-2]
        return caption_of(names)

    @cached_property
    def _looking(self) -> Looking:
        plan, prototypes = self.model.plan, self.model.prototypes
        if plan.evidence is not None:
            return self.model
        attention = replace(plan, evidence="attention")
        return self.model.with_plan(attention if prototypes is None else with_prototypes(plan, prototypes))

    @cached_property
    def _session(self) -> BackboneSession:
        """One session for all images, because the candidates recur; captions with doubtful ones do not."""
        return self.model.backbone.session()


def tagger_for(spec: str, segmenter: Looking | None, **options: Any) -> Tagger:
    """A tagger by its name, be it the segmenter's own model or another. options: those of `tagger_named`."""
    if not is_self(spec):
        return tagger_named(spec, **options)
    candidates = self_candidates(spec)
    if segmenter is None:
        raise GocaError("the tagger self needs a segmenter: load one")
    return SelfTagger(segmenter, candidates)
