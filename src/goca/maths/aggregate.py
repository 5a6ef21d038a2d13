"""Auto aggregation (paper, gap 1): all heads of all layers become one map of pixels against tokens.

Heads are weighed pixel by pixel, by how much of their layer's output they made there. Layers are weighed by how well
their self-attention agrees with the model's own dense feature. A rule is a value: a function for heads, a `LayerRule`
for layers; a new rule is a new value, and nothing here knows the names.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from goca.maths import Grid
from goca.maths.attention import DENSE_PIXELS, affinity_blocks, probabilities
from goca.maths.resize import picked_pixels, resize, resize_keys, resize_keys_adjoint

HeadRule = Callable[[Float[Tensor, "pixel head dim"], Float[Tensor, "head dim model"]], Float[Tensor, "pixel head"]]
"""(head outputs z_h, output projection W_h) -> a weight for each head at each pixel, up to normalisation over heads."""


def mean_heads(
    parts: Float[Tensor, "pixel head dim"], weight: Float[Tensor, "head dim model"]
) -> Float[Tensor, "pixel head"]:
    """Every head weighs the same (DAAM and other averaging segmentors)."""
    return torch.ones_like(parts[..., 0])


def output_share(
    parts: Float[Tensor, "pixel head dim"], weight: Float[Tensor, "head dim model"]
) -> Float[Tensor, "pixel head"]:
    """<z_h W_h, o>: how much of the layer's output o = sum_h z_h W_h the head made (paper, head-wise weights).

    <z_h W_h, o> = <z_h, o W_h^T>, so one projection back replaces a tensor of pixel x head x model. May be negative.
    Where pixels outnumber channels, there and back at once is the shorter way: o W_h^T = sum_g z_g (W_g W_h^T).
    """
    heads, dims, _ = weight.shape
    if len(parts) > heads * dims:
        gram = einsum(weight, weight, "head dim model, other back model -> head dim other back")
        back = einsum(parts, gram, "pixel head dim, head dim other back -> pixel other back")
    else:
        output = einsum(parts, weight, "pixel head dim, head dim model -> pixel model")
        back = einsum(output, weight, "pixel model, head dim model -> pixel head dim")
    return (parts * back).sum(-1)


def output_share_clamped(
    parts: Float[Tensor, "pixel head dim"], weight: Float[Tensor, "head dim model"]
) -> Float[Tensor, "pixel head"]:
    """`output_share`, negative shares set to 0."""
    return output_share(parts, weight).clamp(min=0)


def l2_norm(
    parts: Float[Tensor, "pixel head dim"], weight: Float[Tensor, "head dim model"]
) -> Float[Tensor, "pixel head"]:
    """|z_h W_h|, through the Gram matrix W_h W_h^T of each head."""
    gram = einsum(weight, weight, "head dim model, head other model -> head dim other")
    squared = einsum(parts, gram, parts, "pixel head dim, head dim other, pixel head other -> pixel head")
    return squared.clamp(min=0).sqrt()


def cosine(
    parts: Float[Tensor, "pixel head dim"], weight: Float[Tensor, "head dim model"]
) -> Float[Tensor, "pixel head"]:
    """cos(z_h W_h, o), up to |o|, which all heads of a pixel share. May be negative."""
    length = l2_norm(parts, weight)
    return torch.where(length > 0, output_share(parts, weight) / length, 0.0)


def head_weights(
    rule: HeadRule, parts: Float[Tensor, "pixel head dim"], weight: Float[Tensor, "head dim model"]
) -> Float[Tensor, "pixel head"]:
    """The rule's weights over their sum: they sum to 1 over heads; equal where the sum is 0."""
    raw = rule(parts.float(), weight.float())
    total = raw.sum(-1, keepdim=True)
    return torch.where(total == 0, 1 / raw.shape[-1], raw / total)


def head_map(
    weights: Float[Tensor, "pixel head"], attention: Float[Tensor, "head pixel token"]
) -> Float[Tensor, "pixel token"]:
    """The layer's map: sum_h w_h(pixel) A_h(pixel, token)."""
    return einsum(weights, attention, "pixel head, head pixel token -> pixel token")


class Gathers(Protocol):
    """Makes one map of all layers', on a common grid: see `RunningMap`."""

    def add(self, weight: float, layer_map: Float[Tensor, "pixel token"], grid: Grid) -> None: ...
    def share(self, grid: Grid) -> float: ...
    def value(self) -> Float[Tensor, "token height width"]: ...


