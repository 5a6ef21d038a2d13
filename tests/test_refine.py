"""Refinement by self-attention, against explicit matrices N S B^T and by hand."""

import pytest
import torch
from torch import Tensor
from yardsticks import Allocations, Grid, head_mean, nearest_matrix, resized_affinity

from goca.maths import attention, refine
from goca.maths.refine import Affinity, distinct, propagate

HEADS, DIM, SCALE = 3, 5, 0.4
COMMON: Grid = (5, 7)
# The maps' own grid; coarser; one axis finer and one coarser; finer by a whole number; by a fraction.
GRIDS: list[Grid] = [(5, 7), (2, 3), (3, 11), (10, 14), (11, 13)]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(grid: Grid, seed: int = 1) -> tuple[Tensor, Tensor]:
    pixels = grid[0] * grid[1]
    return numbers(HEADS, pixels, DIM, seed=seed), numbers(HEADS, pixels, DIM, seed=seed + 1)


def added(layers: list[tuple[Grid, int]], common: Grid | None = None) -> Affinity:
    affinity = Affinity(common)
    for grid, seed in layers:
        affinity.add(*layer(grid, seed), SCALE, grid)
    return affinity


def slow(maps: Tensor, layers: list[tuple[Grid, int]], order: int) -> Tensor:
    """(mean of N S B^T)^order, a pixel at a time."""
    matrices = [resized_affinity(head_mean(*layer(grid, seed), SCALE), grid, COMMON) for grid, seed in layers]
    mean = (sum(matrices) / len(matrices)).tolist()
    columns = maps.flatten(1).tolist()
    for _ in range(order):
        columns = [[sum(map(float.__mul__, row, column)) for row in mean] for column in columns]
    return torch.tensor(columns, dtype=torch.float64).reshape(maps.shape)


