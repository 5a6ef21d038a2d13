"""The choice of a threshold, by hand."""

import pytest

from goca.tagging.multilabel import MultilabelScores
from training.tune_tagger import best


def test_the_best_threshold() -> None:
    scores = [{"cat": 0.9, "dog": 0.4, "sky": 0.7}, {"cat": 0.2, "dog": float("-inf"), "sky": 0.6}]
    threshold, found = best(scores, [{"cat", "sky"}, {"sky", "dog"}])
    # Three of the four are above 0.4 and nothing else; the dog of the second fell out and is never said.
    assert threshold == pytest.approx((0.4 + 0.6) / 2)
    assert found == MultilabelScores(correct=3, predicted=3, actual=4)
