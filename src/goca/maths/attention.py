"""Attention probabilities, never more of them at once than asked for."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

# How many float32 probabilities a block may hold: on a CPU a block has to stay in cache (8 heads x 4096 x 4096 take
# 1.0 CPU-s whole and 0.3 in blocks of 64 rows); a GPU wants fewer, larger launches.
BLOCK_ELEMENTS = {"cpu": 2**21, "cuda": 2**26}


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
) -> Iterator[tuple[Int[Tensor, " block"], Float[Tensor, "block pixel"]]]:
    """The head-mean self-attention, some rows at a time: (indices into `rows`, those rows); all pixels by default."""
    heads, pixels, _ = q.shape
    rows = torch.arange(pixels, device=q.device) if rows is None else rows
    step = max(16, BLOCK_ELEMENTS.get(q.device.type, BLOCK_ELEMENTS["cuda"]) // (heads * pixels))
    for block in torch.arange(len(rows), device=q.device).split(step):
        yield block, probabilities(q[:, rows[block]], k, scale).mean(0)
