"""What a segmentation asks of a GPU, counted on tiny pipelines: it may not grow unnoticed."""

from collections.abc import Callable

import launches
import pytest
import torch
from PIL import Image

from goca.testing.tiny import BUILDERS

COUNTS = {"sd15": (1.70, 4), "pixart_sigma": (2.07, 4), "flux": (1.60, 4)}
"""(operations over a plain pass, syncs) of a UNet, a transformer with cross-attention, and one with joint attention.

Where a change is worth more launches than this, put what the failing test has counted here.
"""


@pytest.mark.parametrize("name", COUNTS)
def test_operations_and_waits_do_not_grow(name: str, image: Callable[..., Image.Image]) -> None:
    plain, segmented = launches.measure(BUILDERS[name](), image(96, 64), torch.float16, size=64)
    ratio, syncs = COUNTS[name]
    assert plain.total("operations") > 50
    assert segmented.total("operations") / plain.total("operations") <= 1.05 * ratio
    assert segmented.total("syncs") <= syncs


def test_operations_are_counted_by_what_they_put_on_the_queue() -> None:
    with launches.counted() as take:
        there = torch.ones(2, 3).to(launches.DEVICE)  # a copy from the host
        there.T.reshape(6)  # a copy behind a view
        there[0] @ there.mT  # a product, of views
        assert float(there.sum()) == 6  # what is read is what was sent
        assert (there > 0).nonzero().shape == (6, 2)
    cost = take()
    assert cost.total("operations") == 1 + 1 + 1 + 2 + 2
    assert cost.total("syncs") == 1 + 1 + 1
    assert cost.total("flops") == 2 * 3 * 2
