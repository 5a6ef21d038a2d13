"""benchmarks/beyond.py: passes that tries share, p-values and their correction, sizes; looks.py: sinks, by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from beyond import Counted, bootstrap_p, counted, holm, size_table
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


def test_gains_by_size_are_of_the_regions_in_a_band() -> None:
    truth = torch.tensor([[0, 20, 80]]).expand(7, 3)
    ours, theirs = (torch.tensor([hit]).expand(7, 3) for hit in ([0, 15, 44], [0, 10, 40]))
    results = {"ours": Counted(Tally(ours, truth, ours), 1.0), "theirs": Counted(Tally(theirs, truth, theirs), 1.0)}
    header, _, row = size_table(results, "theirs").splitlines()
    assert header == "| gain [95 %] in regions of | 10 to 30 % | 30 to 100 % |"
    # 15 / 20 - 10 / 20 and 44 / 80 - 40 / 80, whichever images are drawn.
    assert row == "| ours | +25.0 [+25.0, +25.0] | +5.0 [+5.0, +5.0] |"


def test_a_sink_is_what_the_rows_of_an_affinity_have_on_average() -> None:
    affinity = Affinity((1, 3), layers=1)
    affinity.add_rows(slice(0, 3), torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.1, 0.6, 0.3]]), (1, 3))
    torch.testing.assert_close(mean_row(affinity), torch.tensor([[0.6, 2.1, 0.3]]))