@dataclass(frozen=True)
class LayerRule:
    """How a layer's self-affinity S' is compared with the reference affinity R, both on the reference grid.

    weight = finish(sum over row blocks of statistics(R rows, S' rows)), clamped at 0. Without `statistics` the weight
    is 1 and no affinity is computed. `bilinear`: statistics is linear in R and in S', so the resizing of S may move to
    R (`Reference.pulled`). `balanced`: rows of S' are divided by their sum first. `gather`: what makes one map, on a
    given grid, of the weighted layers.
    """

    statistics: Callable[[Float[Tensor, "row key"], Float[Tensor, "row key"]], Float[Tensor, " statistic"]] | None
    finish: Callable[[Float[Tensor, " statistic"]], Float[Tensor, ""]] = lambda total: total[0]
    bilinear: bool = False
    balanced: bool = False
    gather: Callable[[Grid], Gathers] = lambda grid: RunningMap(grid)


mean_layers = LayerRule(statistics=None)
"""Every layer weighs the same."""
agreement = LayerRule(lambda r, s: (r * s).sum()[None], bilinear=True)
"""sum_ij R_ij S'_ij (paper, layer-wise weights). A layer s times coarser has rows that sum to s^2, and weighs more."""
balanced_agreement = LayerRule(agreement.statistics, bilinear=True, balanced=True)
"""`agreement` of affinities whose rows sum to 1 again after resizing: no grid is favoured."""
iou_like = LayerRule(
    lambda r, s: torch.stack([torch.minimum(r, s).sum(), torch.maximum(r, s).sum()]),
    finish=lambda total: total[0] / (total[1] + 1e-4),
)
"""sum min(R, S') / sum max(R, S')."""
inverse_distance = LayerRule(
    lambda r, s: (r - s).norm(dim=-1).sum()[None], finish=lambda total: 1 / total[0].clamp(min=1e-6)
)
"""1 / sum_i |R_i - S'_i| over rows i, at most 1e6."""


class Reference:
    """R = softmax(F F^T / sqrt(d)) of the reference layer's dense feature F, also as other grids see it.

    Matrices of up to 4096 x 4096, R itself among them, are kept; rows of larger ones are computed when asked for.
    """

    def __init__(self, feature: Float[Tensor, "pixel model"], grid: Grid) -> None:
        # As it came: it is widened when rows of R are computed, and those of a small one are computed once.
        self.feature, self.grid = feature[None], grid
        self._picked: dict[Grid, tuple[Tensor, Tensor]] = {}
        self._pulled: dict[Grid, Tensor] = {}

    def rows(self, pixels: Int[Tensor, " row"] | slice) -> Float[Tensor, "row pixel"]:
        """Rows of R."""
        count = self.feature.shape[1]
        if count > DENSE_PIXELS:
            return probabilities(self.feature[:, pixels], self.feature, self.feature.shape[-1] ** -0.5)[0]
        if self.grid not in self._pulled:
            whole = self.feature.new_empty(count, count, dtype=torch.float32)
            for block, part in affinity_blocks(self.feature, self.feature, self.feature.shape[-1] ** -0.5):
                whole[block] = part
            self._pulled[self.grid] = whole
        return self._pulled[self.grid][pixels]

    def picked(self, grid: Grid) -> tuple[Int[Tensor, " row"], Int[Tensor, " pixel"]]:
        """(rows of a layer on `grid` that nearest-neighbour picks, for each reference pixel its place among them)."""
        if grid not in self._picked:
            self._picked[grid] = picked_pixels(grid, self.grid, self.feature.device)
        return self._picked[grid]

    def pulled(self, grid: Grid, block: slice) -> Float[Tensor, "row key"]:
        """Rows of N^T R B: sum R * (N S B^T) = sum pulled * S[picked rows], so that S is never resized."""
        if grid == self.grid:
            return self.rows(block)
        rows, _ = self.picked(grid)
        if len(rows) * grid[0] * grid[1] > DENSE_PIXELS**2:
            return self._pull(grid, block)
        if grid not in self._pulled:
            self._pulled[grid] = self._pull(grid, slice(0, len(rows)))
        return self._pulled[grid][block]

    def _pull(self, grid: Grid, block: slice) -> Float[Tensor, "row key"]:
        _, place = self.picked(grid)
        pixels = ((place >= block.start) & (place < block.stop)).nonzero().flatten()
        out = self.feature.new_zeros(block.stop - block.start, grid[0] * grid[1], dtype=torch.float32)
        # Many reference pixels may share a row of a coarse layer, so they come some at a time.
        for part in pixels.split(DENSE_PIXELS):
            keys = resize_keys_adjoint(self.rows(part), grid, self.grid)
            out.index_add_(0, place[part] - block.start, keys)
        return out


