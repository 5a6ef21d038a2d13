"""Evidence: how surely an image shows each class, from one look at it before any class is asked for.

The look is a pass that no absent noun can disturb, because the image is shown under the empty caption (or the user's).
What it gives for every noun and cell is logits; all nouns compete: the classes, the background nouns and, for a model
that knows only its vocabulary, all other words of that. Two kinds of look give logits:

- "attention": the logarithm of a noun's share of the attention to nouns beside the caption, minus what it is on images
  without content; those are looked at once for each list of nouns, and the answer is kept on disk.
- "prototypes": log posteriors under Gaussians of the model's own features, see `goca.prototypes`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from platformdirs import user_cache_path
from torch import Tensor

from goca.class_maps import ClassMaps, mean
from goca.diffusion.backbone import Backbone, BackboneSession
from goca.diffusion.fingerprint import fingerprint
from goca.errors import GocaError
from goca.maths.presence import PresenceRule, present
from goca.maths.rescale import share
from goca.plan import Plan
from goca.prototypes import ImageLogits, Prototypes
from goca.request import PreparedImage, RequestNouns, SegmentationRequest, asking, prepare, prompts_of
from goca.storage.atomic import write_atomic
from goca.storage.reading import read_json
from goca.text.background_nouns import background_nouns
from goca.text.nouns import Noun

RULES: Mapping[str, PresenceRule] = {
    "attention": PresenceRule(sharpness=3.0, window=0.19, half=0.35),
    "prototypes": PresenceRule(sharpness=1.0, window=0.19, half=0.35),
}
"""How evidence is read off each kind of look, chosen on 100 scenes in training art (training.tune_presence)."""
TINY = 1e-6
"""Added to shares before their logarithm."""
LISTED = 10
"""How many classes a note names."""
CONTENT_FREE = 6
"""How many images without content there are."""


def content_free(side: int) -> list[Image.Image]:
    """Images that show nothing: grey, black, white, and seeded noise of every pixel's own; side x side pixels."""
    plain = [Image.new("RGB", (side, side), (level,) * 3) for level in (128, 0, 255)]
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(CONTENT_FREE - len(plain))]
    return plain + noise


def competing(nouns: RequestNouns, others: Sequence[str]) -> tuple[Noun, ...]:
    """The classes, then the background nouns, then those of `others` that are none of them, nor related to a class."""
    names = {word for noun in (*nouns.classes, *nouns.background_classes) for word in noun.words}
    rest = (noun for noun in background_nouns(tuple(dict.fromkeys(others)), nouns.classes) if noun.name not in names)
    return (*nouns.classes, *nouns.background_classes, *rest)


@runtime_checkable
class Shares(Protocol):
    """What measures shares: for each image, of every noun at every cell."""

    def __call__(self, images: Sequence[Image.Image], nouns: Sequence[Noun]) -> list[Float[Tensor, "noun h w"]]: ...


@runtime_checkable
class Looking(Protocol):
    """A model with a plan that can look at images under another one, as `Segmenter` does."""

    backbone: Backbone
    plan: Plan
    batch: int
    prototypes: Prototypes | None

    def inference(self) -> AbstractContextManager[None]: ...

    def with_plan(self, plan: Plan) -> "Looking": ...

    def passes(self, images: Sequence[PreparedImage], session: BackboneSession) -> Iterator[tuple[ClassMaps, ...]]: ...


class ContentFree:
    """What a model says of images without content, for each list of nouns: measured once, then read from disk.

    Args:
        pipeline: whose weights the answer is of.
        plan: how it looks.
        folder: where answers are kept; by default the user's cache.
    """

    def __init__(self, pipeline: Any, plan: Plan, folder: Path | None = None) -> None:
        self.pipeline, self.plan = pipeline, plan
        self.folder = folder or user_cache_path("goca") / "content-free"
        self._known: dict[tuple[tuple[str, ...], ...], Tensor] = {}

    def prior(self, nouns: Sequence[Noun], shares: Shares) -> Float[Tensor, " noun"]:
        """The mean logarithm of each noun's share of an image that shows nothing."""
        key = tuple(noun.words for noun in nouns)
        if key not in self._known:
            path = self.folder / f"{self._digest(key)}.json"
            values = _read(path, len(nouns))
            if values is None:
                maps = shares(content_free(self.plan.size), nouns)
                values = torch.stack([(share + TINY).log().mean((-2, -1)) for share in maps]).mean(0).tolist()
                _write(path, values)
            self._known[key] = torch.tensor(values)
        return self._known[key]

    def _digest(self, key: Any) -> str:
        passed_over = ("origin", "notes", "device")
        facts = {name: value for name, value in self.plan.to_json().items() if name not in passed_over}
        text = json.dumps([fingerprint(self.pipeline), facts, key], sort_keys=True)
        return blake2b(text.encode(), digest_size=16).hexdigest()


