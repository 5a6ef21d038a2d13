"""Attention probabilities, never more of them at once than asked for."""

from collections.abc import Iterator, Sequence

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from goca.maths.resize import constant

# How many float32 probabilities are computed at once. On a CPU they have to stay in cache, and one head at a time does
# best: 8 heads x 4096 x 4096 take 1.0 CPU-s whole, 0.30 in blocks of 64 rows of all heads, 0.26 in 128 rows of one. A
# GPU wants fewer, larger launches.
BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}

# What a 64 x 64 grid has: the largest self-attention that may be kept whole (67 MB).
DENSE_PIXELS = 64 * 64


def block_elements(like: Tensor) -> int:
    """How many probabilities are computed at once on a tensor's device."""
    return BLOCK_ELEMENTS.get(like.device.type, BLOCK_ELEMENTS["cuda"])


Queries = Float[Tensor, "head pixel dim"]
Keys = Float[Tensor, "head key dim"]
Mask = Float[Tensor, "#head #pixel key"] | None
"""What is added to the logits, if anything."""


def probabilities(q: Queries, k: Keys, scale: float, mask: Mask = None) -> Float[Tensor, "head pixel key"]:
    """softmax(q k^T scale + mask) over keys, in float32."""
    logits = (q.float() * scale) @ k.float().transpose(-1, -2)
    return torch.softmax(logits if mask is None else logits + mask, dim=-1)


def affinity_blocks(
    q: Queries,
    k: Keys,
    scale: float,
    rows: Int[Tensor, " row"] | None = None,
    *,
    image: slice = slice(None),
    mask: Mask = None,
) -> Iterator[tuple[slice, Float[Tensor, "block pixel"]]]:
    """The head-mean self-attention, some rows at a time: (which of `rows`, those rows); all pixels by default.

    image: the keys that are pixels, where others are text: the softmax is over all keys. Queries and keys must not
    require gradients: every block is computed in the memory of the one before.
    """
    queries = q if rows is None else q[:, rows]
    if mask is not None and rows is not None and mask.shape[1] > 1:
        mask = mask[:, rows]
    for block, parts in _blocks(queries, k, scale, mask):
        total = None
        for _, part in parts:
            together = len(part) == len(q)
            total = part[..., image].mean(0) if together else _with_heads(total, part[..., image])
        assert total is not None  # there are heads
        yield block, total if together else total.div_(len(q))


def affinities(
    q: Float[Tensor, "layer head pixel dim"], k: Float[Tensor, "layer head key dim"], scale: float
) -> Float[Tensor, "layer pixel key"]:
    """The head-mean self-attention of layers whose probabilities all together are no more than `block_elements`."""
    ((_, parts),) = _blocks(q.flatten(0, 1), k.flatten(0, 1), scale, None)
    ((_, part),) = parts
    return part.unflatten(0, q.shape[:2]).mean(1)


def joint_blocks(
    q: Queries,
    k: Keys,
    scale: float,
    weights: Float[Tensor, "pixel head"],
    text: slice,
    image: slice,
    mask: Mask = None,
) -> Iterator[tuple[slice, Float[Tensor, "block token"], Float[Tensor, "block pixel"]]]:
    """One softmax over text and pixels: (which rows, their map of the tokens, their head-mean affinity).

    Neither part is normalised again. The map is sum_h weights_h(pixel) A_h(pixel, token).
    """
    for block, parts in _blocks(q, k, scale, mask):
        tokens = pixels = None
        for first, part in parts:
            shares = weights[block, first : first + len(part)]
            weighed = einsum(shares, part[..., text], "pixel head, head pixel token -> pixel token")
            tokens = weighed if tokens is None else tokens.add_(weighed)
            pixels = _with_heads(pixels, part[..., image])
        assert tokens is not None  # there are heads
        assert pixels is not None
        yield block, tokens, pixels.div_(len(q))


def token_columns(
    q: Queries, k: Keys, scale: float, columns: Sequence[int], mask: Mask = None
) -> Float[Tensor, "head pixel token"]:
    """What every head gives some keys at every pixel, out of one softmax over all keys."""
    out = q.new_empty(q.shape[0], q.shape[1], len(columns), dtype=torch.float32)
    picked = torch.tensor(columns, dtype=torch.long, device=q.device)
    for rows, parts in _blocks(q, k, scale, mask):
        for first, part in parts:
            out[first : first + len(part), rows] = part.index_select(-1, picked)
    return out


def side_map(
    q: Queries,
    k: Keys,
    counts: Sequence[int],
    scale: float,
    weights: Float[Tensor, "pixel head"],
    mask: Mask = None,
) -> Float[Tensor, "pixel column"]:
    """One softmax over a caption and the nouns beside it, whose keys are the last: noun by noun, `counts` of each.

    A column for all else, then one for each noun: the mean over its tokens. As in `joint_blocks` the heads are weighed.
    Only some rows at a time have a column for each token, as a thousand nouns have thousands.
    """
    lengths, noun_of = _noun_of(tuple(counts), q.device)
    side = slice(k.shape[1] - sum(counts), None)
    columns = weights.new_zeros(len(weights), 1 + len(counts))
    for rows, tokens, _ in joint_blocks(q, k, scale, weights, side, slice(0, 0), mask):
        columns[rows, 1:].index_add_(1, noun_of, tokens / lengths[noun_of])
    columns[:, 0] = 1 - columns.sum(1)
    return columns


@constant
def _noun_of(counts: tuple[int, ...], device: torch.device) -> tuple[Int[Tensor, " noun"], Int[Tensor, " token"]]:
    """(how many tokens each noun has, which noun each token is of)."""
    lengths = torch.tensor(counts)
    return lengths.to(device), torch.repeat_interleave(lengths).to(device)


def _with_heads(total: Tensor | None, part: Tensor) -> Tensor:
    """`total` and the sum over a part's heads, of which a CPU has one at a time; nothing of the part is kept."""
    if total is None:
        return part.sum(0)
    return total.add_(part[0] if len(part) == 1 else part.sum(0))


def _blocks(q: Tensor, k: Tensor, scale: float, mask: Mask) -> Iterator[tuple[slice, Iterator[tuple[int, Tensor]]]]:
    """Probabilities, some rows and some heads at a time: (rows, (first head, its and the next ones' rows) ...).

    Every part lies in the memory of the one before.
    """
    # Turned and widened at once: one copy of the keys, whatever their type. Queries are widened as they are needed.
    keys = k.new_empty(k.shape[0], k.shape[2], k.shape[1], dtype=torch.float32).copy_(k.transpose(-1, -2))
    heads, count, _ = q.shape
    width = keys.shape[-1]
    most = block_elements(q)
    step = min(max(16, most // width), count)
    together = min(max(1, most // (step * width)), heads)
    memory = keys.new_empty(together, step, width)

    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        yield block, _parts(q, keys, scale, mask, block, memory)


def _parts(
    q: Tensor, keys: Tensor, scale: float, mask: Mask, block: slice, memory: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Probabilities of a block of rows, in `memory`, as many heads at a time as it has: (first head, part) ...

    keys: (head, dim, key).
    """
    heads, together = len(q), len(memory)
    for first in range(0, heads, together):
        group = slice(first, min(first + together, heads))
        part = memory[: group.stop - first, : block.stop - block.start]
        torch.baddbmm(part, q[group, block].float(), keys[group], beta=0, alpha=scale, out=part)
        if mask is not None:
            part += mask[group if mask.shape[0] > 1 else slice(None), block if mask.shape[1] > 1 else slice(None)]
        torch.softmax(part, dim=-1, out=part)
        yield first, part
