"""Confusion counts of label maps, by hand and against a loop."""

import numpy as np
import pytest

from goca.evaluation.datasets.base import VOID
from goca.evaluation.records import Counts, ImageRecord, count, matrix, tally

TRUTH = np.array([[0, 0, 1], [1, 2, VOID]], np.uint16)
PREDICTED = np.array([[0, 1, 1], [1, 0, 2]], np.uint16)


def image(counts: Counts) -> ImageRecord:
    return ImageRecord("an image", counts={"none": counts})


def test_by_hand() -> None:
    counts = count(TRUTH, PREDICTED, 3)
    assert counts == ((0, 0, 1), (0, 1, 1), (1, 1, 2), (2, 0, 1))
    # Rows are the truth.
    assert matrix([image(counts)], "none", 3).tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    totals = tally([image(counts)], "none", 3)
    assert totals.hit.tolist() == [[1, 2, 0]]
    assert totals.truth.tolist() == [[2, 2, 1]]
    assert totals.predicted.tolist() == [[2, 3, 0]]


def test_an_image_that_is_all_void_counts_nothing() -> None:
    assert count(np.full((3, 5), VOID, np.uint16), np.zeros((3, 5), np.uint16), 2) == ()


@pytest.mark.parametrize("labels", [7, 257, 1009])
def test_loop_and_shards(labels: int) -> None:
    source = np.random.default_rng(0)
    truth, predicted = source.integers(0, labels, (2, 11, 13)).astype(np.uint16)
    truth[2, 3:7] = VOID
    expected = np.zeros((labels, labels), int)
    for true, label in zip(truth.flat, predicted.flat, strict=True):
        if true != VOID:
            expected[true, label] += 1
    assert np.array_equal(matrix([image(count(truth, predicted, labels))], "none", labels), expected)
    shards = [image(count(truth[rows], predicted[rows], labels)) for rows in (slice(0, 4), slice(4, 11))]
    assert np.array_equal(matrix(shards, "none", labels), expected)
    totals = tally(shards, "none", labels)
    assert np.array_equal(totals.hit.sum(0).numpy(), expected.diagonal())
    assert np.array_equal(totals.truth.sum(0).numpy(), expected.sum(1))
    assert np.array_equal(totals.predicted.sum(0).numpy(), expected.sum(0))
