"""Class maps on the common grid: from shares of attention to scores, and averages over passes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from goca.maths.refine import Propagates, propagate
from goca.maths.refit import ImageFeatures
from goca.maths.rescale import TokenMass, minmax, rescale, share
from goca.plan import Plan
from goca.text.token_spans import NounTokens


@dataclass(frozen=True)
class ClassMaps:
    """Scores on the common grid.

    Attributes:
        classes: The map of each class, in [0, 1].
        background: The background's map; None without background classes.
        peaks: The highest share of a cell's attention that each class has, before any rescaling.
        features: Features to which the maps of all the image's prompts are still to be refitted, those of the first
            prompt; None for no refit.
    """

    classes: Float[Tensor, "class height width"]
    background: Float[Tensor, "height width"] | None
    peaks: Float[Tensor, " class"]
    features: ImageFeatures | None = None

    def mirrored(self) -> "ClassMaps":
        """The maps flipped left to right."""
        background = None if self.background is None else self.background.flip(-1)
        return ClassMaps(self.classes.flip(-1), background, self.peaks)


def on_host(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors on the CPU, copied from the GPU in one synchronisation; all are on one device."""
    there = [tensor for tensor in tensors if tensor is not None]
    if all(tensor.device.type == "cpu" for tensor in there):
        return list(tensors)
    raw = torch.cat([tensor.flatten().view(torch.uint8) for tensor in there]).cpu()
    parts = raw.split([tensor.nbytes for tensor in there])
    # Copies, because values must be aligned to their size.
    here = iter(part.clone().view(like.dtype).view(like.shape) for part, like in zip(parts, there, strict=True))
    return [None if tensor is None else next(here) for tensor in tensors]


def rescaled(plan: Plan, mass: TokenMass, tokens: NounTokens) -> Float[Tensor, "class height width"]:
    """Comparable maps of the nouns: the classes, then the maximum of all background classes."""
    # The share of a single noun is 1 everywhere.
    steps = [step for step in plan.rescale if step is not share or len(tokens.nouns) > 1]
    maps = rescale(mass, steps)
    if not tokens.background_classes:
        return maps
    count = len(tokens.classes)
    return torch.cat([maps[:count], maps[count:].amax(0, keepdim=True)])


def peaks_of(mass: TokenMass) -> Float[Tensor, " noun"]:
    """The highest share of a cell's attention, padding included, that each noun has; 0 to 1."""
    return mass.raw.amax((-2, -1)).clamp(0, 1)


def refined(
    plan: Plan,
    affinity: Propagates,
    maps: Float[Tensor, "class height width"],
    tokens: NounTokens,
    peaks: Float[Tensor, " noun"],
) -> ClassMaps:
    """Rescaled maps, propagated along the affinity `plan.order` times and min-maxed; unchanged with order 0."""
    if plan.order:
        maps = minmax(propagate(affinity, maps, plan.order))
    count = len(tokens.classes)
    return ClassMaps(maps[:count], maps[count] if tokens.background_classes else None, peaks[:count])


def joined(plan: Plan, prompts: Sequence[ClassMaps]) -> ClassMaps:
    """The maps of an image's prompts: classes one after the other, background classes merged by maximum; refitted."""
    if len(prompts) == 1:
        return refitted(plan, prompts[0])
    background = [maps.background for maps in prompts if maps.background is not None]
    classes, peaks = (torch.cat([getattr(maps, name) for maps in prompts]) for name in ("classes", "peaks"))
    merged = ClassMaps(classes, torch.stack(background).amax(0) if background else None, peaks, prompts[0].features)
    return refitted(plan, merged)


def refitted(plan: Plan, maps: ClassMaps) -> ClassMaps:
    """The maps, including the background's, fitted to their features; a single map is left unchanged.

    All classes compete, whichever prompt named them; the features are those of the image under the first prompt.
    """
    background = maps.classes[:0] if maps.background is None else maps.background[None]
    every, count = torch.cat([maps.classes, background]), len(maps.classes)
    if plan.refit is None or maps.features is None or len(every) == 1:
        return replace(maps, features=None)
    every = maps.features.refit(plan.refit, minmax(every))
    return ClassMaps(every[:count], every[count] if len(background) else None, maps.peaks)


def mean(passes: Sequence[ClassMaps]) -> ClassMaps:
    """The average over the passes for one image."""
    if len(passes) == 1:
        return passes[0]
    background = [maps.background for maps in passes if maps.background is not None]
    classes, peaks = (torch.stack([getattr(maps, name) for maps in passes]).mean(0) for name in ("classes", "peaks"))
    return ClassMaps(classes, torch.stack(background).mean(0) if background else None, peaks)


def ensemble_std(passes: Sequence[ClassMaps]) -> Float[Tensor, "class height width"] | None:
    """The standard deviation of each class score over the passes; None for a single pass."""
    return torch.stack([maps.classes for maps in passes]).std(0, correction=0) if len(passes) > 1 else None
