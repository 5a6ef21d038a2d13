"""Background: a score for "none of the classes", and the label of each pixel (method: settled after upsampling)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from goca.maths import Grid
from goca.maths.edges import Edges
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


def labels(
    classes: Float[Tensor, "class h w"],
    background_scores: Float[Tensor, "h w"] | None,
    backgrounds: Iterable[Background],
    size: Grid,
    guide: UInt8[Tensor, "height width 3"] | None = None,
    strip: int = 64,
) -> Iterator[Int[Tensor, "height width"]]:
    """Labels under each of several backgrounds, from scores that are upsampled once.

    Args:
        classes: scores on the common grid; a class whose map is -inf cannot win.
        background_scores: what the background classes score; None counts as 0.
        backgrounds: the rules to label by.
        size: of the labels, in pixels.
        guide: the image, RGB, whose edges the upsampled scores follow; without it they are resized bilinearly.
        strip: rows that are upsampled at once without a guide, which bounds the memory.

    Yields:
        0 for background, i for class i - 1. Ties go to the background, then to the first class.
    """
    absent = classes.isneginf().flatten(1).all(1)
    if guide is None:
        extra, best, winner = _upsampled(classes, background_scores, absent, size, strip)
    else:
        extra, best, winner = _along_edges(classes, background_scores, absent, guide)
    for background in backgrounds:
        lost = background.rule(background.threshold, extra) >= best
        yield torch.where(lost, 0, winner + 1)


def _upsampled(
    classes: Tensor, background_scores: Tensor | None, absent: Tensor, size: Grid, strip: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(background scores, best score, best class) at `size`, some rows at a time."""
    extra = torch.zeros_like(classes[0]) if background_scores is None else background_scores
    maps = torch.cat([extra[None], classes])
    by, bx = (bilinear(cells, pixels, maps) for cells, pixels in zip(maps.shape[-2:], size, strict=True))
    wide = einsum(maps, bx, "channel h w, width w -> channel h width")
    parts = []
    for rows in by.split(strip):
        scores = einsum(wide, rows, "channel h width, height h -> channel height width")
        # In the products 0 * -inf gave NaN.
        scores[1:][absent] = -torch.inf
        parts.append((scores[0], *scores[1:].max(0)))
    extra, best, winner = map(torch.cat, zip(*parts, strict=True))
    return extra, best, winner


def _along_edges(
    classes: Tensor, background_scores: Tensor | None, absent: Tensor, guide: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(background scores, best score, best class) at the guide's size, one class at a time."""
    edges = Edges(guide, (classes.shape[-2], classes.shape[-1]))
    extra = classes.new_zeros(edges.size) if background_scores is None else edges.follow(background_scores)
    best = torch.full_like(extra, -torch.inf)
    winner = torch.full(edges.size, -1, dtype=torch.long, device=classes.device)
    for index in (~absent).nonzero().flatten().tolist():
        scores = edges.follow(classes[index])
        better = scores > best
        winner[better] = index
        best = torch.where(better, scores, best)
    return extra, best, winner
