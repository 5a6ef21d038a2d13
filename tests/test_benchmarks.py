"""The benchmarks, on a tiny pipeline: that they measure what they say, not how much."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import growth
import memory
import numpy as np
import overhead
import pytest
import self_tagger
import torch
from PIL import Image

from goca import Segmenter
from goca.bundled import Scene
from goca.self_tagging import SelfTagger
from goca.testing.tiny import BUILDERS


def test_growth_counts_a_pass_for_every_prompt(sd15: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(growth, "SIZE", 64)
    measured = list(growth.rows(sd15, sizes=(64, 96), counts=(40,)))
    assert [(row.size, row.classes) for row in measured] == [(64, 2), (96, 2), (64, 40)]
    assert [row.passes for row in measured][:2] == [1, 1]
    # Two letters and a comma are at least two tokens, and a prompt has 75.
    assert measured[2].passes >= 2
    assert all(row.seconds > row.plain_seconds > 0 for row in measured)
    table = growth.to_markdown(measured).splitlines()
    assert len(table) == 2 + 3
    assert table[-1].startswith(f"| 64 | 40 | {measured[2].passes} |")
    growth.plot(measured, tmp_path / "growth.png")
    with Image.open(tmp_path / "growth.png") as drawn:
        assert drawn.width > 400


def test_made_up_names_differ() -> None:
    assert len(set(growth.names(150))) == 150


def test_a_peak_is_what_was_held_at_the_worst_moment() -> None:
    seconds, gib = overhead.peak(lambda: bytearray(200 * 2**20))
    assert 0.15 < gib < 0.3
    assert seconds < 5


def test_a_self_tagger_chooses_among_all_nouns(bundled: Segmenter) -> None:
    class Told(SelfTagger):
        def shown(self, image: Image.Image, classes: Sequence[str], background: bool = True) -> tuple[str, ...]:  # type: ignore[override]
            assert len(classes) == 32
            return "cat", "sky"

    images = [Scene(Image.new("RGB", (64, 64)), np.zeros((64, 64)), some, {}) for some in (("cat",), ("dog", "sky"))]
    agreed, _ = self_tagger.measure(Told(bundled), images)
    assert (agreed.correct, agreed.predicted, agreed.actual) == (2, 4, 3)


def test_a_widened_layer_computes_what_it_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BLOCK", 16)
    linear = torch.nn.Linear(29, 37).to(torch.bfloat16)
    convolution = torch.nn.Conv2d(3, 67, 3, stride=2, padding=1).to(torch.bfloat16)
    rows, image = torch.randn(2, 19, 29, dtype=torch.bfloat16), torch.randn(1, 3, 11, 13, dtype=torch.bfloat16)
    exact = (linear.float()(rows.float()), convolution.float()(image.float()))
    linear.to(torch.bfloat16)
    convolution.to(torch.bfloat16)
    with memory.Widened():
        found = (linear(rows), convolution(image))
    for one, whole in zip(found, exact, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), whole, rtol=1e-2, atol=1e-2)


def test_the_whole_depth_is_a_straight_line_through_the_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    # A block of the slices takes 2 s plain and 2.5 s segmented.
    def measured(groups: int, rounds: int) -> memory.Measured:
        blocks = 3 * groups
        return memory.Measured(blocks - 1, 3 + 2.5 * blocks, 1 + 2.0 * blocks, 0.9, 0.2)

    monkeypatch.setattr(memory, "flux", lambda groups, dtype: groups)
    monkeypatch.setattr(memory, "measure", measured)
    whole = memory.extrapolated_flux(torch.float32, rounds=1)
    # 4096 pixels' queries, their keys and those of 512 words, 3072 numbers of 4 bytes each, for 22 blocks more.
    assert whole.extra_gib == pytest.approx(0.7 + 22 * (4096 + 4608) * 3072 * 4 / 2**30)
    assert whole.time_ratio == pytest.approx((3 + 2.5 * 57) / (1 + 2 * 57))


def test_blocks_of_one_weight_have_modules_of_their_own() -> None:
    blocks = BUILDERS["pixart_sigma"]().transformer.transformer_blocks
    count = sum(weight.numel() for weight in blocks.parameters())
    first, *rest = blocks
    del blocks[1:]
    memory.deepen(blocks, 5)
    assert len(blocks) == 5
    assert len({id(module) for module in blocks.modules()}) == 1 + 5 * len(list(first.modules()))
    assert sum(weight.numel() for weight in blocks.parameters()) == count / (1 + len(rest))


@pytest.mark.slow
def test_the_whole_is_as_measured(monkeypatch: pytest.MonkeyPatch, sd15: Any) -> None:
    def small(depth: int, dtype: torch.dtype, whole: bool) -> memory.Slice:
        assert whole
        reference = "up_blocks.1.attentions.0.transformer_blocks.0"
        return memory.Slice(sd15, lambda: bytearray(100 * 2**20), reference, (reference,), 7)

    monkeypatch.setattr(memory, "SIZE", 256)
    monkeypatch.setattr(memory, "sdxl", small)
    whole = memory.measured_sdxl(torch.float32, rounds=2)
    (found,) = whole.slices
    assert (found.waiting, whole.extra_gib_per_waiting_block) == (7, None)
    assert found.plain_gib == pytest.approx(100 / 1024, rel=0.2)
    assert whole.extra_gib == found.gib - found.plain_gib
    assert whole.time_ratio == found.seconds / found.plain_seconds
