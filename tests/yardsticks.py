"""What the tests of goca.maths measure with: the method's equations as plain loops over Python floats, and
a record of what torch allocates. Nothing is taken from goca: a loop says slowly what an equation says.
"""

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Matrix = list[list[float]]
Grid = tuple[int, int]


def bilinear_axis(size_in: int, size_out: int) -> Matrix:
    """(out, in): the centre of an output cell falls between two input centres, or beyond the outermost."""
    rows = []
    for out in range(size_out):
        place = min(max((out + 0.5) * size_in / size_out - 0.5, 0.0), size_in - 1.0)
        low = min(math.floor(place), max(size_in - 2, 0))
        row = [0.0] * size_in
        row[low] += 1 - (place - low)
        row[min(low + 1, size_in - 1)] += place - low
        rows.append(row)
    return rows


def bilinear_matrix(grid_in: Grid, grid_out: Grid) -> Tensor:
    """B, (out pixel, in pixel), float64."""
    down, across = (bilinear_axis(i, o) for i, o in zip(grid_in, grid_out, strict=True))
    return torch.tensor(
        [[y * x for y in row_y for x in row_x] for row_y in down for row_x in across], dtype=torch.float64
    )


def nearest_matrix(grid_in: Grid, grid_out: Grid) -> Tensor:
    """N, (out pixel, in pixel), float64: a 1 at the input cell that holds the output cell's first corner."""
    matrix = torch.zeros(grid_out[0] * grid_out[1], grid_in[0] * grid_in[1], dtype=torch.float64)
    for y in range(grid_out[0]):
        for x in range(grid_out[1]):
            picked = (y * grid_in[0] // grid_out[0]) * grid_in[1] + x * grid_in[1] // grid_out[1]
            matrix[y * grid_out[1] + x, picked] = 1.0
    return matrix


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(logit - top) for logit in logits]
    return [power / sum(powers) for power in powers]


def attention(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """A_h, (head, pixel, key), float64, one softmax at a time."""
    rows = [
        [softmax([scale * sum(map(float.__mul__, query, key)) for key in keys]) for query in queries]
        for queries, keys in zip(q.double().tolist(), k.double().tolist(), strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def head_mean(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """S = mean_h S_h, (pixel, pixel), float64."""
    return sum(attention(q, k, scale)) / len(q)


def resized_affinity(affinity: Tensor, grid_in: Grid, grid_out: Grid) -> Tensor:
    """S' = N S B^T, (out pixel, out pixel), float64: nearest on the query axis, bilinear on the key axis."""
    return nearest_matrix(grid_in, grid_out) @ affinity @ bilinear_matrix(grid_in, grid_out).T


class Allocations(TorchDispatchMode):
    """Records, of every tensor that an operation gives back, how many elements its memory holds.

    The memory and not the shape: a broadcast view is as large as what it looks at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                memory = leaf.untyped_storage()
                self.sizes.append((memory.nbytes() // leaf.element_size(), memory.data_ptr()))
        return out

    @property
    def largest(self) -> int:
        return max((size for size, _ in self.sizes), default=0)

    def of_size(self, elements: int) -> int:
        """How many different pieces of memory had exactly so many elements."""
        return len({place for size, place in self.sizes if size == elements})


@contextmanager
def newcomers() -> Iterator[Callable[[], int]]:
    """A function that counts the bytes of all tensors that were made inside the block and are still there."""
    gc.collect()
    gc.freeze()

    def held() -> int:
        gc.collect()
        # Of exactly these types: torch's own tracing tools leave tensors behind that have no memory to ask for.
        storages = [one.untyped_storage() for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]
        return sum({one.data_ptr(): one.nbytes() for one in storages}.values())

    try:
        yield held
    finally:
        gc.unfreeze()
