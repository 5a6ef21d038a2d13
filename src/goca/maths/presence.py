"""Presence: how surely an image shows each of some nouns, from what every cell says of all of them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

EXPECTED = 8
"""About how many of the nouns that somebody names an image shows at most."""
AROUND = 2
"""How many of these are what surrounds things, and belong to the background where there is one."""


@dataclass(frozen=True)
class PresenceRule:
    """How evidence is read off logits: by the share of the image that a noun wins from all others.

    Attributes:
        sharpness: what the logits are multiplied by before the cells' softmax over nouns.
        window: side of the window over which logits are averaged first, as a share of the image's shorter side.
        half: the share at which evidence is 0.5, in units of the share that each of the nouns would have by chance.
        trust: how much the share says: the odds of a noun are (share / half) to this power.
    """

    sharpness: float
    window: float
    half: float
    trust: float = 1.0

    def shares(self, logits: Float[Tensor, "noun height width"]) -> Float[Tensor, " noun"]:
        """What share of the image each noun wins: the mean over cells of the softmax over nouns; sums to 1."""
        side = max(1, round(self.window * min(logits.shape[-2:])) // 2 * 2 + 1)
        near = F.avg_pool2d(logits[:, None], side, stride=1, padding=side // 2, count_include_pad=False)[:, 0]
        return (near * self.sharpness).softmax(0).mean((-2, -1))

    def evidence(self, logits: Float[Tensor, "noun height width"]) -> Float[Tensor, " noun"]:
        """odds / (1 + odds), in [0, 1], where a noun's odds are (share / half) ** trust."""
        odds = (self.shares(logits) * len(logits) / self.half) ** self.trust
        return odds / (1 + odds)


def present(evidence: Float[Tensor, " class"], floor: float, background: bool) -> Bool[Tensor, " class"]:
    """Which classes an image shows: those whose evidence, weighed by how many were named, reaches the floor.

    Of n names an image shows about `EXPECTED` at most, `AROUND` fewer where there is a background. So a name has odds
    of p / (1 - p) to begin with, where p is that number / n; beside a background it is never likelier than not.

    Args:
        evidence: of each class that is asked for.
        floor: 0 to 1; 0 keeps all. It is compared as it is where a name is as likely as not, so of up to twice
            as many names as an image shows at most beside a background.
        background: whether a pixel may be of no class.
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
    """`present`, and of an image without a background the likeliest class where none is."""
    there = present(evidence, floor, background)
    if not background and len(evidence) and not there.any():
        there[evidence.argmax()] = True
    return there