def _read(path: Path, count: int) -> list[float] | None:
    """The values of a file, None where it is missing or damaged: they are then measured again."""
    try:
        values = read_json(path) if path.exists() else None
    except GocaError:
        return None
    whole = isinstance(values, list) and len(values) == count and all(isinstance(value, float) for value in values)
    return values if whole else None


def _write(path: Path, values: list[float]) -> None:
    """Keep them, where the disk lets us: they can always be measured again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic({path: json.dumps(values).encode()})
    except (OSError, GocaError):
        return


@dataclass(frozen=True)
class Look:
    """What a model says of an image.

    Attributes:
        passes: the logits of all nouns that compete, the classes first, in every pass.
        evidence: how surely the image shows each class, 0 to 1.
        rows: of the denoiser, that it took.
    """

    passes: tuple[Float[Tensor, "noun height width"], ...]
    evidence: Float[Tensor, " class"]
    rows: int


class Evidence:
    """Measures which classes images show, and narrows what is asked of them to those.

    Args:
        model: looks at images under another plan; `passes` are those of `Segmenter`.
        prototypes: of the model, for plans whose evidence is theirs.
    """

    def __init__(self, model: "Looking", prototypes: Prototypes | None) -> None:
        self.model, self.plan, self.prototypes = model, model.plan, prototypes
        joint = model.backbone.family.joint is not None
        self.look_plan = replace(
            self.plan,
            keys="caption" if joint else "side",
            cross=self.plan.evidence_blocks or self.plan.cross,
            rescale=(share,),
            refine=(),
            order=0,
            evidence=None,
            floor=0.0,
        )
        self.content_free = ContentFree(model.backbone.pipeline, self.look_plan)

    def shown(
        self, images: Sequence[tuple[SegmentationRequest, PreparedImage]], session: BackboneSession
    ) -> Iterator[PreparedImage]:
        """The images with their evidence, and with prompts, or maps, of the classes that reach the floor."""
        for (request, image), look in zip(images, self.looks([image for _, image in images], session), strict=True):
            indices = _kept(look.evidence, image.nouns.kept, self.plan.floor, request.has_background)
            notes = (*image.notes, *_notes(image, indices))
            seen = replace(image, evidence=tuple(look.evidence.tolist()), notes=notes)
            if self.plan.evidence == "prototypes":
                maps = tuple(class_maps(logits, image.nouns, indices) for logits in look.passes)
                yield replace(seen, asked=indices, maps=maps)
            else:
                yield asking(seen, request, self.plan, session, indices)

    def looks(self, images: Sequence[PreparedImage], session: BackboneSession) -> Iterator[Look]:
        """What the model says of each image before anything is asked."""
        rule = RULES[self.plan.evidence or ""]
        if self.plan.evidence == "prototypes":
            assert self.prototypes is not None  # the plan has checked it
            others: tuple[str, ...] = self.prototypes.nouns
        else:
            others = (*self.plan.background_classes, *session.backbone.settings.nouns)
        competitors = [competing(image.nouns, others) for image in images]
        look = self._log_posteriors if self.plan.evidence == "prototypes" else self._log_shares
        for image, (passes, prompts) in zip(images, look(images, competitors, session), strict=True):
            evidence = rule.evidence(torch.stack(passes).mean(0))[: len(image.classes)]
            yield Look(tuple(passes), evidence, len(passes) * prompts * len(image.tiles))

    def _log_shares(
        self, images: Sequence[PreparedImage], competitors: Sequence[Sequence[Noun]], session: BackboneSession
    ) -> Iterator[tuple[list[Float[Tensor, "noun height width"]], int]]:
        """The logarithm of each noun's share, minus what it is on images without content, in every pass; prompts."""
        looker = self.model.with_plan(self.look_plan)
        asked = [self._asking_for(image, nouns, session) for image, nouns in zip(images, competitors, strict=True)]
        for image, nouns, passes in zip(asked, competitors, looker.passes(asked, session), strict=True):
            prior = self.content_free.prior(nouns, partial(self._content_free_shares, session))
            logits = [(maps.classes + TINY).log() - prior.to(maps.classes)[:, None, None] for maps in passes]
            yield logits, len(image.prompts)

    def _content_free_shares(
        self, session: BackboneSession, images: Sequence[Image.Image], nouns: Sequence[Noun]
    ) -> list[Float[Tensor, "noun height width"]]:
        looker = self.model.with_plan(replace(self.look_plan, window=False, flip=False))
        names = {noun.name: noun.words[1:] for noun in nouns}
        requests = [SegmentationRequest(image, names, (), background=None) for image in images]
        prepared = [self._asking_for(prepare(each, self.plan, session), nouns, session) for each in requests]
        return [mean(passes).classes for passes in looker.passes(prepared, session)]

    def _asking_for(self, image: PreparedImage, nouns: Sequence[Noun], session: BackboneSession) -> PreparedImage:
        """The image with a prompt, or prompts, that name all nouns as classes."""
        request = SegmentationRequest("", [noun.name for noun in nouns], (), background=None)
        named = RequestNouns(tuple(nouns), (), by_default=False, kept=None, notes=())
        prompts, _, _ = prompts_of(request, named, self.look_plan, session)
        return replace(image, prompts=prompts)

    def _log_posteriors(
        self, images: Sequence[PreparedImage], competitors: Sequence[Sequence[Noun]], session: BackboneSession
    ) -> Iterator[tuple[list[Float[Tensor, "noun height width"]], int]]:
        """The log posterior of each noun, up to what all share, for each seed, as it is and mirrored; prompts, 1."""
        assert self.prototypes is not None  # the plan has checked it
        model, plan = self.model, self.plan
        logits: list[list[Tensor]] = [[] for _ in images]
        with model.inference():
            for flip in (False, True) if plan.flip else (False,):
                views = [image.mirrored() if flip else image for image in images]
                latents = [model.backbone.latents(view.tiles, view.size, model.batch) for view in views]
                for seed in plan.seeds:
                    sums = [ImageLogits.of(self.prototypes, view.windows) for view in views]
                    rows = zip(sums, latents, views, strict=True)
                    session.run(
                        (row for each, latent, view in rows for row in each.items(latent, view.size, seed)), model.batch
                    )
                    for maps, each in zip(logits, sums, strict=True):
                        maps.append(each.logits().flip(-1) if flip else each.logits())
        for nouns, maps in zip(competitors, logits, strict=True):
            indices = [self.prototypes.indices(noun) for noun in nouns]
            yield [torch.stack([each[rows].amax(0) for rows in indices]) for each in maps], 1