def equal(ours: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(ours.double(), other.double(), rtol=1e-4, atol=1e-5)


@pytest.fixture(params=["dense", "streamed"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to keep a layer: its matrix, or its queries and keys."""
    if request.param == "streamed":
        monkeypatch.setattr(refine, "DENSE_PIXELS", 0)
        monkeypatch.setitem(attention.BLOCK_ELEMENTS, "cpu", 1)
    return str(request.param)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_one_layer_is_its_matrix(grid: Grid, kept: str) -> None:
    maps, affinity = numbers(2, *COMMON), added([(grid, 1)])
    assert affinity.is_dense(grid) == (kept == "dense")
    for order in (1, 3):
        equal(propagate(affinity, maps, order), slow(maps, [(grid, 1)], order))


def test_several_layers_on_different_grids_are_their_mean(kept: str) -> None:
    layers = [((5, 7), 1), ((11, 13), 3), ((2, 3), 5), ((5, 7), 7), ((3, 11), 9)]
    maps = numbers(3, *COMMON)
    affinity = added(layers)
    assert affinity.layers == 5
    equal(propagate(affinity, maps, 3), slow(maps, layers, 3))


def test_layers_kept_in_both_ways_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "DENSE_PIXELS", 35)
    layers = [((5, 7), 1), ((11, 13), 3), ((3, 11), 5)]
    affinity = added(layers)
    assert [affinity.is_dense(grid) for grid, _ in layers] == [True, False, True]
    maps = numbers(2, *COMMON)
    equal(propagate(affinity, maps, 2), slow(maps, layers, 2))


@pytest.mark.parametrize("elements", [1, 2**20])
@pytest.mark.parametrize("grid", [(10, 14), (11, 13), (3, 13)], ids=str)
def test_a_layer_too_large_for_its_own_matrix_is_summed_on_the_maps_grid(
    grid: Grid, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refine, "DENSE_PIXELS", 35)
    monkeypatch.setitem(attention.BLOCK_ELEMENTS, "cpu", elements)
    layers = [(grid, 1), ((5, 7), 3), (grid, 5)]
    with Allocations() as seen:
        affinity = added(layers, common=COMMON)
    maps = numbers(2, *COMMON)
    equal(propagate(affinity, maps, 2), slow(maps, layers, 2))
    assert seen.of_size((grid[0] * grid[1]) ** 2) == 0


def test_only_rows_that_the_maps_need_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "DENSE_PIXELS", 0)
    layers = [((11, 13), 1), ((2, 3), 3)]
    maps = numbers(2, *COMMON)
    with Allocations() as seen:
        ours = propagate(added(layers), maps, 1)
    equal(ours, slow(maps, layers, 1))
    # Of the finer layer's 143 rows, 35 are picked.
    assert seen.largest <= HEADS * 35 * 143 < 143 * 143


def test_by_hand() -> None:
    # Two pixels that look at themselves with 1/4 and at each other with 3/4.
    affinity = Affinity()
    affinity.add_rows(slice(1, 2), torch.tensor([[0.75, 0.25]]), (1, 2))
    affinity.add_rows(slice(0, 1), torch.tensor([[0.25, 0.75]]), (1, 2))
    affinity.layers += 1
    maps = torch.tensor([[[1.0, 0.0]], [[4.0, 8.0]]])
    equal(propagate(affinity, maps, 1), torch.tensor([[[0.25, 0.75]], [[7.0, 5.0]]]))
    equal(propagate(affinity, maps, 2), torch.tensor([[[0.625, 0.375]], [[5.5, 6.5]]]))
    # Of four pixels the two see 1, 3/4, 1/4, 0 and 0, 1/4, 3/4, 1, and each answers for the two nearest.
    four = torch.tensor([[[8.0, 4.0, 0.0, 0.0]]])
    left, right = 8 + 3, 1
    near, far = left / 4 + 3 * right / 4, 3 * left / 4 + right / 4
    equal(propagate(affinity, four, 1), torch.tensor([[[near, near, far, far]]]))


def test_order_0_and_no_layer_leave_the_maps_alone(kept: str) -> None:
    maps = numbers(2, *COMMON)
    assert torch.equal(propagate(added([((3, 11), 1)]), maps, 0), maps)
    assert torch.equal(propagate(Affinity(), maps, 3), maps)


def test_rows_in_any_order_are_the_whole_layer() -> None:
    grid = (3, 11)
    q, k = layer(grid)
    whole = Affinity()
    whole.add(q, k, SCALE, grid)
    piecewise = Affinity()
    for start in (20, 0, 30, 10):
        rows = slice(start, min(start + 10, 33))
        ((_, affinity),) = attention.affinity_blocks(q, k, SCALE, torch.arange(33)[rows])
        piecewise.add_rows(rows, affinity, grid)
    piecewise.layers += 1
    maps = numbers(2, *COMMON)
    equal(propagate(piecewise, maps, 2), propagate(whole, maps, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_layers_answer_in_float32(dtype: torch.dtype, kept: str) -> None:
    q, k = (part.to(dtype) for part in layer((3, 11)))
    affinity = Affinity()
    affinity.add(q, k, SCALE, (3, 11))
    maps = numbers(2, *COMMON)
    ours = propagate(affinity, maps, 1)
    assert ours.dtype == torch.float32
    matrix = resized_affinity(head_mean(q, k, SCALE), (3, 11), COMMON)
    equal(ours, (maps.double().flatten(1) @ matrix.T).reshape(maps.shape))


def test_a_map_larger_or_narrower_than_the_layers(kept: str) -> None:
    affinity = added([((2, 3), 1)])
    for grid in ((13, 11), (1, 7), (7, 1)):
        maps = numbers(2, *grid)
        matrix = resized_affinity(head_mean(*layer((2, 3)), SCALE), (2, 3), grid)
        equal(propagate(affinity, maps, 1), (maps.double().flatten(1) @ matrix.T).reshape(maps.shape))


def test_dense_ends_at_64_by_64() -> None:
    sides = [(64, 64), (32, 128), (64, 65), (128, 128)]
    assert [Affinity().is_dense(grid) for grid in sides] == [True, True, False, False]


def test_layers_of_one_grid_share_one_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BLOCK_ELEMENTS, "cpu", 1)
    grid, pixels = (11, 13), 143
    layers = [layer(grid, seed) for seed in (1, 3, 5)]
    affinity = Affinity()
    with Allocations() as seen:
        for q, k in layers:
            affinity.add(q, k, SCALE, grid)
        propagate(affinity, numbers(2, *COMMON), 2)
    assert seen.largest <= pixels * pixels
    assert seen.of_size(pixels * pixels) <= 1


def test_beyond_the_limit_no_matrix_is_ever_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "DENSE_PIXELS", 142)
    monkeypatch.setitem(attention.BLOCK_ELEMENTS, "cpu", 1)
    grid, pixels = (11, 13), 143
    q, k = layer(grid)
    affinity = Affinity()
    with Allocations() as seen:
        affinity.add(q, k, SCALE, grid)
        propagate(affinity, numbers(2, *COMMON), 2)
    assert seen.largest <= 16 * pixels < pixels * pixels


# ---- under a rule


def slow_distinct(affinity: Tensor, grid: Grid, maps_grid: Grid) -> Tensor:
    """max(0, row - mean of the rows that the maps look at)^1.5, rows to sum 1, a number at a time."""
    picked = [row for row, looked in enumerate(nearest_matrix(grid, maps_grid).sum(0).tolist()) if looked]
    rows = affinity.tolist()
    shared = [sum(rows[row][key] for row in picked) / len(picked) for key in range(len(rows))]
    out = []
    for row in rows:
        own = [max(0.0, value - common) ** 1.5 for value, common in zip(row, shared, strict=True)]
        out.append([value / sum(own) for value in own])
    return torch.tensor(out, dtype=torch.float64)


def slow_under(maps: Tensor, matrices: list[tuple[Tensor, Grid]], order: int) -> Tensor:
    """The mean over grids of N M B^T, applied `order` times; matrices: the sum of each grid's layers."""
    size = (maps.shape[-2], maps.shape[-1])
    parts = [resized_affinity(slow_distinct(matrix, grid, size), grid, size) for matrix, grid in matrices]
    flat = maps.double().flatten(1)
    for _ in range(order):
        flat = flat @ (sum(parts) / len(parts)).T
    return flat.reshape(maps.shape)


@pytest.mark.parametrize("held", [1, 2**21])
def test_what_all_rows_share_is_taken_off_each_grid(kept: str, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "HELD", held)
    layers = [((5, 7), 1), ((11, 13), 3), ((2, 3), 5), ((5, 7), 7)]
    maps, affinity = numbers(3, *COMMON), added(layers)
    one = {(grid, seed): head_mean(*layer(grid, seed), SCALE) for grid, seed in layers}
    both = one[(5, 7), 1] + one[(5, 7), 7]
    matrices = [(both, (5, 7)), (one[(11, 13), 3], (11, 13)), (one[(2, 3), 5], (2, 3))]
    for order in (1, 2):
        equal(propagate(affinity.under(distinct, COMMON), maps, order), slow_under(maps, matrices, order))
    # What was summed is still there, as it was.
    equal(propagate(affinity, maps, 2), slow(maps, layers, 2))
    row = affinity.under(distinct, COMMON).row(9, COMMON)
    equal(row, slow_under(torch.eye(35).view(35, *COMMON), matrices, 1)[:, 1, 2].view(COMMON))


def test_of_a_layer_summed_on_the_maps_grid_it_is_taken_off_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "DENSE_PIXELS", 35)
    layers = [((11, 13), 1), ((5, 7), 3)]
    maps = numbers(2, *COMMON)
    total = sum(resized_affinity(head_mean(*layer(grid, seed), SCALE), grid, COMMON) for grid, seed in layers)
    equal(added(layers, COMMON).under(distinct, COMMON).apply(maps), slow_under(maps, [(total, COMMON)], 1))


def test_layers_that_attend_to_texts_of_different_length_share_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention.BLOCK_ELEMENTS, "cpu", 17 * 45)
    grid, maps = (5, 7), numbers(2, *COMMON)
    dense, streamed = Affinity(), Affinity(largest=0)
    for text in (3, 11):
        q, k = numbers(HEADS, 35, DIM, seed=text), numbers(HEADS, 35 + text, DIM, seed=text + 1)
        for affinity in (dense, streamed):
            affinity.add(q, k, SCALE, grid, image=slice(text, None))
    equal(streamed.under(distinct, grid).apply(maps), dense.under(distinct, grid).apply(maps))


def test_rows_with_nothing_of_their_own_stay() -> None:
    alike = torch.tensor([[0.25, 0.75], [0.25, 0.75]])
    equal(distinct(2 * alike, 2 * alike[0]), alike)
    # Rounding is nothing of their own.
    equal(distinct(alike, alike[0] - 1e-8), alike)
    # By hand: 0.25 and 0 are left of the first row, and 0.16^1.5 and 0.09^1.5, which are 64 to 27, of the third.
    rows = torch.tensor([[0.5, 0.5, 0.0], [0.3, 0.5, 0.2], [0.41, 0.0, 0.59]])
    shared = torch.tensor([0.25, 0.5, 0.5])
    equal(distinct(rows, shared)[0], torch.tensor([1.0, 0.0, 0.0]))
    equal(distinct(rows, shared)[2], torch.tensor([64.0, 0.0, 27.0]) / 91)
    assert Affinity().under(distinct, COMMON).apply(numbers(2, *COMMON)).shape == (2, *COMMON)
