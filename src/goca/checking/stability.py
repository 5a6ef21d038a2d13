"""Do the labels depend on the image and not on the noise, and are the model's settings good ones?"""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from goca.checking.subject import Labels, Subject, skill
from goca.checking.verdict import Verdict, judged, skipped
from goca.diffusion.attention_call import AttentionCall

LEAST_SKILL = 0.3
TIMESTEPS = (100, 200, 300)
"""Timesteps with which the model's own is compared: those that segmenters use."""
MOST_BEHIND = 0.15
"""Largest difference in skill between the best of them and the model's own timestep."""
LEAST_SHARE = 0.5
"""Least share of the best block's separation that the reference block must have."""

Features = dict[str, tuple[Float[Tensor, "pixel channel"], tuple[int, int]]]


def seeds(subject: Subject) -> Verdict:
    """Other noise gives much the same labels."""
    return agreement(
        "same labels with other noise",
        subject.seen,
        subject.labels(seed=1),
        "labels depend on the image",
        "labels depend on the noise: the timestep is too high, or weights are damaged",
    )


def mirror(subject: Subject) -> Verdict:
    """The mirrored image gives the mirrored labels."""
    return agreement(
        "same labels mirrored",
        subject.seen,
        subject.labels(mirrored=True),
        "labels depend on the image",
        "labels depend on the image's left and right: the timestep is too high, or pixels are out of order",
    )


def agreement(name: str, first: Sequence[Labels], second: Sequence[Labels], passed: str, failed: str) -> Verdict:
    """The verdict on two labellings of the same images, by `skill`."""
    value, miou, chance = skill(first, second)
    return judged(
        name,
        value >= LEAST_SKILL,
        {"skill": value, "mIoU": miou, "mIoU by chance": chance},
        f">= {LEAST_SKILL} (0 is chance)",
        passed,
        failed,
    )


def timestep(subject: Subject) -> Verdict:
    """The model's timestep recovers generated objects about as well as the best of the usual ones."""
    name = "the timestep is a good one"
    if subject.refusal is not None:
        return skipped(name, f"the pipeline cannot generate images: {subject.refusal}")
    meant = [each.meant for each in subject.painted if each.meant is not None]
    others = {step: skill(meant, subject.labels(step))[0] for step in TIMESTEPS if (step,) != subject.plan.timestep}
    stated = skill(meant, subject.seen)[0]
    best = max(others, key=lambda step: others[step])
    return judged(
        name,
        stated >= others[best] - MOST_BEHIND,
        {
            "behind the best": others[best] - stated,
            "skill": stated,
            **{f"skill at {step}": value for step, value in others.items()},
        },
        f"<= {MOST_BEHIND} ({', '.join(map(str, TIMESTEPS))})",
        f"timestep {', '.join(map(str, subject.plan.timestep))} recovers generated objects as well as others",
        f"timestep {best} recovers more of the generated objects: set timestep={best}, and please report it",
    )


@torch.no_grad()
def reference(subject: Subject) -> Verdict:
    """The reference block's feature separates the regions of an image about as well as the best block's."""
    name, measured = "the reference block is a good one", separations(subject)
    best, stated = max(measured, key=lambda block: measured[block]), measured.get(subject.plan.reference, 0.0)
    return judged(
        name,
        stated >= LEAST_SHARE * measured[best] and stated > 0,
        {
            "share of the best": stated / max(1e-9, measured[best]),
            "separation": stated,
            "best": measured[best],
            "best block": best,
            "median": float(np.median([*measured.values()])),
        },
        f">= {LEAST_SHARE}",
        f"{subject.plan.reference} separates regions",
        f"{subject.plan.reference} hardly separates regions, {best} does: name that in a recipe, reference=..., and "
        "please report it",
    )


@torch.no_grad()
def separations(subject: Subject) -> dict[str, float]:
    """{block: how much better than chance its feature is more similar within a region than across regions}.

    A region is what the model meant to generate or, if it does not generate, what it sees. For every pixel, this is the
    chance that a pixel of its own region is more similar to it than one of the other region; the baseline uses the
    regions of the other images, so that a feature that only depends on position has no separation.
    """
    regions = [
        seen if each.meant is None else each.meant for each, seen in zip(subject.shown, subject.seen, strict=True)
    ]
    values: dict[str, list[float]] = {}
    for number, each in enumerate(subject.shown):
        for block, (feature, grid) in features(subject, each.image, each.nouns).items():
            similar = feature @ feature.T
            masks = [torch.from_numpy(_resized(labels, grid)).flatten() for labels in regions]
            ranks = [region_rank(similar, mask.to(similar.device)) for mask in masks]
            others = [rank for index, rank in enumerate(ranks) if index != number and rank is not None]
            if (rank := ranks[number]) is not None and others:
                values.setdefault(block, []).append(rank - float(np.mean(others)))
    return {block: float(np.mean(each)) for block, each in values.items()}


def features(subject: Subject, image: Image.Image, nouns: tuple[str, ...]) -> Features:
    """{block: (its dense feature, as for a reference, and its grid)} from one pass."""
    of_blocks = Features()

    def sink(_: int, call: AttentionCall) -> None:
        if call.text is not None:
            chosen = call.q if subject.plan.feature == "query" else call.output
            feature = rearrange(chosen, "head pixel dim -> pixel (head dim)")
            if subject.plan.feature == "query" and call.query is not None:
                feature = call.query
            of_blocks[call.block] = feature.float(), call.grid

    latent = subject.backbone.latents([image], (subject.side, subject.side))
    subject.backbone.session().forward(latent, [", ".join(nouns)], subject.plan.timestep[0], 0, sink)
    return of_blocks


def _resized(labels: Labels, grid: tuple[int, int]) -> Bool[np.ndarray, "row column"]:
    image = Image.fromarray(labels.astype(np.uint8)).resize((grid[1], grid[0]), Image.Resampling.NEAREST)
    return np.asarray(image) == 1


def region_rank(similar: Float[Tensor, "pixel pixel"], mask: Bool[Tensor, " pixel"]) -> float | None:
    """The mean over pixels of the area under the ROC curve by which similarity separates the two regions."""
    if not 0 < int(mask.sum()) < len(mask):
        return None
    ranks = similar.argsort(dim=1).argsort(dim=1).float()
    same = mask[:, None] == mask[None]
    same.fill_diagonal_(False)
    other = mask[:, None] != mask[None]
    inside, outside = same.sum(1).float(), other.sum(1).float()
    # The other region's rank sum counts, for each of its pixels, own-region pixels and the pixel itself below it.
    own_sum = (ranks * same).sum(1)
    below_self = ((ranks.diagonal()[:, None] < ranks) & same).sum(1).float()
    wins = own_sum - inside * (inside - 1) / 2 - below_self
    usable = inside > 0
    return float((wins / (inside * outside).clamp(min=1))[usable].mean())