class LayerWeigher:
    """A layer's weight, summed over the blocks of its affinity in any order; `rows` says which rows it wants to see."""

    def __init__(self, rule: LayerRule, reference: Reference, grid: Grid) -> None:
        self.rule, self.reference, self.grid = rule, reference, grid
        self.rows, self.place = reference.picked(grid)
        everything = reference.feature.new_ones(1, reference.feature.shape[1], dtype=torch.float32)
        self.key_mass = resize_keys_adjoint(everything, grid, reference.grid)[0]
        self.total: Tensor | None = None

    def add(self, block: slice, affinity: Float[Tensor, "block pixel"]) -> None:
        """Take the affinity's rows `self.rows[block]`."""
        if self.rule.statistics is None:
            return
        if self.rule.balanced:
            mass = (affinity @ self.key_mass)[:, None]
            # A row may look only at keys that the resizing passes over: then nothing of it is left to balance.
            affinity = torch.where(mass == 0, 0.0, affinity / mass)
        if self.rule.bilinear:
            seen = self.rule.statistics(self.reference.pulled(self.grid, block), affinity)
        else:
            pixels = ((self.place >= block.start) & (self.place < block.stop)).nonzero().flatten()
            resized = resize_keys(affinity, self.grid, self.reference.grid)[self.place[pixels] - block.start]
            seen = self.rule.statistics(self.reference.rows(pixels), resized)
        self.total = seen if self.total is None else self.total + seen

    def value(self) -> float:
        """The weight, clamped at 0, not yet normalised over layers."""
        if self.total is None:
            return 1.0
        value = float(self.rule.finish(self.total))
        return 0.0 if value < 0 else value  # so written that NaN stays NaN


def layer_weight(
    rule: LayerRule,
    reference: Reference,
    q: Float[Tensor, "head pixel dim"],
    k: Float[Tensor, "head pixel dim"],
    scale: float,
    grid: Grid,
) -> float:
    """The weight of one layer from its self-attention, not yet normalised over layers."""
    weigher = LayerWeigher(rule, reference, grid)
    if rule.statistics is not None:
        for block, affinity in affinity_blocks(q, k, scale, weigher.rows):
            weigher.add(block, affinity)
    return weigher.value()


class RunningMap:
    """sum_l weight_l (layer map on the common grid), layer by layer, so that no layer's map has to be kept."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self._total: Float[Tensor, "token height width"] | None = None
        self._weightless = True

    def add(self, weight: float, layer_map: Float[Tensor, "pixel token"], grid: Grid) -> None:
        """Add a layer. The weights need not sum to 1; where all of them are 0, the layers weigh the same."""
        if weight == 0 and not self._weightless:
            return
        if weight != 0 and self._weightless:
            self._total, self._weightless = None, False
        maps = resize(rearrange(layer_map, "(h w) token -> token h w", h=grid[0]), self.grid) * (weight or 1.0)
        self._total = maps if self._total is None else self._total.add_(maps)

    def share(self, grid: Grid) -> float:
        """What a weight of 1 counts for, whatever the layer's grid."""
        return 1.0

    def value(self) -> Float[Tensor, "token height width"]:
        """The sum, clamped at 0, normalised over tokens: that takes the sum of the weights away."""
        assert self._total is not None  # a denoiser that reads no text is not a text-to-image one
        summed = self._total.clamp(min=0)
        mass = summed.sum(0, keepdim=True)
        return torch.where(mass == 0, 0.0, summed / mass)  # so written that NaN stays NaN


def global_map(
    layers: Iterable[tuple[float, Float[Tensor, "_ token"], Grid]], grid: Grid
) -> Float[Tensor, "token height width"]:
    """The `RunningMap` of some layers."""
    total = RunningMap(grid)
    for weight, layer_map, layer_grid in layers:
        total.add(weight, layer_map, layer_grid)
    return total.value()
