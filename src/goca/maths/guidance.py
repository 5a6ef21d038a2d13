"""Semantic-aware guidance: the rate of each pixel (Shen et al., CVPR 2024; with GoCA as the segmenter).

Classifier-free guidance is e = u + scale (c - u), of the noise predictions u without the prompt and c with it. Here
e = u + scale rate (c - u), with a rate at every pixel that gives the prompt the same effect in each region as in the
foreground. Everything is on the grid of the prediction, over all its channels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from goca.maths import Grid
from goca.maths.refine import Propagates, propagate
from goca.maths.rescale import Step, TokenMass, blur, minmax, rescale
from goca.maths.resize import nearest_pixels

EPSILON = 1e-8

Prediction = Float[Tensor, "channel height width"]
Rate = Float[Tensor, "height width"]


def token_maps(
    columns: Float[Tensor, "token height width"],
    prompt: Float[Tensor, "height width"],
    steps: Sequence[Step],
    affinity: Propagates,
    order: int,
) -> Float[Tensor, "token height width"]:
    """The maps of the tokens that compete for each pixel, in [0, 1].

    Args:
        columns: Their columns of the global map.
        prompt: Attention to all tokens of the prompt but special ones: each `share` is relative to it.
        steps: From columns to maps.
        affinity, order: The affinity that refines them, and how many times.
    """
    return minmax(propagate(affinity, rescale(TokenMass(columns, prompt, prompt), steps), order))


def foreground_map(
    column: Float[Tensor, "height width"], affinity: Propagates, order: int
) -> Float[Tensor, "height width"]:
    """A map in [0, 1], low in the foreground: the refined and blurred column of a token without meaning."""
    refined = minmax(propagate(affinity, column[None], order))
    return rescale(TokenMass(refined, column, column), (blur, minmax))[0]


def foreground_of(foreground_map: Float[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """The pixels where the map is below one half."""
    return foreground_map < 1 - foreground_map


def winners(maps: Float[Tensor, "token height width"]) -> Bool[Tensor, "token height width"]:
    """The pixels that each token wins; if several are exactly equal, all of them win, and their rates add up."""
    return maps == maps.amax(0)


def regions_of(labels: Int[Tensor, "height width"]) -> Bool[Tensor, "label height width"]:
    """The pixels of each label that occurs, in increasing order."""
    return labels == labels.unique()[:, None, None]


def to_grid(masks: Tensor, grid: Grid) -> Tensor:
    """Maps (..., height, width) on another grid, by nearest neighbour."""
    height, width = masks.shape[-2:]
    return masks.flatten(-2)[..., nearest_pixels((height, width), grid, masks.device)].unflatten(-1, grid)


def energy(delta: Prediction) -> Float[Tensor, "height width"]:
    """The prompt's effect on a pixel: the norm of c - u over channels."""
    return delta.norm(dim=0)


def region_means(
    energy: Float[Tensor, "height width"], regions: Bool[Tensor, "*region height width"]
) -> Float[Tensor, "*region"]:
    """The mean over each region; 0 for an empty one."""
    return (energy * regions).sum((-2, -1)) / (regions.sum((-2, -1)) + EPSILON)


def region_rates(
    energy: Float[Tensor, "height width"],
    regions: Bool[Tensor, "region height width"],
    foreground: Bool[Tensor, "height width"],
) -> Float[Tensor, " region"]:
    """The foreground's mean over the region's; 0 for an empty region, and for all if the foreground is empty."""
    rates = region_means(energy, foreground) / (region_means(energy, regions) + EPSILON)
    return rates * regions.any(-1).any(-1)


def rate_of_regions(
    energy: Float[Tensor, "height width"],
    regions: Bool[Tensor, "region height width"],
    foreground: Bool[Tensor, "height width"],
) -> Rate:
    """At each pixel the rate of its region, or of all its regions together if it is in several."""
    return (region_rates(energy, regions, foreground)[:, None, None] * regions).sum(0)


def rate_of_energy(energy: Float[Tensor, "height width"]) -> Rate:
    """Without regions: the mean energy of the image divided by the pixel's own.

    As if every pixel were a region and the whole image the foreground. In the spirit of SAMG (Li et al. 2026, arXiv
    2604.26503), which guides less where the energy is high and more where it is low, without attention; how SAMG goes
    from one to the other was not at hand, so its figures need not be reproduced.
    """
    return energy.mean() / (energy + EPSILON)


def clamped(rate: Rate, bounds: tuple[float, float] | None, limit: float | None, scale: float) -> Rate:
    """The rate clamped to bounds, and then so that scale times rate is at most `limit`; None for no bound."""
    if bounds is not None:
        rate = rate.clamp(*bounds)
    return rate if limit is None else rate.clamp(max=limit / scale)


def smoothed(rate: Rate) -> Rate:
    """3 x 3 Gaussian, exp(-d^2) at distance d, reflect padding (replicate if the grid is too narrow to reflect)."""
    taps = torch.exp(-(torch.arange(-1.0, 2.0, device=rate.device) ** 2))
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    mode = "reflect" if min(rate.shape) > 1 else "replicate"
    return F.conv2d(F.pad(rate[None, None], (1, 1, 1, 1), mode=mode), kernel[None, None].to(rate))[0, 0]


def moved_uncond(uncond: Prediction, cond: Prediction, rate: Rate | float, scale: float) -> Prediction:
    """The u' with which plain guidance has the rate: u' + scale (c - u') = u + scale rate (c - u). scale is not 1.

    c is unchanged, and so is what a pipeline computes from it after guidance.
    """
    return uncond - scale / (scale - 1) * (rate - 1) * (cond - uncond)


def effective_scale(rate: Rate, energy: Float[Tensor, "height width"], scale: float) -> float:
    """The scale at which plain guidance moves u as far along c - u: <e - u, c - u> / |c - u|^2.

    With e - u = scale rate (c - u), that is scale times the mean rate, weighted by the squared energy; the plain mean
    if the prompt changes nothing.
    """
    weights = energy.square()
    mean = (rate * weights).sum() / weights.sum() if bool(weights.any()) else rate.mean()
    return scale * float(mean)
