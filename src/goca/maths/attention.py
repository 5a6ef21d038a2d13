"""Attention probabilities, computed in blocks of bounded size."""

from collections.abc import Iterator, Sequence

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from goca.maths.resize import constant

# Number of float32 probabilities that are computed at once. On a CPU they must stay in cache, and one head at a time is
# best: 8 heads x 4096 x 4096 take 1.0 CPU-s whole, 0.30 in blocks of 64 rows of all heads, 0.26 in 128 rows of one. A
# GPU needs fewer, larger launches.
BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}
HEADS_TOGETHER = {"cpu": False, "cuda": True}
"""Whether a block is computed as some rows of all heads, whose mean is one operation, or as all rows of some heads."""

# Those of a 64 x 64 grid: the largest self-attention that may be kept whole (67 MB).
DENSE_PIXELS = 64 * 64


def block_elements(like: Tensor) -> int:
    """The number of probabilities that are computed at once on a tensor's device."""
    return BLOCK_ELEMENTS.get(like.device.type, BLOCK_ELEMENTS["cuda"])


Queries = Float[Tensor, "head pixel dim"]
Keys = Float[Tensor, "head key dim"]
Mask = Float[Tensor, "#head #pixel key"] | None
"""Added to the logits, if not None."""


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

    image: the keys that are pixels, if others are text: the softmax is over all keys. Queries and keys must not
    require gradients: every block reuses the memory of the previous one.
    """
    queries = q if rows is None else q[:, rows]
    if mask is not None and rows is not None and mask.shape[1] > 1:
        mask = mask[:, rows]
    for block, parts in _blocks(queries, k, scale, mask):
        yield block, _head_mean(block, parts, len(q), image)


def affinities(
    q: Float[Tensor, "layer head pixel dim"], k: Float[Tensor, "layer head key dim"], scale: float
) -> Float[Tensor, "layer pixel key"]:
    """The head-mean self-attention of layers whose probabilities all together are no more than `block_elements`."""
    ((_, parts),) = _blocks(q.flatten(0, 1), k.flatten(0, 1), scale, None)
    ((_, _, part),) = parts
    return part.unflatten(0, q.shape[:2]).mean(1)


def joint_blocks(
    q: Queries,
    k: Keys,
    scale: float,
    weights: Float[Tensor, "pixel head"] | None,
    text: slice,
    image: slice,
    mask: Mask = None,
) -> Iterator[tuple[slice, Float[Tensor, "block token"], Float[Tensor, "block pixel"]]]:
    """One softmax over text and pixels: (which rows, their map of the tokens, their head-mean affinity).

    Neither part is normalised again. The map is sum_h weights_h(pixel) A_h(pixel, token); without weights it is the
    mean over heads as well.
    """
    for block, parts in _blocks(q, k, scale, mask):
        if weights is None:
            mean = _head_mean(block, parts, len(q), slice(None))
            yield block, mean[:, text], mean[:, image]
            continue
        weighed: dict[int, Tensor] = {}  # by their first row
        pixels = _head_mean(block, _weighing(parts, weights[block], text, weighed), len(q), image)
        maps = tuple(weighed.values())
        yield block, maps[0] if len(maps) == 1 else torch.cat(maps), pixels


def _head_mean(block: slice, parts: "_Parts", heads: int, keys: slice) -> Float[Tensor, "block key"]:
    """The mean over heads of some keys' probabilities."""
    total = None
    for rows, _, part in parts:
        chosen = part[..., keys]
        if len(part) < heads:
            total = _with_heads(total, chosen)
        elif part.shape[1] == block.stop - block.start:
            return chosen.mean(0)
        else:
            total = chosen.new_empty(block.stop - block.start, chosen.shape[-1]) if total is None else total
            torch.mean(chosen, 0, out=total[rows])
    assert total is not None  # there are heads
    return total if len(part) == heads else total.div_(heads)


