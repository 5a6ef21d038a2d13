"""Prototypes: Gaussians, one or more for each class, all with one covariance: log posteriors linear in the features.

Prototypes as in OVDiff (Karazija et al. 2023, arXiv 2306.09316), compared as linear discriminant analysis does.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class ClassMoments:
    """Counts and sums of each class's features, and the second moment of all: sums alone, in double precision.

    Features should be standardised roughly, so that differences of large sums stay exact.
    """

    def __init__(self, classes: int, features: int) -> None:
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self.sums = torch.zeros(classes, features, dtype=torch.float64)
        self.second = torch.zeros(features, features, dtype=torch.float64)

    def add(self, features: Float[Tensor, "feature place"], classes: Int[Tensor, " place"]) -> None:
        """Add places, each with the index of its class."""
        places, classes = features.cpu().double().T, classes.cpu()  # not every device has float64
        self.counts += classes.bincount(minlength=len(self.counts))
        self.sums.index_add_(0, classes, places)
        self.second.addmm_(places.T, places)


def k_means(
    points: Float[Tensor, "place feature"], count: int, seed: int, rounds: int = 10
) -> Float[Tensor, "centre feature"]:
    """Centres of `count` groups of near points, or as many as there are points, each the mean of its group."""
    centres = points[torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:count]]
    for _ in range(rounds):
        groups = torch.cdist(points, centres).argmin(1)
        sizes = groups.bincount(minlength=len(centres))[:, None]
        sums = torch.zeros_like(centres).index_add_(0, groups, points)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def discriminants(
    moments: ClassMoments, shrinkage: float
) -> tuple[Float[Tensor, "class feature"], Float[Tensor, " class"]]:
    """The (weight, bias) with which `weight @ x + bias` is a place's log posterior, up to a common constant.

    With the means m_c and the covariance S within classes, weight_c = (S + shrinkage V)^-1 (m_c - m) and bias_c =
    -weight_c (m_c + m) / 2, every class as likely as any other; m is the mean, and V has the variances, of all places
    together. So no scale of a feature matters.

    Args:
        moments: Of one place or more; the row of a class without places is meaningless.
        shrinkage: Above 0.
    """
    total = moments.counts.sum()
    means = moments.sums / moments.counts.clamp(min=1)[:, None]
    mean = moments.sums.sum(0) / total
    within = (moments.second - (means.T * moments.counts) @ means) / total
    variances = moments.second.diag() / total - mean.square()
    # A constant feature carries no information; its remaining variance is rounding.
    variances = torch.where(variances > 1e-9 * moments.second.diag() / total, variances, 1.0)
    scale = variances.sqrt()
    shrunk = within / torch.outer(scale, scale) + shrinkage * torch.eye(len(scale), dtype=scale.dtype)
    weight = torch.linalg.solve(shrunk, ((means - mean) / scale).T).T / scale
    return weight, -(weight * (means + mean)).sum(1) / 2
