"""Background: a score for "none of the classes", and the label of each pixel (method: settled after upsampling)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from goca.maths import Grid
from goca.maths.resize import bilinear

BackgroundRule = Callable[[float, Float[Tensor, "*pixels"]], Float[Tensor, "*pixels"]]
"""(threshold, background map) -> background score."""


def offset(threshold: float, background_scores: Float[Tensor, "*pixels"]) -> Float[Tensor, "*pixels"]:
    """threshold + background map (the authors' default)."""
    return threshold + background_scores


def maximum(threshold: float, background_scores: Float[Tensor, "*pixels"]) -> Float[Tensor, "*pixels"]:
    """max(threshold, background map)."""
    return background_scores.clamp(min=threshold)


def constant(threshold: float, background_scores: Float[Tensor, "*pixels"]) -> Float[Tensor, "*pixels"]:
    """The threshold alone."""
    return torch.full_like(background_scores, threshold)


def none(threshold: float, background_scores: Float[Tensor, "*pixels"]) -> Float[Tensor, "*pixels"]:
    """No background: every pixel gets a class."""
    return torch.full_like(background_scores, -torch.inf)


@dataclass(frozen=True)
class Background:
    """A rule and its threshold."""

    rule: BackgroundRule
    threshold: float = 0.0


def label(
    classes: Float[Tensor, "class h w"],
    background_scores: Float[Tensor, "h w"] | None,
    background: Background,
    size: Grid,
    strip: int = 64,
) -> Int[Tensor, "height width"]:
    """Upsample, settle the background, take the argmax: 0 = background, i = class i - 1. Strips bound the memory.

    A class whose map is -inf cannot win; without background_scores the background map is 0. Ties go to the background, then to
    the first class.
    """
    return next(labels(classes, background_scores, (background,), size, strip))


def labels(
    classes: Float[Tensor, "class h w"],
    background_scores: Float[Tensor, "h w"] | None,
    backgrounds: Iterable[Background],
    size: Grid,
    strip: int = 64,
) -> Iterator[Int[Tensor, "height width"]]:
    """What `label` says under each background; the maps are upsampled once, for which class is best needs none."""
    extra = torch.zeros_like(classes[:1]) if background_scores is None else background_scores[None]
    absent = classes.isneginf().flatten(1).all(1)
    maps = torch.cat([extra, classes])
    by, bx = (bilinear(cells, pixels, maps) for cells, pixels in zip(maps.shape[-2:], size, strict=True))
    wide = einsum(maps, bx, "channel h w, width w -> channel h width")
    found = []
    for rows in by.split(strip):
        scores = einsum(wide, rows, "channel h width, height h -> channel height width")
        # Said again: on the way 0 times -inf became nan.
        scores[1:][absent] = -torch.inf
        found.append((scores[0], *scores[1:].max(0)))
    supports, best, winner = (torch.cat(parts) for parts in zip(*found, strict=True))
    for background in backgrounds:
        lost = background.rule(background.threshold, supports) >= best
        yield torch.where(lost, 0, winner + 1)
