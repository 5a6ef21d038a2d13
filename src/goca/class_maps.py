"""Class maps on the common grid: from the nouns' shares of attention to scores, and averages over passes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from goca.maths.refine import Propagates, propagate
from goca.maths.rescale import TokenMass, minmax, rescale, share
from goca.plan import Plan
from goca.text.token_spans import NounTokens


@dataclass(frozen=True)
class ClassMaps:
    """Scores on the common grid, each map in [0, 1]; background is None where there are no background classes."""

    classes: Float[Tensor, "class height width"]
    background: Float[Tensor, "height width"] | None

    def mirrored(self) -> "ClassMaps":
        """Left and right exchanged."""
        return ClassMaps(self.classes.flip(-1), None if self.background is None else self.background.flip(-1))


def rescaled(plan: Plan, mass: TokenMass, tokens: NounTokens) -> Float[Tensor, "class height width"]:
    """Maps of the nouns that compare with each other: classes, then the maximum of all background classes."""
    # With one noun its share is 1 everywhere and says nothing.
    steps = [step for step in plan.rescale if step is not share or len(tokens.nouns) > 1]
    maps = rescale(mass, steps)
    if not tokens.background_classes:
        return maps
    count = len(tokens.classes)
    return torch.cat([maps[:count], maps[count:].amax(0, keepdim=True)])


def refined(
    plan: Plan, affinity: Propagates, maps: Float[Tensor, "class height width"], tokens: NounTokens
) -> ClassMaps:
    """Rescaled maps, propagated along the affinity `plan.order` times and min-maxed; as they are with order 0."""
    if plan.order:
        maps = minmax(propagate(affinity, maps, plan.order))
    count = len(tokens.classes)
    return ClassMaps(maps[:count], maps[count] if tokens.background_classes else None)


def joined(prompts: Sequence[ClassMaps]) -> ClassMaps:
    """The maps of an image's prompts: classes one after the other, background classes merged by maximum."""
    background = [maps.background for maps in prompts if maps.background is not None]
    classes = torch.cat([maps.classes for maps in prompts])
    return ClassMaps(classes, torch.stack(background).amax(0) if background else None)


def mean(passes: Sequence[ClassMaps]) -> ClassMaps:
    """The average over the passes for one image."""
    background = [maps.background for maps in passes if maps.background is not None]
    classes = torch.stack([maps.classes for maps in passes]).mean(0)
    return ClassMaps(classes, torch.stack(background).mean(0) if background else None)


def ensemble_std(passes: Sequence[ClassMaps]) -> Float[Tensor, "class height width"] | None:
    """The standard deviation of each class score over the passes; None for a single pass."""
    return torch.stack([maps.classes for maps in passes]).std(0, correction=0) if len(passes) > 1 else None
