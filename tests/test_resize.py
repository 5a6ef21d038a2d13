"""Resizing as matrices, against loops, torch's interpolate, and the identity that defines an adjoint."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from yardsticks import bilinear_axis, bilinear_matrix, nearest_matrix

from goca.maths.resize import bilinear, centre, nearest_pixels, resize, resize_keys, resize_keys_adjoint, resize_rows

# Up, down, up on one axis and down on the other, a multiple, one cell wide, onto itself.
PAIRS = [
    ((5, 7), (11, 13)),
    ((11, 13), (5, 7)),
    ((3, 11), (7, 5)),
    ((3, 5), (6, 15)),
    ((10, 14), (5, 7)),
    ((1, 7), (3, 5)),
    ((5, 7), (1, 1)),
    ((5, 7), (5, 7)),
]
sizes = st.integers(1, 13)
grids = st.tuples(sizes, sizes)
properties = settings(max_examples=60, deadline=None)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def equal(ours: Tensor, slow: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(ours.double(), slow.double(), rtol=0, atol=atol)


def test_bilinear_by_hand() -> None:
    equal(bilinear(2, 4), torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]))
    equal(bilinear(4, 2), torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]))
    equal(bilinear(3, 2), torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.25, 0.75]]))
    # No antialiasing: five times coarser sees the middle cell of five and nothing of its neighbours.
    equal(bilinear(5, 1), torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]]))
    equal(bilinear(1, 3), torch.ones(3, 1))


def test_bilinear_takes_the_dtype_it_is_shown() -> None:
    assert bilinear(3, 5, torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert bilinear(3, 5).dtype == torch.float32


@properties
@given(sizes, sizes)
def test_bilinear_is_the_loop(size_in: int, size_out: int) -> None:
    equal(bilinear(size_in, size_out), torch.tensor(bilinear_axis(size_in, size_out)))


@pytest.mark.parametrize(("grid_in", "grid_out"), PAIRS)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)], ids=str)
def test_resize_is_the_matrix(grid_in: tuple[int, int], grid_out: tuple[int, int], leading: tuple[int, ...]) -> None:
    maps = numbers(*leading, *grid_in)
    slow = (maps.flatten(-2) @ bilinear_matrix(grid_in, grid_out).T).reshape(*leading, *grid_out)
    equal(resize(maps, grid_out), slow)


@pytest.mark.parametrize(("grid_in", "grid_out"), [*PAIRS, ((31, 17), (211, 1009))])
@pytest.mark.parametrize("rows", [slice(0, 1), slice(-2, None), slice(None)], ids=str)
def test_resized_rows_are_those_of_the_whole(grid_in: tuple[int, int], grid_out: tuple[int, int], rows: slice) -> None:
    maps = numbers(2, 3, *grid_in).float()
    whole = resize_rows(maps, grid_out, slice(0, grid_out[0]))
    equal(whole, resize(maps.double(), grid_out), 1e-5)
    rows = slice(*rows.indices(grid_out[0]))
    assert torch.equal(resize_rows(maps, grid_out, rows), whole[..., rows, :])


def test_nearest_by_hand() -> None:
    # (2, 3) -> (3, 4): rows 0 0 1, columns 0 0 1 2.
    assert nearest_pixels((2, 3), (3, 4)).tolist() == [0, 0, 1, 2, 0, 0, 1, 2, 3, 3, 4, 5]
    # (4, 3) -> (2, 2): rows 0 2, columns 0 1.
    assert nearest_pixels((4, 3), (2, 2)).tolist() == [0, 1, 6, 7]


@pytest.mark.parametrize(("grid_in", "grid_out"), PAIRS)
def test_nearest_is_the_loop(grid_in: tuple[int, int], grid_out: tuple[int, int]) -> None:
    picks = F.one_hot(nearest_pixels(grid_in, grid_out), grid_in[0] * grid_in[1])
    equal(picks, nearest_matrix(grid_in, grid_out))


# Larger sizes than the loop's: where a corner falls on a cell's edge, torch's own rounding decides.
@properties
@given(st.tuples(st.integers(1, 128), st.integers(1, 19)), st.tuples(st.integers(1, 128), st.integers(1, 19)))
def test_nearest_picks_what_interpolate_picks(grid_in: tuple[int, int], grid_out: tuple[int, int]) -> None:
    image = torch.arange(float(grid_in[0] * grid_in[1])).reshape(1, 1, *grid_in)
    seen = F.interpolate(image, grid_out, mode="nearest").flatten()
    assert nearest_pixels(grid_in, grid_out).tolist() == seen.long().tolist()


@pytest.mark.parametrize(("grid_in", "grid_out"), PAIRS)
def test_keys_and_adjoint_are_the_matrix(grid_in: tuple[int, int], grid_out: tuple[int, int]) -> None:
    matrix = bilinear_matrix(grid_in, grid_out)
    out, pixels = matrix.shape
    rows, seen = numbers(3, pixels), numbers(2, out, seed=1)
    equal(resize_keys(rows, grid_in, grid_out), rows @ matrix.T)
    equal(resize_keys_adjoint(seen, grid_in, grid_out), seen @ matrix)


def test_adjoint_by_hand() -> None:
    # Two cells side by side, seen from four: each gives 1 + 3/4 + 1/4 of what the four hold.
    seen = resize_keys_adjoint(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), (1, 2), (1, 4))
    equal(seen, torch.tensor([[1 + 0.75 * 2 + 0.25 * 3, 0.25 * 2 + 0.75 * 3 + 4]]))


@properties
@given(grids, grids)
def test_adjoint_identity(grid_in: tuple[int, int], grid_out: tuple[int, int]) -> None:
    x = numbers(1, grid_out[0] * grid_out[1])
    y = numbers(1, grid_in[0] * grid_in[1], seed=1)
    equal(
        (x * resize_keys(y, grid_in, grid_out)).sum(),
        (resize_keys_adjoint(x, grid_in, grid_out) * y).sum(),
        atol=1e-11,
    )


@properties
@given(grids, grids)
def test_a_constant_stays_and_the_adjoint_keeps_the_mass(grid_in: tuple[int, int], grid_out: tuple[int, int]) -> None:
    pixels, out = grid_in[0] * grid_in[1], grid_out[0] * grid_out[1]
    equal(resize_keys(torch.full((1, pixels), 0.3), grid_in, grid_out), torch.full((1, out), 0.3))
    x = numbers(1, out)
    equal(resize_keys_adjoint(x, grid_in, grid_out).sum(), x.sum(), atol=1e-11)


@properties
@given(grids, grids, st.integers(0, 2**32 - 1))
def test_the_two_matrices_of_a_resize_are_interpolate(
    grid_in: tuple[int, int], grid_out: tuple[int, int], seed: int
) -> None:
    maps = numbers(3, *grid_in, seed=seed)
    theirs = F.interpolate(maps[None], grid_out, mode="bilinear", align_corners=False)[0]
    down, across = (bilinear(i, o, maps) for i, o in zip(grid_in, grid_out, strict=True))
    equal(down @ maps @ across.T, theirs, atol=1e-12)
    equal(resize_keys(maps.flatten(1), grid_in, grid_out), theirs.flatten(1), atol=1e-12)


@properties
@given(sizes, sizes)
def test_a_row_is_a_mean_of_neighbours(size_in: int, size_out: int) -> None:
    matrix = bilinear(size_in, size_out)
    assert bool((matrix >= 0).all())
    equal(matrix.sum(1), torch.ones(size_out))
    for row in matrix:
        used = row.nonzero().flatten().tolist()
        assert len(used) in (1, 2)
        assert used[-1] - used[0] <= 1


@properties
@given(grids, grids, st.integers(0, 2**32 - 1))
def test_resizing_is_linear_and_stays_in_range(grid_in: tuple[int, int], grid_out: tuple[int, int], seed: int) -> None:
    one, other = numbers(2, *grid_in, seed=seed)
    equal(resize(2 * one - 3 * other, grid_out), 2 * resize(one, grid_out) - 3 * resize(other, grid_out), atol=1e-12)
    assert one.min() - 1e-12 <= resize(one, grid_out).min()
    assert resize(one, grid_out).max() <= one.max() + 1e-12


@pytest.mark.parametrize(("share", "cut"), [(1.0, False), (0.9, False), (0.85, True), (0.5, True)])
def test_the_middle_is_cut_out_where_half_a_cell_or_more_goes_at_an_edge(share: float, cut: bool) -> None:
    # Of 8 cells 0.9 leaves out 0.4 at either edge, 0.85 leaves out 0.6.
    ramp = torch.arange(8.0).expand(3, 5, 8)
    middle = (torch.arange(8) + 0.5) * share + 8 * (1 - share) / 2 - 0.5
    expected = middle if cut else torch.arange(8.0)
    equal(centre(ramp, (1.0, share)), expected.expand(3, 5, 8), atol=1e-5)
    tall = ramp.transpose(1, 2)
    equal(centre(tall, (share, 1.0)), expected[:, None].expand(3, 8, 5), atol=1e-5)
