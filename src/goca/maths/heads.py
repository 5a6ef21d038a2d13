"""Head-wise weights (paper, gap 1a): how the heads of a layer become one map of pixels against tokens.

Heads are weighted pixel by pixel, by their share of the layer's output there. A rule is a function; a new rule
is a new function, and nothing here depends on the names of rules.
"""

from collections.abc import Callable

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from goca.maths.resize import constant

Parts = Float[Tensor, "pixel head dim"]
"""The outputs z_h of a layer's heads."""
Projection = Float[Tensor, "head dim model"]
"""The output projections W_h of a layer's heads."""
Weights = Float[Tensor, "pixel head"]
HeadRule = Callable[[Parts, Projection], Weights] | None
"""A weight for each head at each pixel, up to normalisation over heads."""
ROUNDING = 1e-6
"""A head of which no more than this varies gives every pixel the same, but for float32's rounding."""
mean_heads: HeadRule = None
"""Every head weighs the same (DAAM and other averaging segmentors)."""


def output_share(parts: Parts, weight: Projection) -> Weights:
    """<z_h W_h, o>: the head's share of the layer's output o = sum_h z_h W_h (paper, head-wise weights).

    <z_h W_h, o> = <z_h, o W_h^T>, so one projection back replaces a tensor of pixel x head x model. May be negative.
    If pixels outnumber channels, another order of products is cheaper, which `multi_dot` then uses:
    o W_h^T = sum_g z_g (W_g W_h^T).
    """
    side_by_side, projection = parts.flatten(1), weight.flatten(0, 1)
    back = torch.linalg.multi_dot([side_by_side, projection, projection.T])
    return (side_by_side * back).view(parts.shape).sum(-1)


def output_share_clamped(parts: Parts, weight: Projection) -> Weights:
    """`output_share`, negative shares set to 0."""
    return output_share(parts, weight).clamp(min=0)


def l2_norm(parts: Parts, weight: Projection) -> Weights:
    """|z_h W_h|, through the Gram matrix W_h W_h^T of each head."""
    gram = einsum(weight, weight, "head dim model, head other model -> head dim other")
    squared = einsum(parts, gram, parts, "pixel head dim, head dim other, pixel head other -> pixel head")
    return squared.clamp(min=0).sqrt()


def varying_share(parts: Parts, weight: Projection) -> Weights:
    """`output_share_clamped`, times how much of what a head gives varies over the image.

    That is 1 - |mean z_h W_h|^2 / mean |z_h W_h|^2, means over pixels. What a head gives every pixel alike, such as
    what it takes from a start token, says nothing of where a word is, and is no reason to believe its map. A form of
    what others do who weigh heads by how much their rows differ (TokenRank, arXiv 2507.17657; HRV, arXiv 2604.05906).
    """
    of_all = l2_norm(parts, weight).square().mean(0)
    of_mean = l2_norm(parts.mean(0, keepdim=True), weight).square()[0]
    varying = 1 - of_mean / of_all
    # Also where a head gives nothing, which makes NaN.
    varying = torch.where(varying > ROUNDING, varying, 0.0)
    return output_share_clamped(parts, weight) * varying


OF_TEXT_ALONE: tuple[HeadRule, ...] = (varying_share,)
"""Rules for which what a head gives has to come from the text alone; in joint attention it comes from pixels too."""


def cosine(parts: Parts, weight: Projection) -> Weights:
    """cos(z_h W_h, o), up to |o|, which all heads of a pixel share. May be negative."""
    length = l2_norm(parts, weight)
    return torch.where(length > 0, output_share(parts, weight) / length, 0.0)


def head_weights(rule: HeadRule, parts: Parts, weight: Projection) -> Weights:
    """The rule's weights over their sum: they sum to 1 over heads; equal without a rule and if the sum is 0."""
    if rule is None:
        return parts.new_full(parts.shape[:2], 1 / parts.shape[1], dtype=torch.float32)
    # Cast and transposed at once.
    raw = rule(parts.to(torch.float32, memory_format=torch.contiguous_format), weight.float())
    total = raw.sum(-1, keepdim=True)
    return (raw / total).masked_fill_(total == 0, 1 / raw.shape[-1])


@constant
def equal_weights(heads: int, device: torch.device) -> Float[Tensor, " head"]:
    """The weight of each head without a rule."""
    return torch.full((heads,), 1 / heads, device=device)


def head_map(weights: Weights, attention: Float[Tensor, "head pixel token"]) -> Float[Tensor, "pixel token"]:
    """The layer's map: sum_h w_h(pixel) A_h(pixel, token)."""
    return einsum(weights, attention, "pixel head, head pixel token -> pixel token")
