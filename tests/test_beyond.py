"""benchmarks/beyond.py: corrections for many tries, and a p-value, by hand."""

import pytest
import torch
from beyond import bootstrap_p, holm

from goca.evaluation.metrics import Tally


@pytest.mark.parametrize(
    ("values", "corrected"),
    [
        ([0.01], [0.01]),
        ([0.04, 0.01, 0.02], [0.04, 0.03, 0.04]),
        ([0.03, 0.02, 0.9], [0.06, 0.06, 0.9]),  # never smaller than that of a smaller one
        ([0.5, 0.6], [1.0, 1.0]),
    ],
)
def test_holms_method_by_hand(values: list[float], corrected: list[float]) -> None:
    assert holm(values) == pytest.approx(corrected)


def test_a_difference_of_every_image_is_no_chance_and_none_at_all_is() -> None:
    truth = torch.tensor([[0, 100]]).expand(7, 2)
    better, worse = (Tally(hit, truth, truth) for hit in (torch.tensor([[0, 90]]).expand(7, 2), truth // 2))
    assert bootstrap_p(better, worse) == pytest.approx(2 / 2001)
    assert bootstrap_p(worse, better) == pytest.approx(2 / 2001)
    assert bootstrap_p(worse, worse) == 1
