"""The source of a layer's map: attention probabilities, or the outputs of joint attention for pixels and words."""

from collections.abc import Callable, Sequence

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

OutputScore = Callable[
    [Float[Tensor, "head pixel dim"], Float[Tensor, "head token dim"], Sequence[Sequence[int]]],
    Float[Tensor, "pixel token"],
]
"""(attention output of the pixels, that of the text, each noun's token columns) -> the layer's map."""
MapRule = OutputScore | None
attention: MapRule = None
"""A pixel's attention to a token, weighted over heads."""


def concept_shares(
    pixels: Float[Tensor, "head pixel dim"], words: Float[Tensor, "head token dim"], nouns: Sequence[Sequence[int]]
) -> Float[Tensor, "pixel token"]:
    """softmax over nouns of <o_pixel, o_noun>, all heads in one vector, o_noun the mean over the noun's tokens.

    The similarity of a pixel's and a noun's outputs in the layer's output space (ConceptAttention). Each of a noun's
    columns holds the noun's share; the columns of all other tokens hold 0.
    """
    concepts = torch.stack([words[:, list(columns)].float().mean(1) for columns in nouns], dim=1)
    shares = einsum(pixels.float(), concepts, "head pixel dim, head noun dim -> pixel noun").softmax(-1)
    by_token = shares.new_zeros(pixels.shape[1], words.shape[1])
    for noun, columns in enumerate(nouns):
        by_token[:, list(columns)] = shares[:, [noun]]
    return by_token
