"""Attention probabilities, never more of them at once than asked for."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

# How many float32 probabilities are computed at once. On a CPU they have to stay in cache, and one head at a time does
# best: 8 heads x 4096 x 4096 take 1.0 CPU-s whole, 0.30 in blocks of 64 rows of all heads, 0.26 in 256 rows of one. A
# GPU wants fewer, larger launches.
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}

# What a 64 x 64 grid has: the largest self-attention that may be kept whole (67 MB).
DENSE_PIXELS = 64 * 64


def probabilities(
    q: Float[Tensor, "head pixel dim"],
    k: Float[Tensor, "head key dim"],
    scale: float,
    mask: Float[Tensor, "#head #pixel key"] | None = None,
) -> Float[Tensor, "head pixel key"]:
    """softmax(q k^T scale + mask) over keys, in float32."""
    logits = (q.float() * scale) @ k.float().transpose(-1, -2)
    return torch.softmax(logits if mask is None else logits + mask, dim=-1)


def affinity_blocks(
    q: Float[Tensor, "head pixel dim"],
    k: Float[Tensor, "head pixel dim"],
    scale: float,
    rows: Int[Tensor, " row"] | None = None,
) -> Iterator[tuple[slice, Float[Tensor, "block pixel"]]]:
    """The head-mean self-attention, some rows at a time: (which of `rows`, those rows); all pixels by default.

    Queries and keys must not require gradients: every block is computed in the memory of the one before.
    """
    queries = (q if rows is None else q[:, rows]).float() * scale
    keys = k.float().transpose(-1, -2).contiguous()
    heads, count, _ = queries.shape
    pixels = keys.shape[-1]
    most = BLOCK_ELEMENTS.get(q.device.type, BLOCK_ELEMENTS["cuda"])
    step = min(max(16, most // pixels), count)
    together = min(max(1, most // (step * pixels)), heads)
    memory = queries.new_empty(together, step, pixels)
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        total = queries.new_zeros(block.stop - block.start, pixels)
        for first in range(0, heads, together):
            some = slice(first, min(first + together, heads))
            part = memory[: some.stop - first, : len(total)]
            torch.bmm(queries[some, block], keys[some], out=part)
            torch.softmax(part, dim=-1, out=part)
            total += part[0] if len(part) == 1 else part.sum(0)
        yield block, total.div_(heads)
