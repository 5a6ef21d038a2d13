"""benchmarks/beyond.py: passes that tries share, corrections for many tries, a p-value; looks.py: sinks, by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from beyond import bootstrap_p, counted, holm
from ideas import Variation
from looks import mean_row
from shared_passes import SharedBackbone
from torch import Tensor

from goca import GOCA_BALANCED, VANILLA, Segmenter
from goca.diffusion.backbone import BackboneSession
from goca.evaluation.ablate import scenes_benchmark
from goca.evaluation.evaluator import evaluate_dataset
from goca.evaluation.metrics import Tally
from goca.evaluation.oracle import OracleTagger
from goca.maths.refine import Affinity


def test_tries_that_share_passes_come_to_what_each_comes_to_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, protocol = scenes_benchmark(limit=3)
    tries = {
        "one": Variation(GOCA_BALANCED),
        "other": Variation(replace(VANILLA, grid="tokens")),
        "mirrored": Variation(replace(VANILLA, flip=True)),
    }
    backbone, forward, sent = SharedBackbone("bundled"), BackboneSession.forward, []

    def counting(self: BackboneSession, latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(len(latents))
        return forward(self, latents, *args, **kwargs)

    monkeypatch.setattr(BackboneSession, "forward", counting)
    together = counted(backbone, tries, dataset, tmp_path)
    assert sum(sent) == 2 * 3  # the images, and their mirror images
    for name, each in tries.items():
        segmenter = Segmenter(backbone, each.recipe, batch=8)
        alone = evaluate_dataset(segmenter, dataset, OracleTagger(), protocol).tally()
        assert all(torch.equal(getattr(together[name].tally, part), getattr(alone, part)) for part in ("hit", "truth"))
        assert together[name].seconds > 0
    # What is in the folder is not measured again.
    assert counted(backbone, tries, dataset, tmp_path)["one"].seconds == together["one"].seconds


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


def test_a_sink_is_what_the_rows_of_an_affinity_have_on_average() -> None:
    affinity = Affinity((1, 3), layers=1)
    affinity.add_rows(slice(0, 3), torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.1, 0.6, 0.3]]), (1, 3))
    torch.testing.assert_close(mean_row(affinity), torch.tensor([[0.6, 2.1, 0.3]]))
