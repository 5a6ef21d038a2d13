"""Stages of the mathematics, composed from its accumulators as a test of one stage needs them."""

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from goca.maths import Grid
from goca.maths.attention import affinity_blocks
from goca.maths.background import Background, labels
from goca.maths.fusion import WeightedSum
from goca.maths.layers import LayerRule, LayerWeigher, Reference


def layer_weight(rule: LayerRule, reference: Reference, q: Tensor, k: Tensor, scale: float, grid: Grid) -> float:
    """The weight of one layer from its self-attention, not yet normalised over layers."""
    weigher = LayerWeigher(rule, reference, grid)
    if rule.statistics is not None:
        for block, affinity in affinity_blocks(q, k, scale, weigher.rows):
            weigher.add(block, affinity)
    return float(weigher.value())


def global_map(
    layers: Iterable[tuple[float, Float[Tensor, "_ token"], Grid]], grid: Grid
) -> Float[Tensor, "token height width"]:
    """The weighted sum of some layers' (weight, map, grid)."""
    total = WeightedSum(grid)
    for weight, layer_map, layer_grid in layers:
        total.add(weight, layer_map, layer_grid)
    return total.value()


def label(classes: Tensor, background_scores: Tensor | None, background: Background, *to: Any, **how: Any) -> Tensor:
    """The labels under one background."""
    return labels(classes, background_scores, (background,), *to, **how)[0].long()
