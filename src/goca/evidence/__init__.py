"""Evidence: how surely an image shows each class, from one look at it before classes are put in the prompt.

A look gives logits for every noun and cell. All nouns compete: the classes, the background nouns, the other nouns of
the model's own list and, for a model with a closed vocabulary, all its words. There are two kinds of look:

- "attention": the logarithm of a noun's share of the attention to nouns, minus its mean on images without content.
  Those are measured once for each list of nouns and cached on disk. With cross-attention the image is shown under the
  empty caption, so that absent nouns cannot disturb it, and the nouns are added as keys; with joint attention a caption
  has to list them.
- "prototypes": log posteriors under Gaussians of the model's own features, shown under the empty caption, see
  `goca.prototypes`. Such a look also labels the pixels, unless another timestep is wanted for that. A request with a
  noun that has no prototype uses attention instead, see `Segmenter.for_request`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from goca.class_maps import ClassMaps, mean
from goca.diffusion.backbone import Backbone, BackboneSession
from goca.errors import GocaError
from goca.evidence.content_free import CONTENT_FREE, TINY, ContentFree
from goca.maths.presence import PresenceRule, shown
from goca.maths.rescale import share
from goca.plan import Plan
from goca.prototypes import ImageLogits, Prototypes
from goca.request import (
    PreparedImage,
    RequestNouns,
    SegmentationRequest,
    View,
    added,
    asking,
    prepare,
    prompts_of,
    request_nouns,
)
from goca.text.background_nouns import background_nouns
from goca.text.nouns import TOO_LITTLE_EVIDENCE, Noun
from goca.text.token_spans import NounTokens

__all__ = ["CONTENT_FREE", "MARGIN", "RULES", "ContentFree", "Evidence", "Look", "Looking", "class_maps"]

RULES = {
    "attention": PresenceRule(sharpness=3.0, window=0.1, half=0.1, trust=0.35),
    "prototypes": PresenceRule(sharpness=1.0, window=0.1, half=0.2, trust=0.5),
}
"""How evidence is computed from each kind of look, tuned on 100 scenes in the training style; see docs/log.md."""
MARGIN = 9.0
"""Margin by which the log posterior of another noun has to exceed a class's to take a cell from it."""
LISTED = 10
"""Most classes that a note names."""


def competing(nouns: RequestNouns, others: Sequence[str]) -> tuple[Noun, ...]:
    """The classes, the background nouns, then those of `others` that are neither these nor related to a class."""
    names = {word for noun in (*nouns.classes, *nouns.background_classes) for word in noun.words}
    rest = (noun for noun in background_nouns(tuple(dict.fromkeys(others)), nouns.classes) if noun.name not in names)
    return (*nouns.classes, *nouns.background_classes, *rest)


@runtime_checkable
class Looking(Protocol):
    """A model that can look at images under another plan, as `Segmenter` does."""

    backbone: Backbone
    plan: Plan
    batch: int
    prototypes: Prototypes | None

    def inference(self) -> AbstractContextManager[None]: ...

    def with_plan(self, plan: Plan) -> "Looking": ...

    def for_request(self, request: SegmentationRequest) -> "Looking": ...

    def looks(self, images: Sequence[PreparedImage], session: BackboneSession) -> "list[Look]": ...

    def views(self, images: Sequence[PreparedImage]) -> Iterator[View]: ...

    def passes(self, images: Sequence[PreparedImage], session: BackboneSession) -> Iterator[tuple[ClassMaps, ...]]: ...


@dataclass(frozen=True)
class Target:
    """An image to look at, and the nouns that compete in it.

    Attributes:
        image: For attention, with prompts that name all the nouns.
        nouns: The classes, the background classes, then others.
        prototypes: For prototypes, the indices of each noun's rows.
    """

    image: PreparedImage
    nouns: tuple[Noun, ...]
    prototypes: tuple[Sequence[int], ...] = ()


Logits = list[Float[Tensor, "noun height width"]]
"""Logits of a target's nouns in each pass."""


@dataclass(frozen=True)
class Look:
    """The result of looking at an image.

    Attributes:
        passes: The logits of all competing nouns, the classes first, in every pass.
        evidence: How surely the image shows each class, 0 to 1.
        rows: Number of denoiser rows that it took.
    """

    passes: tuple[Float[Tensor, "noun height width"], ...]
    evidence: Float[Tensor, " class"]
    rows: int


