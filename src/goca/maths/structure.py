"""How much of an image's structure an affinity shows: figures without labels, for choosing blocks.

An affinity holds each cell's attention to every other one; its rows sum to 1. All functions take a stack
of affinities of the same image and give a figure for each.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from goca.maths import Grid

Affinities = Float[Tensor, "affinity cell cell"]
Figures = Float[Tensor, " affinity"]
TINY = 1e-12


def pooling(grid: Grid, cells: Grid, like: Tensor) -> Float[Tensor, "cell pixel"]:
    """Averages the pixels of each cell; of a grid coarser than the cells, repeats them. Rows sum to 1."""
    rows, columns = (_axis(side, count, like) for side, count in zip(grid, cells, strict=True))
    return torch.kron(rows, columns)


def _axis(side: int, count: int, like: Tensor) -> Float[Tensor, "cell pixel"]:
    return F.adaptive_avg_pool1d(torch.eye(side, device=like.device)[None], count)[0].T.clone(
        memory_format=torch.contiguous_format
    )


def pooled(
    blocks: Iterable[tuple[slice, Float[Tensor, "_ pixel"]]], pool: Float[Tensor, "cell pixel"]
) -> Float[Tensor, "cell cell"]:
    """An affinity that comes some rows at a time, between cells: rows are averaged, and made to sum to 1."""
    total = sum(pool[:, rows] @ (affinity @ pool.T) for rows, affinity in blocks)
    assert isinstance(total, Tensor)  # an affinity has rows
    return total / total.sum(-1, keepdim=True).clamp(min=TINY)


def mirrored(affinity: Affinities, cells: Grid) -> Affinities:
    """The affinities of the image flipped left to right."""
    shape = (len(affinity), *cells, *cells)
    return affinity.reshape(shape).flip(2, 4).reshape(affinity.shape)


class Repeatability:
    """How well two looks at the same image agree in what sets it apart from other images; -1 to 1.

    The correlation, over images and entries, of how two affinities deviate from their own means over images. What every
    image has, such as attention to neighbours or to nothing in particular, does not count. Only sums are kept.
    """

    def __init__(self) -> None:
        self.images = 0
        self._sums: tuple[Tensor, Tensor] | None = None
        self._products: Float[Tensor, "3 affinity"] | None = None

    def add(self, first: Affinities, second: Affinities) -> None:
        """Take the affinities of one image, in two looks."""
        pairs = ((first, second), (first, first), (second, second))
        products = torch.stack([(a * b).sum((-2, -1), dtype=torch.float64) for a, b in pairs])
        if self._sums is None or self._products is None:
            self._sums, self._products = (first.clone(), second.clone()), products
        else:
            self._sums[0].add_(first)
            self._sums[1].add_(second)
            self._products += products
        self.images += 1

    def value(self) -> Figures:
        """The correlation; 0 if either look is the same for every image."""
        assert self._sums is not None
        assert self._products is not None
        first, second = (total.double() / self.images for total in self._sums)
        pairs = ((first, second), (first, first), (second, second))
        means = torch.stack([(a * b).sum((-2, -1)) for a, b in pairs])
        together, *alone = self._products / self.images - means
        # What is left of float32's rounding does not count as deviation.
        spread = [torch.where(square > 1e-6 * mean, square, 0.0) for square, mean in zip(alone, means[1:], strict=True)]
        product = spread[0] * spread[1]
        return torch.where(product > 0, together / product.clamp(min=TINY**2).sqrt(), 0.0)


def segments(affinity: Affinities) -> Figures:
    """The logarithm of the number of segments in an affinity: 0 if all rows are alike, log(cells) if none are.

    The mutual information between a cell and the cells that it attends to. With k equal segments whose cells
    attend only to their own segment, it is log(k).
    """
    return _entropy(affinity.mean(-2)) - _entropy(affinity).mean(-1)


def _entropy(shares: Float[Tensor, "*_row cell"]) -> Float[Tensor, "*_row"]:
    return -torch.special.xlogy(shares, shares).sum(-1)


def explained_by_others(affinity: Affinities, maps: Float[Tensor, "map cell"]) -> Figures:
    """How well a cell's values follow from those of the other cells that it attends to; at most 1.

    The share of the variance of maps that is left if each cell is given the mean of the others, weighed by affinity,
    taken from 1. What a cell gives to itself would explain everything, and does not count.
    """
    maps = maps - maps.mean(-1, keepdim=True)
    others = affinity.masked_fill(torch.eye(affinity.shape[-1], dtype=torch.bool, device=affinity.device), 0.0)
    others = others / others.sum(-1, keepdim=True).clamp(min=TINY)
    error = (maps - maps @ others.transpose(-1, -2)).square().sum((-2, -1))
    return 1 - error / maps.square().sum().clamp(min=TINY)


def predicted(affinity: Affinities, maps: Float[Tensor, "map cell"], other_maps: Float[Tensor, "map cell"]) -> Figures:
    """How well maps, refined by an affinity, agree with the same maps as another look has them; -1 to 1.

    The correlation within maps. What differs between looks is noise: an affinity that averages it out within objects
    raises the correlation, one that does nothing keeps it, one that averages across objects lowers it.
    """
    refined = maps @ affinity.transpose(-1, -2)
    centred, other = (each - each.mean(-1, keepdim=True) for each in (refined, other_maps))
    norms = centred.flatten(1).norm(dim=1) * other.norm()
    return (centred * other).sum((-2, -1)) / norms.clamp(min=TINY)
