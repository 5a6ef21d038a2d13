"""Refitting: class scores that follow the image's own features, by Gaussians fitted to the scores themselves.

If a model's attention to a class is weak, its features may still separate its pixels from others. So each class gets
a Gaussian of the features of the pixels that score for it, and scores are averaged with the posterior under these:
linear discriminant analysis, transductive, with soft labels. Constants were tried on scenes in training art.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from goca.maths import Grid
from goca.maths.resize import resize
from goca.maths.windows import Windows

PROJECTED = 64
"""Wider features are projected to this many dimensions before their principal components are taken."""
COMPONENTS = 24
"""Most principal components that are used as features."""
LOSING = 0.05
"""Weight of a pixel for a class that is not its best, relative to its best."""
RIDGE = 0.1
"""Part of the features' mean square that is added to their variance within classes."""
ROUNDING = 1e-5
"""A deviation below this share of the value is float32's rounding."""

Scores = Float[Tensor, "class pixel"]
Features = Float[Tensor, "pixel component"]
Refit = Callable[[Scores, Features], Scores]
RefitRule = Refit | None
never: RefitRule = None
"""Scores stay as they are."""


def components(outputs: Sequence[Float[Tensor, "pixel _"]]) -> Features:
    """The principal components of attention outputs of the pixels, each divided by its RMS; float32.

    Each attention's output is centred and divided by its mean norm; then all are side by side. Where they are wide they
    first go through a seeded Gaussian matrix, which nearly keeps distances (randomised PCA: Halko, Martinsson and Tropp
    2011). Components that are only rounding are left out.
    """
    widths = [output.shape[1] for output in outputs]
    like, width = outputs[0].new_empty(0, dtype=torch.float32), sum(widths)
    seeded = torch.Generator().manual_seed(0)  # of the CPU, so that every device has the same numbers
    basis = torch.eye(width) if width <= PROJECTED else torch.randn(width, PROJECTED, generator=seeded)
    total = like.new_zeros(len(outputs[0]), basis.shape[1])
    for output, rows in zip(outputs, basis.split(widths), strict=True):
        values = output.float()
        centred = values - values.mean(0)
        spread = centred.norm(dim=1).mean()
        if spread > ROUNDING * values.norm(dim=1).mean():
            total += centred @ rows.to(like) / spread
    # On the CPU, because not every device has float64, without which small components are lost in squares.
    exact = total.cpu().double()
    squares, axes = torch.linalg.eigh(exact.T @ exact)
    rms = (squares.clamp(min=0) / len(exact)).sqrt().flip(0)[:COMPONENTS]
    kept = (rms > ROUNDING * rms.max()).sum()  # the largest come first
    return total @ (axes.flip(1)[:, :kept] / rms[:kept]).to(like)


def gaussians(scores: Scores, features: Features) -> Scores:
    """The mean of the scores and of the posterior under Gaussians of the features, one for each class.

    A pixel counts for a class by the class's share of the pixel's scores, and fully for its best class alone. All
    Gaussians have the same variances, one for each component, and the classes are equally likely beforehand. Log
    densities are divided by the root of the number of components, as components of an image depend on each other.
    """
    positive = scores.clamp(min=1e-6)
    weights = positive / positive.sum(0) * ((scores == scores.amax(0)) + LOSING)
    mass = weights.sum(1, keepdim=True)
    means = weights @ features / mass
    # Within classes: the mean square of all, less that of the means.
    within = (weights.sum(0) @ features.square() - (mass * means.square()).sum(0)) / mass.sum()
    deviations = (within.clamp(min=0) + RIDGE * features.square().mean(0)).sqrt()
    distances = torch.cdist(means / deviations, features / deviations).square()
    posterior = torch.softmax(-0.5 * distances / math.sqrt(max(1, features.shape[1])), 0)
    return (scores + posterior) / 2


@dataclass(frozen=True)
class ImageFeatures:
    """The features of an image, those of its windows' pixels one window after the other.

    Attributes:
        windows: Where they lie; grid: the (height, width) in pixels of the features of each.
        components: Of all windows together, so that a class is the same in each.
    """

    windows: Windows
    grid: Grid
    components: Features

    def refit(self, rule: Refit, maps: Float[Tensor, "class height width"]) -> Float[Tensor, "class height width"]:
        """Maps refitted, each window's part on the features' grid (averaged over areas), resized back and joined."""
        cut = [self.windows.cut(maps, box) for box in self.windows.boxes]
        scores = torch.cat([F.adaptive_avg_pool2d(part, self.grid).flatten(1) for part in cut], 1)
        parts = rule(scores, self.components).split(math.prod(self.grid), 1)
        pairs = zip(parts, cut, strict=True)
        return self.windows.join(
            [resize(part.unflatten(1, self.grid), (old.shape[-2], old.shape[-1])) for part, old in pairs]
        )