class Evidence:
    """Measures which classes images show, and narrows their requests to those.

    Args:
        model: Looks at images under another plan; `passes` and `views` are those of `Segmenter`.
    """

    def __init__(self, model: Looking) -> None:
        self.model, self.plan, self.prototypes = model, model.plan, model.prototypes
        joint = model.backbone.family.joint is not None
        self.look_plan = replace(
            self.plan,
            keys="caption" if joint else "side",
            cross=self.plan.evidence_blocks or self.plan.cross,
            rescale=(share,),
            refine=(),
            refine_edges=False,
            refit=None,
            order=0,
            evidence=None,
            floor=0.0,
        )
        self.content_free = ContentFree(model.backbone.pipeline, replace(self.look_plan, window=False, flip=False))

    def check(self, request: SegmentationRequest, nouns: RequestNouns, session: BackboneSession) -> None:
        """Raise GocaError for nouns that cannot be looked for, or that the user's caption does not contain."""
        if request.caption is not None:
            prompts_of(request, nouns, self.plan, session)
        competitors = self._competitors(nouns, session)
        if self.plan.evidence == "prototypes":
            self._rows(competitors)
        else:
            self._prompts(competitors, session)

    def without_prototype(self, nouns: RequestNouns) -> list[str]:
        """The names of the user's nouns that have no prototype."""
        if self.prototypes is None:
            return []
        chosen = nouns.classes if nouns.by_default else (*nouns.classes, *nouns.background_classes)
        return [noun.name for noun in chosen if not self.prototypes.indices(noun)]

    def uncalibrated(self, request: SegmentationRequest, session: BackboneSession) -> tuple[Noun, ...]:
        """The nouns of a request that still need calibration on images without content; () if none do."""
        if self.plan.evidence != "attention":
            return ()
        with self.model.inference():
            nouns = self._competitors(request_nouns(request, self.plan, self.model.backbone), session)
        nouns = tuple(nouns[index] for index in _order(nouns))
        return nouns if self.content_free.known(nouns, session.fingerprint) is None else ()

    def calibrate(self, nouns: Sequence[Noun], session: BackboneSession) -> None:
        """Calibrate the nouns from `uncalibrated` on images without content; otherwise the first look does so."""
        with self.model.inference():
            self.content_free.prior(nouns, session.fingerprint, partial(self._content_free_shares, session))

    def shown(
        self,
        requests: Sequence[SegmentationRequest | GocaError],
        images: Sequence[PreparedImage | GocaError],
        session: BackboneSession,
    ) -> list[PreparedImage | GocaError]:
        """The images with their evidence, and with prompts or maps of the classes that reach the floor.

        An error stays as it is; an image becomes one if its nouns cannot be looked for or put in a prompt.
        """
        targets = [self._target_or_error(*pair, session) for pair in zip(requests, images, strict=True)]
        looks = iter(self._looks([target for target in targets if isinstance(target, Target)], session))
        return [
            target if isinstance(target, GocaError) else self._narrowed(request, target.image, next(looks), session)
            for request, target in zip(requests, targets, strict=True)
        ]

    def looks(self, images: Sequence[PreparedImage], session: BackboneSession) -> list[Look]:
        """Look at each image before classes are put in the prompt. Raises GocaError for nouns it cannot look for."""
        return self._looks([self._target(image, session) for image in images], session)

    def _looks(self, targets: Sequence[Target], session: BackboneSession) -> list[Look]:
        rule, looks = RULES[self.plan.evidence or ""], list[Look]()
        measured = self._log_posteriors if self.plan.evidence == "prototypes" else self._log_shares
        # Not a generator: an error may keep one alive, which would then leave inference mode amid another call.
        with self.model.inference():
            for target, passes in zip(targets, measured(targets, session), strict=True):
                image = target.image
                evidence = rule.evidence(torch.stack(passes).mean(0))[: len(image.classes)]
                rows = len(passes) * max(1, len(image.prompts)) * len(image.tiles)
                looks.append(Look(tuple(passes), evidence, rows))
        return looks

    def _target(self, image: PreparedImage, session: BackboneSession) -> Target:
        with self.model.inference():
            nouns = self._competitors(image.nouns, session)
            if self.plan.evidence == "prototypes":
                return Target(image, nouns, self._rows(nouns))
            return Target(replace(image, prompts=self._prompts(nouns, session)), nouns)

    def _target_or_error(
        self, request: SegmentationRequest | GocaError, image: PreparedImage | GocaError, session: BackboneSession
    ) -> Target | GocaError:
        if isinstance(request, GocaError):
            return request
        if isinstance(image, GocaError):
            return image
        try:
            return self._target(image, session)
        except GocaError as error:
            return error

    def _narrowed(
        self,
        request: SegmentationRequest | GocaError,
        image: PreparedImage,
        look: Look,
        session: BackboneSession,
    ) -> PreparedImage | GocaError:
        """An image with the result of a look at it."""
        assert isinstance(request, SegmentationRequest)  # errors are not looked at
        candidates = tuple(range(len(look.evidence))) if image.nouns.kept is None else image.nouns.kept
        indices = _kept(look.evidence, candidates, self.plan.floor, request.has_background)
        notes = list[str]()
        # Only a recipe that leaves the choice to the model may have prototypes and not use them.
        left_to_model = self.plan.evidence == "attention" and self.plan.origin["evidence"] == "settings"
        if left_to_model and (unknown := self.without_prototype(image.nouns)):
            notes.append(f"no prototype of {_listed(unknown)}: attention is the evidence for all classes")
        if missing := [image.classes[index] for index in candidates if index not in indices]:
            notes.append(f"{TOO_LITTLE_EVIDENCE}{_listed(missing)}: no pixels")
        if len(indices) == len(candidates) and any(look.evidence[i] < self.plan.floor for i in candidates):
            notes.append("every pixel gets a class: all classes are kept, even below the floor")
        if self.plan.evidence == "prototypes" and not self._prototypes_label:
            notes.append("the prototypes are of another timestep: they choose classes, and attention labels pixels")
        seen = replace(image, prompts=(), evidence=tuple(look.evidence.tolist()), notes=(*image.notes, *notes))
        if self._prototypes_label:
            maps = tuple(class_maps(each, image.nouns, indices) for each in look.passes)
            if request.caption is not None:
                seen = replace(seen, notes=(*seen.notes, "prototypes label the pixels: the caption is not used"))
            by_default = added(image.nouns, image.nouns.background_classes)
            return replace(seen, asked=indices, maps=maps, notes=(*seen.notes, *by_default))
        try:
            with self.model.inference():
                return asking(seen, request, self.plan, session, indices)
        except GocaError as error:
            return error

    @property
    def _prototypes_label(self) -> bool:
        """Whether the look also labels pixels; at another timestep they are labelled as without prototypes."""
        learned = None if self.prototypes is None else (self.prototypes.timestep,)
        return self.plan.evidence == "prototypes" and self.plan.timestep == learned

    def _competitors(self, nouns: RequestNouns, session: BackboneSession) -> tuple[Noun, ...]:
        if self.plan.evidence == "prototypes":
            assert self.prototypes is not None  # the plan has checked it
            return competing(nouns, self.prototypes.nouns)
        return competing(nouns, (*self.plan.background_classes, *session.backbone.settings.nouns))

    def _prompts(self, nouns: Sequence[Noun], session: BackboneSession) -> tuple[NounTokens, ...]:
        """One or more prompts that name all nouns as classes, in sorted order, see `_log_shares`."""
        nouns = [nouns[index] for index in _order(nouns)]
        request = SegmentationRequest("", [noun.name for noun in nouns], (), background=None)
        named = RequestNouns(tuple(nouns), (), by_default=False, kept=None, notes=())
        prompts, _, _ = prompts_of(request, named, self.look_plan, session)
        return prompts

    def _log_shares(self, targets: Sequence[Target], session: BackboneSession) -> Iterator[Logits]:
        """The logarithm of each noun's share, minus its mean on images without content, in every pass.

        The user's order of nouns does not matter: prompts name them in sorted order.
        """
        if not targets:
            return
        looker = self.model.with_plan(self.look_plan)
        measure = partial(self._content_free_shares, session)
        for target, passes in zip(targets, looker.passes([each.image for each in targets], session), strict=True):
            order = _order(target.nouns)
            prior = self.content_free.prior([target.nouns[index] for index in order], session.fingerprint, measure)
            logits = [(maps.classes + TINY).log() - prior.to(maps.classes)[:, None, None] for maps in passes]
            back = torch.tensor(order).argsort()
            yield [each[back] for each in logits]

    def _content_free_shares(
        self, session: BackboneSession, images: Sequence[Image.Image], nouns: Sequence[Noun]
    ) -> list[Float[Tensor, "noun height width"]]:
        prompts, plan = self._prompts(nouns, session), self.content_free.plan
        # A request must have a class; the prompts name all nouns as classes.
        requests = [SegmentationRequest(image, [nouns[0].words[0]], ()) for image in images]
        prepared = [replace(prepare(request, plan, session), prompts=prompts) for request in requests]
        return [mean(passes).classes for passes in self.model.with_plan(plan).passes(prepared, session)]

    def _rows(self, nouns: Sequence[Noun]) -> tuple[Sequence[int], ...]:
        """The indices of each noun's prototypes. Raises GocaError for a noun that has none."""
        assert self.prototypes is not None  # the plan has checked it
        rows = tuple(self.prototypes.indices(noun) for noun in nouns)
        if not all(rows):
            raise GocaError(
                f'there is no prototype of "{nouns[rows.index([])].name}": learn prototypes of it, choose another '
                f"recipe, or name one of {', '.join(self.prototypes.nouns)}",
                hint="classes",
            )
        return rows

    def _log_posteriors(self, targets: Sequence[Target], session: BackboneSession) -> Iterator[Logits]:
        """The log posterior of each noun, up to a common constant, in every pass: each seed, unflipped and flipped."""
        assert self.prototypes is not None  # the plan has checked it
        model, plan = self.model, self.plan
        logits: list[Logits] = [[] for _ in targets]
        for flip, views, latents in model.views([each.image for each in targets]):
            for seed in plan.seeds:
                sums = [ImageLogits.of(self.prototypes, view.windows) for view in views]
                rows = zip(sums, latents, views, strict=True)
                session.run(
                    (row for each, latent, view in rows for row in each.items(latent, view.size, seed)), model.batch
                )
                for maps, each in zip(logits, sums, strict=True):
                    maps.append(each.logits().flip(-1) if flip else each.logits())
        for target, passes in zip(targets, logits, strict=True):
            yield [torch.stack([each[list(rows)].amax(0) for rows in target.prototypes]) for each in passes]


