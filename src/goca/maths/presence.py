"""Presence: how surely an image shows each of some nouns, from the logits of every cell."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

EXPECTED = 8
"""About the largest number of named nouns that an image shows."""
AROUND = 2
"""Number of these that are surroundings, and belong to the background if there is one."""


@dataclass(frozen=True)
class PresenceRule:
    """How evidence is computed from logits: by the share of the image that a noun wins from all others.

    Attributes:
        sharpness: Factor of the logits before the softmax over nouns in each cell.
        window: Side of the window over which logits are averaged first, as a share of the image's shorter side.
        half: Share at which evidence is 0.5, in units of the share that each of the nouns would have by chance.
        trust: Exponent of the odds: the odds of a noun are (share / half) to this power.
    """

    sharpness: float
    window: float
    half: float
    trust: float = 1.0

    def shares(self, logits: Float[Tensor, "noun height width"]) -> Float[Tensor, " noun"]:
        """The share of the image that each noun wins: the mean over cells of the softmax over nouns; sums to 1."""
        side = max(1, round(self.window * min(logits.shape[-2:])) // 2 * 2 + 1)
        near = F.avg_pool2d(logits[:, None], side, stride=1, padding=side // 2, count_include_pad=False)[:, 0]
        return (near * self.sharpness).softmax(0).mean((-2, -1))

    def evidence(self, logits: Float[Tensor, "noun height width"]) -> Float[Tensor, " noun"]:
        """odds / (1 + odds), in [0, 1], where a noun's odds are (share / half) ** trust."""
        odds = (self.shares(logits) * len(logits) / self.half) ** self.trust
        return odds / (1 + odds)


def present(evidence: Float[Tensor, " class"], floor: float, background: bool) -> Bool[Tensor, " class"]:
    """The classes that an image shows: those whose evidence, given how many were named, reaches the floor.

    Of n names an image shows at most about `EXPECTED`, `AROUND` fewer with a background. So the prior odds of a name
    are p / (1 - p), where p is that number / n; with a background it is never likelier than not.

    Args:
        evidence: Evidence of each requested class.
        floor: 0 to 1; 0 keeps all. It applies unchanged if a name is as likely as not a priori, so for up to twice as
            many names as an image shows at most beside a background.
        background: Whether pixels may be background.
    """
    expected = EXPECTED - AROUND if background else EXPECTED
    prior = min(expected / max(1, len(evidence)), 0.5 if background else 1.0)
    if floor <= 0 or prior == 1:
        return torch.ones_like(evidence, dtype=torch.bool)
    if floor >= 1:
        return evidence >= 1
    needed = math.log(floor / (1 - floor)) - math.log(prior / (1 - prior))
    return torch.logit(evidence.double()) >= needed


def shown(evidence: Float[Tensor, " class"], floor: float, background: bool) -> Bool[Tensor, " class"]:
    """`present`, or the likeliest class if there is none and no background."""
    there = present(evidence, floor, background)
    if not background and len(evidence) and not there.any():
        there[evidence.argmax()] = True
    return there
