"""Per-pixel rescaling (paper, gap 2): small steps that compose.

A step takes the maps so far and the token mass they came from, and gives new maps; `rescale` composes them.
The paper's rule is (share, blur, minmax); others are other tuples.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from goca.maths.resize import constant, picked

Maps = Float[Tensor, "class height width"]


class TokenMass(NamedTuple):
    """Each noun's attention in the global map.

    raw: class score, the mean over the noun's token columns. Where the tokens of a pixel sum to 1, as in the paper's
    fusion, it is a part of all attention there, and 1 - content is what start token, padding and other words take.
    content: the sum over ALL content tokens' columns, never special tokens, stop words or punctuation. prompt: the same
    with stop words and punctuation.
    """

    raw: Float[Tensor, "class height width"]
    content: Float[Tensor, "height width"]
    prompt: Float[Tensor, "height width"]


Step = Callable[[Maps, TokenMass], Maps]


def token_mass(
    global_map: Float[Tensor, "token height width"],
    nouns: Sequence[Sequence[int]],
    content: Sequence[int],
    prompt: Sequence[int] = (),
) -> TokenMass:
    """Read the nouns' columns (`nouns`: token columns of each) off the global map. Only `share_of_prompt` asks for
    `prompt`, the columns of all tokens but the special ones.
    """
    raw = torch.stack([picked(global_map, columns).mean(0) for columns in nouns])
    return TokenMass(raw, picked(global_map, content).sum(0), picked(global_map, prompt).sum(0))


def mass_of_means(raw: Maps, counts: Sequence[int]) -> TokenMass:
    """The same from what `token_mass` takes of each noun, the mean over its tokens, of which it has `counts`."""
    weights = _counts(tuple(counts), raw.device, raw.dtype)
    content = einsum(raw, weights, "noun height width, noun -> height width")
    return TokenMass(raw, content, content)


@constant
def _counts(counts: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Float[Tensor, " noun"]:
    return torch.tensor(counts, device=device, dtype=dtype)


def share(maps: Maps, token_mass: TokenMass) -> Maps:
    """Divide, at every pixel, by what all content tokens together take: the loud special tokens drop out."""
    return (maps / token_mass.content).masked_fill_(token_mass.content == 0, 0.0)


def share_of_prompt(maps: Maps, token_mass: TokenMass) -> Maps:
    """`share` relative to all words, including stop words and punctuation (as in guidance, and as an ablation)."""
    return (maps / token_mass.prompt).masked_fill_(token_mass.prompt == 0, 0.0)


def blur(maps: Maps, token_mass: TokenMass) -> Maps:
    """5 x 5 Gaussian, sigma 1.1, reflect padding (replicate if the grid is too narrow to reflect)."""
    mode = "reflect" if min(maps.shape[-2:]) > 2 else "replicate"
    padded = F.pad(maps[:, None], (2, 2, 2, 2), mode=mode)
    return F.conv2d(padded, _gaussian(maps.device, maps.dtype))[:, 0]


@constant
def _gaussian(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "1 1 height width"]:
    taps = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / 1.1) ** 2)
    return (torch.outer(taps, taps) / taps.sum() ** 2)[None, None].to(device, dtype)


def minmax(maps: Maps, token_mass: TokenMass | None = None) -> Maps:
    """Each class over the image to [0, 1]; a map that is constant up to float32's rounding becomes 0."""
    low, high = (ends[..., None] for ends in maps.flatten(-2).aminmax(dim=-1, keepdim=True))
    spread = high - low
    flat = spread <= 1e-6 * torch.maximum(high.abs(), low.abs())
    return ((maps - low) / spread).masked_fill_(flat, 0.0)


def peak(maps: Maps, token_mass: TokenMass) -> Maps:
    """Each class over its largest value in the image; a map without a positive value becomes 0."""
    high = maps.amax((-2, -1), keepdim=True)
    return (maps / high).masked_fill_(high <= 0, 0.0)


def times_raw(maps: Maps, token_mass: TokenMass) -> Maps:
    """Multiply by the raw class score, the one before any share."""
    return maps * token_mass.raw


def rescale(token_mass: TokenMass, steps: Sequence[Step]) -> Maps:
    """The steps one after the other, beginning with the raw class scores."""
    return reduce(lambda maps, step: step(maps, token_mass), steps, token_mass.raw)
