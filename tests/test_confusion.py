"""Confusion matrices and the scores read off them, by hand and against a loop."""

import math

import pytest
import torch
from torch import Tensor

from goca.errors import GocaError
from goca.maths.confusion import confusion, iou, mean_iou, pixel_accuracy

VOID = 255
TRUTH = torch.tensor([[0, 0, 1], [1, 2, VOID]])
PREDICTED = torch.tensor([[0, 1, 1], [1, 0, 2]])


def loop(truth: Tensor, predicted: Tensor, classes: int, void: int | None) -> list[list[int]]:
    matrix = [[0] * classes for _ in range(classes)]
    for there, said in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True):
        if there != void:
            matrix[there][said] += 1
    return matrix


def test_by_hand() -> None:
    matrix = confusion(TRUTH, PREDICTED, 3, void=VOID)
    assert matrix.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    # Class 0: 1 hit of 2 there and 2 said; class 1: 2 hits of 2 there and 3 said; class 2: none of 1 there.
    assert iou(matrix).tolist() == pytest.approx([1 / 3, 2 / 3, 0.0])
    assert mean_iou(matrix) == pytest.approx(1 / 3)
    assert pixel_accuracy(matrix) == pytest.approx(3 / 5)


def test_rows_are_the_truth() -> None:
    assert confusion(torch.tensor([0]), torch.tensor([1]), 2).tolist() == [[0, 1], [0, 0]]


def test_a_class_nobody_saw_is_nan_and_one_only_said_is_left_out_of_the_mean() -> None:
    truth, predicted = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 3, 1])
    matrix = confusion(truth, predicted, 5)
    scores = iou(matrix).tolist()
    assert scores[:2] == pytest.approx([2 / 3, 1.0])
    assert math.isnan(scores[2])
    assert math.isnan(scores[4])
    assert scores[3] == 0.0
    assert mean_iou(matrix) == pytest.approx(5 / 6)
    assert pixel_accuracy(matrix) == pytest.approx(3 / 4)


def test_void_may_be_a_label_like_others_or_none_at_all() -> None:
    truth, predicted = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 0, 1, 0])
    assert confusion(truth, predicted, 3, void=0).tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert confusion(truth, predicted, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_an_image_that_is_all_void_counts_nothing() -> None:
    truth = torch.full((3, 5), VOID)
    assert confusion(truth, torch.zeros_like(truth), 2, void=VOID).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.int64], ids=str)
def test_loop_and_shards(dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 7, (11, 13), generator=source)
    predicted = torch.randint(0, 7, (11, 13), generator=source)
    truth[2, 3:7] = VOID
    truth, predicted = truth.to(dtype), predicted.to(dtype)
    whole = confusion(truth, predicted, 7, void=VOID)
    assert whole.tolist() == loop(truth, predicted, 7, VOID)
    shards = [confusion(truth[rows], predicted[rows], 7, void=VOID) for rows in (slice(0, 4), slice(4, 11))]
    assert (shards[0] + shards[1]).tolist() == whole.tolist()


def test_counts_are_integers_beyond_what_float32_holds() -> None:
    matrix = torch.tensor([[2**24 + 1, 0], [1, 2**24]])
    assert iou(matrix).tolist() == [(2**24 + 1) / (2**24 + 2), 2**24 / (2**24 + 1)]


@pytest.mark.parametrize("pair", [(0, 4), (1, -1), (3, 0)])
def test_a_label_out_of_range_is_refused(pair: tuple[int, int]) -> None:
    truth, predicted = (torch.tensor([label]) for label in pair)
    with pytest.raises(GocaError, match="0 to 2"):
        confusion(truth, predicted, 3)