def _weighing(
    parts: "_Parts", weights: Float[Tensor, "block head"], text: slice, weighed: dict[int, Tensor]
) -> "_Parts":
    """The parts; the text's probabilities are weighted and summed into `weighed`, by their first row."""
    for rows, heads, part in parts:
        tokens = einsum(weights[rows, heads], part[..., text], "pixel head, head pixel token -> pixel token")
        summed = weighed.get(rows.start)
        weighed[rows.start] = tokens if summed is None else summed.add_(tokens)
        yield rows, heads, part


def token_columns(
    q: Queries, k: Keys, scale: float, columns: Sequence[int], mask: Mask = None
) -> Float[Tensor, "head pixel token"]:
    """Every head's attention to some keys at every pixel, from a softmax over all keys."""
    out = q.new_empty(q.shape[0], q.shape[1], len(columns), dtype=torch.float32)
    picked = torch.tensor(columns, dtype=torch.long, device=q.device)
    for rows, parts in _blocks(q, k, scale, mask):
        for part_rows, group, part in parts:
            out[group, rows][:, part_rows] = part.index_select(-1, picked)
    return out


def side_map(
    q: Queries,
    k: Keys,
    counts: Sequence[int],
    scale: float,
    weights: Float[Tensor, "pixel head"],
    mask: Mask = None,
) -> Float[Tensor, "pixel column"]:
    """One softmax over a caption and additional nouns, whose keys come last: noun by noun, `counts` of each.

    A column for everything else, then one per noun: the mean over its tokens. Heads are weighted as in `joint_blocks`.
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
    """(number of tokens of each noun, index of each token's noun)."""
    lengths = torch.tensor(counts)
    return lengths.to(device), torch.repeat_interleave(lengths).to(device)


def _with_heads(total: Tensor | None, part: Tensor) -> Tensor:
    """`total` and the sum over a part's heads, of which a CPU has one at a time; nothing of the part is kept."""
    if total is None:
        return part.sum(0)
    return total.add_(part[0] if len(part) == 1 else part.sum(0))


_Parts = Iterator[tuple[slice, slice, Tensor]]
"""(which rows of a block, which heads, their probabilities)."""


def _blocks(q: Tensor, k: Tensor, scale: float, mask: Mask) -> Iterator[tuple[slice, _Parts]]:
    """Probabilities, some rows at a time: (rows, these in parts). Every part reuses the memory of the previous one."""
    # Transposed and cast at once: a single copy of the keys.
    keys = k.new_empty(k.shape[0], k.shape[2], k.shape[1], dtype=torch.float32).copy_(k.transpose(-1, -2))
    heads, count, _ = q.shape
    width = keys.shape[-1]
    most = block_elements(q)
    step = min(max(16, most // width), count)
    if HEADS_TOGETHER.get(q.device.type, HEADS_TOGETHER["cuda"]):
        rows_of_part, heads_of_part = min(max(16, most // (heads * width)), step), heads
    else:
        rows_of_part, heads_of_part = step, min(max(1, most // (step * width)), heads)
    memory = keys.new_empty(heads_of_part, rows_of_part, width)

    for block in _slices(count, step):
        yield block, _parts_of(q, keys, scale, mask, block, memory)


def _parts_of(q: Tensor, keys: Tensor, scale: float, mask: Mask, block: slice, memory: Tensor) -> _Parts:
    """Probabilities of a block of rows, in `memory`, as many heads and rows at a time as it has.

    keys: (head, dim, key).
    """
    heads, heads_of_part, rows_of_part = len(q), memory.shape[0], memory.shape[1]
    queries = q[:, block] if heads_of_part < heads else q[:, block].float()
    for rows in _slices(block.stop - block.start, rows_of_part):
        mask_rows = slice(block.start + rows.start, block.start + rows.stop)
        for group in _slices(heads, heads_of_part):
            part = memory[: group.stop - group.start, : rows.stop - rows.start]
            torch.baddbmm(part, queries[group, rows].float(), keys[group], beta=0, alpha=scale, out=part)
            if mask is not None:
                part += mask[
                    group if mask.shape[0] > 1 else slice(None), mask_rows if mask.shape[1] > 1 else slice(None)
                ]
            torch.softmax(part, dim=-1, out=part)
            yield rows, group, part


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
