"""Windows over a canvas: they cover it, overlap enough, and what they cut apart joins again."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from goca.maths.windows import Window, Windows

properties = settings(max_examples=50, deadline=None)
canvases = st.tuples(st.integers(1, 80), st.integers(1, 80))
sides = st.integers(8, 30)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def equal(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def cells(box: Window) -> set[tuple[int, int]]:
    return {(y, x) for y in range(box.top, box.top + box.height) for x in range(box.left, box.left + box.width)}


def test_tiled_by_hand() -> None:
    # Side 8, so at most 6 on: a width of 20 needs starts 0, 6, 12; a height of 8 one, of 9 two.
    assert Windows.tiled((8, 20), 8).boxes == (Window(0, 0, 8, 8), Window(0, 6, 8, 8), Window(0, 12, 8, 8))
    assert Windows.tiled((9, 8), 8).boxes == (Window(0, 0, 8, 8), Window(1, 0, 8, 8))
    # Evenly spread: 9 more than a window in two steps, neither of them over 6.
    lefts = [box.left for box in Windows.tiled((8, 17), 8).boxes]
    assert (lefts[0], lefts[-1], len(lefts)) == (0, 9, 3)
    assert lefts[1] in (4, 5)
    # A canvas smaller than a window is one window.
    assert Windows.tiled((5, 7), 8) == Windows.whole((5, 7)) == Windows((5, 7), (Window(0, 0, 5, 7),))


@properties
@given(canvases, sides)
def test_windows_cover_every_cell_and_nothing_else(canvas: tuple[int, int], side: int) -> None:
    tiled = Windows.tiled(canvas, side)
    seen = set().union(*map(cells, tiled.boxes))
    assert seen == cells(Window(0, 0, *canvas))
    assert len(set(tiled.boxes)) == len(tiled.boxes)
    assert {(box.height, box.width) for box in tiled.boxes} == {(min(side, canvas[0]), min(side, canvas[1]))}


@properties
@given(canvases, sides)
def test_neighbours_share_a_quarter_and_no_window_is_wasted(canvas: tuple[int, int], side: int) -> None:
    tiled = Windows.tiled(canvas, side)
    for starts, length in zip(
        ({box.top for box in tiled.boxes}, {box.left for box in tiled.boxes}), canvas, strict=True
    ):
        steps = [b - a for a, b in pairwise(sorted(starts))]
        assert all(side - step >= side / 4 for step in steps)
        # Evenly spread, and with one window fewer a step would have to be longer than three quarters.
        assert not steps or max(steps) - min(steps) <= 1
        assert not steps or length - side > (len(steps) - 1) * int(side * 3 / 4)


@properties
@given(canvases, sides, st.integers(0, 3))
def test_what_is_cut_joins_again(canvas: tuple[int, int], side: int, channels: int) -> None:
    tiled = Windows.tiled(canvas, side)
    maps = numbers(channels, *canvas)
    pieces = [tiled.cut(maps, box) for box in tiled.boxes]
    for piece, box in zip(pieces, tiled.boxes, strict=True):
        assert piece.shape == (channels, box.height, box.width)
        equal(piece, maps[:, box.top : box.top + box.height, box.left : box.left + box.width])
    equal(tiled.join(pieces), maps)
    # Without a channel axis, too.
    assert tiled.cut(numbers(*canvas), tiled.boxes[0]).shape == pieces[0].shape[1:]


def test_single_precision_stays_single_and_joins_to_its_own_error() -> None:
    tiled = Windows.tiled((23, 37), 11)
    maps = numbers(3, 23, 37).float()
    joined = tiled.join([tiled.cut(maps, box) for box in tiled.boxes])
    assert joined.dtype == torch.float32
    torch.testing.assert_close(joined, maps, rtol=0, atol=1e-6)


@pytest.mark.parametrize("down", [False, True])
def test_the_nearer_a_windows_middle_the_more_it_counts(down: bool) -> None:
    # Two windows of 8, the first says 0 and the second 1; they share cells 3 to 7 of 11.
    tiled = Windows.tiled((11, 8) if down else (8, 11), 8)
    assert len(tiled.boxes) == 2
    joined = tiled.join([torch.zeros(1, 8, 8, dtype=torch.float64), torch.ones(1, 8, 8, dtype=torch.float64)])
    lines = joined[0].T if down else joined[0]
    for line in lines:
        equal(line[:3], torch.zeros(3, dtype=torch.float64))
        equal(line[8:], torch.ones(3, dtype=torch.float64))
        shared = line[3:8]
        assert bool((shared.diff() > 0).all())
        assert 0 < float(shared[0]) < float(shared[-1]) < 1
        # Half way between the two middles both count the same, and the rest is a mirror image.
        equal(shared + shared.flip(0), torch.ones(5, dtype=torch.float64))


@properties
@given(canvases, sides)
def test_mirrored_windows_see_the_mirrored_image(canvas: tuple[int, int], side: int) -> None:
    tiled = Windows.tiled(canvas, side)
    mirrored = tiled.mirrored()
    maps = numbers(2, *canvas)
    assert mirrored.canvas == canvas
    assert mirrored.mirrored() == tiled
    pieces = [tiled.cut(maps, box).flip(-1) for box in tiled.boxes]
    for piece, box in zip(pieces, mirrored.boxes, strict=True):
        equal(mirrored.cut(maps.flip(-1), box), piece)
    equal(mirrored.join(pieces), maps.flip(-1))


def test_as_many_pieces_as_windows() -> None:
    tiled = Windows.tiled((8, 11), 8)
    with pytest.raises(ValueError, match="zip"):
        tiled.join([torch.zeros(1, 8, 8)])
