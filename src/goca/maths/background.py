"""Background: a score for "none of the classes", and the label of each pixel (the method decides after upsampling)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8, UInt16
from torch import Tensor

from goca.maths import Grid
from goca.maths.edges import Edges
from goca.maths.resize import resize_rows, strips

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
    rows: Sequence[slice] | None = None,
) -> UInt16[Tensor, "background height width"]:
    """Labels under each of several backgrounds, from scores that are upsampled once, some rows at a time.

    Args:
        classes: Scores on the common grid; a class whose map is -inf cannot win.
        background_scores: Scores of the background classes; None counts as 0.
        backgrounds: The rules to label by.
        size: (height, width) of the labels, in pixels.
        guide: The image, RGB, whose edges the upsampled scores follow; without it they are resized bilinearly.
        rows: Rows that are labelled at a time, which does not change the labels; by default so few that memory does not
            grow with the number of classes.

    Returns:
        On the scores' device: 0 for background, i for class i - 1. Ties go to the background, then to the first class.
    """
    backgrounds = tuple(backgrounds)
    extra = torch.zeros_like(classes[0]) if background_scores is None else background_scores
    maps = torch.cat([extra[None], classes])
    # Along edges, classes are processed one by one, because each is a fit to the whole image.
    rows = rows or strips(size, len(maps) if guide is None else 1)
    scored = _upsampled(maps, size, rows) if guide is None else _along_edges(maps, guide, rows)
    out = torch.empty((len(backgrounds), *size), dtype=torch.uint16, device=maps.device)
    for strip, (extra, best, winner) in zip(rows, scored, strict=True):
        for index, background in enumerate(backgrounds):
            lost = background.rule(background.threshold, extra) >= best
            out[index, strip] = (winner + 1).masked_fill_(lost, 0)
    return out


Scored = tuple[Float[Tensor, "row width"], Float[Tensor, "row width"], Int[Tensor, "row width"]]
"""(background scores, best score, best class) of some rows."""


def _upsampled(maps: Float[Tensor, "channel h w"], size: Grid, rows: Sequence[slice]) -> Iterator[Scored]:
    """Strip by strip; maps: the background's, then the classes'."""
    absent = maps.isneginf().flatten(1).all(1)[:, None, None]
    for strip in rows:
        # Interpolation gives NaN for 0 * -inf.
        scores = resize_rows(maps, size, strip).masked_fill_(absent, -torch.inf)
        yield scores[0], *scores[1:].max(0)


def _along_edges(
    maps: Float[Tensor, "channel h w"], guide: UInt8[Tensor, "height width 3"], rows: Sequence[slice]
) -> Iterator[Scored]:
    """As `_upsampled`, at the guide's size."""
    edges = Edges(guide, (maps.shape[-2], maps.shape[-1]))
    best = maps.new_full(edges.size, -torch.inf)
    winner = torch.full(edges.size, -1, dtype=torch.int32, device=maps.device)
    for index, scores in enumerate(maps[1:]):
        if scores.isneginf().all():
            continue
        fit = edges.fit(scores)
        for strip in rows:
            followed = edges.follow(fit, strip)
            better = followed > best[strip]
            winner[strip][better] = index
            best[strip][better] = followed[better]
    extra = edges.fit(maps[0])
    for strip in rows:
        yield edges.follow(extra, strip), best[strip], winner[strip]