def class_maps(logits: Float[Tensor, "noun height width"], nouns: RequestNouns, indices: Sequence[int]) -> ClassMaps:
    """What a look says of the classes at `indices`: each cell shared out among them and the background.

    The background is the best of the background classes or, without any, of all other nouns.

    Args:
        logits: of the classes, then the background classes, then other nouns.
        nouns: of the request.
        indices: of the classes that are kept.
    """
    count, end = len(nouns.classes), len(nouns.classes) + len(nouns.background_classes)
    others = logits[count:end] if end > count else logits[count:]
    kept = logits[list(indices)]
    shares = torch.cat([kept, others]).softmax(0)
    classes = shares[: len(kept)]
    return ClassMaps(classes, shares[len(kept) :].amax(0) if len(others) else None, classes.amax((-2, -1)))


def _kept(
    evidence: Float[Tensor, " class"], kept: Sequence[int] | None, floor: float, background: bool
) -> tuple[int, ...]:
    """The indices of the classes that are there; where there is no background, the best one at least."""
    indices = list(range(len(evidence)) if kept is None else kept)
    if not indices:
        return ()
    among = evidence[indices]
    there = present(among, floor, background)
    if not background and not there.any():
        there[among.argmax()] = True
    return tuple(index for index, is_there in zip(indices, there.tolist(), strict=True) if is_there)


def _notes(image: PreparedImage, indices: Sequence[int]) -> tuple[str, ...]:
    missing = [name for index, name in enumerate(image.classes) if index not in set(indices)]
    if not missing:
        return ()
    more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
    return (f"too little evidence for {', '.join(missing[:LISTED])}{more}: no pixels",)
