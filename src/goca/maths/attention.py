"""Attention probabilities, never more of them at once than asked for."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

# How many float32 probabilities a block may hold: on a CPU a block has to stay in cache (8 heads x 4096 x 4096 take
# 1.0 CPU-s whole and 0.3 in blocks of 64 rows); a GPU wants fewer, larger launches.
BLOCK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}

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
    step = max(16, BLOCK_ELEMENTS.get(q.device.type, BLOCK_ELEMENTS["cuda"]) // (heads * pixels))
    memory = queries.new_empty(heads, min(step, count), pixels)
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        part = memory[:, : block.stop - block.start]
        torch.bmm(queries[:, block], keys, out=part)
        torch.softmax(part, dim=-1, out=part)
        yield block, part.mean(0)
