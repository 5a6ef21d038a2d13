"""Background: a score for "none of the classes", and the label of each pixel (method: settled after upsampling)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8, UInt16
from torch import Tensor

from goca.maths import Grid
from goca.maths.edges import Edges
from goca.maths.resize import resize_rows

STRIP_SCORES = 2**21
"""Scores that are upsampled at once; more takes memory and no less time."""

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
    strip: int | None = None,
) -> UInt16[Tensor, "background height width"]:
    """Labels under each of several backgrounds, from scores that are upsampled once, some rows at a time.

    Args:
        classes: scores on the common grid; a class whose map is -inf cannot win.
        background_scores: what the background classes score; None counts as 0.
        backgrounds: the rules to label by.
        size: of the labels, in pixels.
        guide: the image, RGB, whose edges the upsampled scores follow; without it they are resized bilinearly.
        strip: rows at a time, which the labels do not depend on; by default as many as keep memory small.

    Returns:
        On the CPU: 0 for background, i for class i - 1. Ties go to the background, then to the first class.
    """
    backgrounds = tuple(backgrounds)
    extra = torch.zeros_like(classes[0]) if background_scores is None else background_scores
    maps = torch.cat([extra[None], classes])
    height, width = size
    # Along edges classes are taken one by one, because each is a fit to the whole image.
    strip = strip or max(1, STRIP_SCORES // (width * (len(maps) if guide is None else 1)))
    strips = [slice(start, min(start + strip, height)) for start in range(0, height, strip)]
    scored = _along_edges(maps, guide, strips) if guide is not None else _upsampled(maps, size, strips)
    out = torch.empty((len(backgrounds), height, width), dtype=torch.uint16)
    for rows, (extra, best, winner) in zip(strips, scored, strict=True):
        for index, background in enumerate(backgrounds):
            lost = background.rule(background.threshold, extra) >= best
            out[index, rows] = torch.where(lost, 0, winner + 1).to("cpu", torch.uint16)
    return out


Scored = tuple[Float[Tensor, "row width"], Float[Tensor, "row width"], Int[Tensor, "row width"]]
"""(background scores, best score, best class) of some rows."""


def _upsampled(
    maps: Float[Tensor, "channel h w"], size: Grid, strips: Sequence[slice]
) -> Iterator[Scored]:
    """Strip by strip; maps: the background's, then the classes'."""
    absent = maps.isneginf().flatten(1).all(1)
    for rows in strips:
        scores = resize_rows(maps, size, rows)
        # Between cells, 0 * -inf gave NaN.
        scores[absent] = -torch.inf
        yield scores[0], *scores[1:].max(0)


def _along_edges(
    maps: Float[Tensor, "channel h w"], guide: UInt8[Tensor, "height width 3"], strips: Sequence[slice]
) -> Iterator[Scored]:
    """As `_upsampled`, at the guide's size."""
    edges = Edges(guide, (maps.shape[-2], maps.shape[-1]))
    best = maps.new_full(edges.size, -torch.inf)
    winner = torch.full(edges.size, -1, dtype=torch.int32, device=maps.device)
    for index, scores in enumerate(maps[1:]):
        if scores.isneginf().all():
            continue
        fit = edges.fit(scores)
        for rows in strips:
            followed = edges.follow(fit, rows)
            better = followed > best[rows]
            winner[rows][better] = index
            best[rows][better] = followed[better]
    extra = edges.fit(maps[0])
    for rows in strips:
        yield edges.follow(extra, rows), best[rows], winner[rows]