def _order(nouns: Sequence[Noun]) -> list[int]:
    """The indices of the nouns sorted by their words."""
    return sorted(range(len(nouns)), key=lambda index: nouns[index].words)


def class_maps(logits: Float[Tensor, "noun height width"], nouns: RequestNouns, indices: Sequence[int]) -> ClassMaps:
    """The maps of the classes at `indices`: each cell is divided among them and the background.

    The background is the best of the background classes or, without any, of all other nouns. With background classes,
    it also gets the cells where another noun is much likelier than the class, so that cats are not labelled when only
    dogs are asked for. The margin is there because similar things are easily confused.

    Args:
        logits: Of the classes, then the background classes, then other nouns.
        nouns: The nouns of the request.
        indices: Indices of the classes that are kept.
    """
    count, end = len(nouns.classes), len(nouns.classes) + len(nouns.background_classes)
    kept = logits[list(indices)]
    if end > count:
        dropped = [index for index in range(count) if index not in indices]
        others = torch.cat([logits[count:end], logits[end:] - MARGIN, logits[dropped] - MARGIN])
    else:
        others = logits[count:]
    shares = torch.cat([kept, others]).softmax(0)
    classes = shares[: len(kept)]
    return ClassMaps(classes, shares[len(kept) :].amax(0) if len(others) else None, classes.amax((-2, -1)))


def _kept(
    evidence: Float[Tensor, " class"], candidates: Sequence[int], floor: float, background: bool
) -> tuple[int, ...]:
    """The indices of the candidates that the image shows."""
    there = shown(evidence[list(candidates)], floor, background).tolist()
    return tuple(index for index, is_there in zip(candidates, there, strict=True) if is_there)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"
