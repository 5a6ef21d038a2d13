"""Figures of how much structure an affinity shows, by hand."""

import math

import pytest
import torch
from torch import Tensor

from goca.maths.structure import (
    Repeatability,
    explained_by_others,
    mirrored,
    pooled,
    pooling,
    predicted,
    segments,
)

DIAGONAL, FLAT = torch.eye(4), torch.full((4, 4), 0.25)
HALVES = torch.block_diag(torch.full((2, 2), 0.5), torch.full((2, 2), 0.5))
KINDS = torch.stack([HALVES, DIAGONAL, FLAT])


def of_each(figures: Tensor, halves: float, diagonal: float, flat: float) -> None:
    torch.testing.assert_close(figures, torch.tensor([halves, diagonal, flat]), rtol=0, atol=1e-6)


def test_segments_are_counted() -> None:
    of_each(segments(KINDS), halves=math.log(2), diagonal=math.log(4), flat=0.0)


def test_a_cell_is_explained_by_the_others_that_it_looks_at_and_not_by_itself() -> None:
    # Deviations from the mean, 2: -1 -1 1 1. Flat: each is given the mean of three others, a third of its opposite.
    of_each(explained_by_others(KINDS, torch.tensor([[1.0, 1, 3, 3]])), halves=1.0, diagonal=0.0, flat=1 - 16 / 9)


def test_refinement_that_averages_noise_out_predicts_another_look() -> None:
    maps, other = torch.tensor([[0.0, 2, 4, 6]]), torch.tensor([[1.0, 1, 5, 5]])
    # Diagonal: <-3 -1 1 3, -2 -2 2 2> over the lengths 20 ** 0.5 and 4.
    of_each(predicted(KINDS, maps, other), halves=1.0, diagonal=16 / (4 * 20**0.5), flat=0.0)


def test_maps_of_several_nouns_weigh_by_how_much_they_vary() -> None:
    maps = torch.tensor([[0.0, 0, 1, 1], [3.0, 3, 0, 0]])
    # One noun agrees, the other, three times as strong, is the opposite: (1 - 9) / (1 + 9).
    torch.testing.assert_close(
        predicted(DIAGONAL[None], maps, maps * torch.tensor([[1.0], [-1.0]])), torch.tensor([-0.8])
    )


LEFT, RIGHT = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[0.0, 1], [1, 0]])
HALF_RIGHT = torch.tensor([[0.0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((LEFT, RIGHT), (LEFT, RIGHT), 1.0),
        ((LEFT, RIGHT), (RIGHT, LEFT), -1.0),
        ((LEFT, LEFT), (LEFT, RIGHT), 0.0),  # the same of every image
        # One of two rows differs between the images: covariance 0.5, variances 0.5 and 1.
        ((LEFT, HALF_RIGHT), (LEFT, RIGHT), 0.5**0.5),
    ],
)
def test_repeatability_is_of_what_differs_between_images(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], expected: float
) -> None:
    sums = Repeatability()
    for a, b in zip(first, second, strict=True):
        sums.add(a[None], b[None])
    torch.testing.assert_close(sums.value(), torch.tensor([expected], dtype=torch.float64))


def test_affinities_are_pooled_into_cells() -> None:
    # A row of four pixels in two cells, its affinity given in two blocks of rows.
    affinity = torch.tensor([[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1], [0.25, 0.25, 0.25, 0.25]])
    blocks = [(slice(0, 3), affinity[:3]), (slice(3, 4), affinity[3:])]
    expected = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    torch.testing.assert_close(pooled(blocks, pooling((1, 4), (1, 2), affinity)), expected)
    # Text took part of the attention.
    torch.testing.assert_close(pooled([(slice(0, 4), affinity / 7)], pooling((1, 4), (1, 2), affinity)), expected)


def test_a_coarse_grid_is_repeated() -> None:
    pool = pooling((2, 1), (2, 3), torch.zeros(1))
    assert pool.tolist() == [[1, 0]] * 3 + [[0, 1]] * 3
    apart = pooled([(slice(0, 2), torch.eye(2))], pool)
    torch.testing.assert_close(apart, torch.block_diag(torch.full((3, 3), 1 / 3), torch.full((3, 3), 1 / 3)))


def test_a_mirrored_affinity_has_left_and_right_exchanged() -> None:
    affinity = torch.arange(36.0).reshape(1, 6, 6)
    # Two rows of three cells: 0 1 2 / 3 4 5 become 2 1 0 / 5 4 3.
    order = [2, 1, 0, 5, 4, 3]
    torch.testing.assert_close(mirrored(affinity, (2, 3)), affinity[:, order][:, :, order])
