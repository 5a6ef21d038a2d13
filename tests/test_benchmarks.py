"""The benchmarks, on a tiny pipeline: that they measure what they say, not how much."""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import auto_settings
import first_image
import folders
import growth
import memory
import mutation
import numpy as np
import overhead
import presence
import pytest
import self_tagger
import tables
import torch
import vocabulary
from PIL import Image

from goca import Segmenter
from goca.bundled import Scene
from goca.bundled import scenes as bundled_scenes
from goca.evaluation.datasets.scenes import open_scenes
from goca.evaluation.evaluator import evaluate_dataset
from goca.evaluation.oracle import OracleTagger
from goca.evaluation.protocol import honest
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


def test_every_combination_of_settings_scores_what_the_segmenter_does(bundled: Segmenter) -> None:
    scene, plan, settings = next(bundled_scenes()), bundled.plan, bundled.backbone.settings
    references, refines = (plan.reference, plan.refine[1]), (plan.refine[:1], plan.refine)
    table = auto_settings.table(bundled, [scene], (plan.timestep[0], 50), references, refines, (1, 2))
    for recipe, rules in auto_settings.RECIPES.items():
        for choice in ((plan.timestep[0], plan.reference, plan.refine, 1), (50, plan.refine[1], plan.refine[:1], 2)):
            given = replace(settings, **dict(zip(("timestep", "reference", "refine", "order"), choice, strict=True)))
            segmenter = Segmenter.from_pipeline(bundled.backbone.pipeline, rules, settings=given)
            labels = segmenter(scene.image, scene.classes, background=None).labels
            tally = table.tally(recipe, choice)
            for number, name in enumerate(scene.classes, start=1):
                label = auto_settings.NOUNS.index(name) + 1
                assert tally.predicted[0, label] == (labels == number).sum()
                assert tally.truth[0, label] == (scene.labels == number).sum()
                assert tally.hit[0, label] == ((labels == number) & (scene.labels == number)).sum()


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

    monkeypatch.setattr(memory, "SIZE", 128)
    monkeypatch.setattr(memory, "sdxl", small)
    whole = memory.measured_sdxl(torch.float32, rounds=2)
    (found,) = whole.slices
    assert (found.waiting, whole.extra_gib_per_waiting_block) == (7, None)
    assert found.plain_gib == pytest.approx(100 / 1024, rel=0.2)
    assert whole.extra_gib == found.gib - found.plain_gib
    assert whole.time_ratio == found.seconds / found.plain_seconds


@pytest.mark.slow
def test_a_folder_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    # The run once, and a worker of the run that goes on.
    assert folders.killed(tmp_path, images=16, workers=2, kills=folders.KILLS[1:])


def test_presence_agrees_with_an_evaluation_where_every_name_is_right(bundled: Segmenter) -> None:
    scenes = list(islice(bundled_scenes(), 2))
    measured, results = presence.measure(bundled, "f", scenes, "self")
    dataset = open_scenes()
    dataset = replace(dataset, samples=dataset.samples[:2])
    report = evaluate_dataset(bundled, dataset, OracleTagger(), honest(dataset, "oracle"))
    assert (measured.figure, *measured.ci95) == pytest.approx((report.score().miou, *report.score().ci95))
    assert measured.rows == 1
    assert [len(each) for each in results] == [1, 1]


def test_presence_counts_what_is_of_no_named_class_as_background(bundled: Segmenter) -> None:
    (scene,) = islice(bundled_scenes(), 1)
    whole = replace(scene, labels=np.full_like(scene.labels, 1))
    assert whole.classes[0] == "sand"
    measured, ((result,),) = presence.measure(bundled, "a", [whole], "self")
    # All is background, so the things that are predicted have no IoU, and the background's is its share.
    assert set(result.classes) == {"penguin", "fish", "ball"}
    assert measured.figure == pytest.approx(float((result.labels == 0).mean()))


def test_presence_asks_for_things_that_are_not_there_each_alone(bundled: Segmenter) -> None:
    scenes = list(islice(bundled_scenes(), 2))
    measured, results = presence.measure(bundled, "e", scenes, "self")
    for scene, several in zip(scenes, results, strict=True):
        assert [len(result.classes) for result in several] == [1] * presence.ABSENT
        assert {result.classes[0] for result in several}.isdisjoint(scene.classes)
    shares = [float((result.labels > 0).mean()) for several in results for result in several]
    assert measured.figure == pytest.approx(sum(shares) / len(shares))
    assert measured.any_pixels is not None
    assert measured.any_pixels[0] == pytest.approx(sum(share > 0 for share in shares) / len(shares))
    low, high = measured.ci95
    assert low <= measured.figure <= high


def test_presence_is_tabled_and_drawn(bundled: Segmenter, tmp_path: Path) -> None:
    scenes = list(islice(bundled_scenes(), 2))
    open_segmenter = Segmenter.from_pipeline(bundled.backbone.pipeline, "goca-open")
    open_segmenter.evidence.content_free.folder = tmp_path
    both = [presence.measure(segmenter, "c", scenes, "self") for segmenter in (bundled, open_segmenter)]
    table = presence.table([measured for measured, _ in both])
    assert (
        table.splitlines()[0]
        == "| what is named | goca, % [95 %] | CPU-s | rows | goca-open, % [95 %] | CPU-s | rows |"
    )
    assert table.splitlines()[2].startswith("| (c) ")
    drawn = presence.drawing(scenes, {(measured.recipe, "c"): results for measured, results in both})
    assert drawn.width > 4 * 200
    curve = presence.curve_of(scenes, both[1][1])
    assert curve[1].sum() == sum(len(scene.classes) for scene in scenes)
    presence.plot({"goca-open": curve}, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as plotted:
        assert plotted.width > 400


def test_precision_and_recall_at_every_level_of_evidence() -> None:
    curve = np.array([[0.9, 0.2], [0.6, 0.6]]), np.array([[True, False], [True, False]])
    # From 0.9: one of one, of two. From 0.6, where two pairs come together: two of three. Then all.
    precision, recall = presence.precision_recall(curve)
    np.testing.assert_allclose(precision, [1, 2 / 3, 2 / 4])
    np.testing.assert_allclose(recall, [1 / 2, 1, 1])
    lines = presence.curve_table({"goca-open": curve}).splitlines()
    assert lines[2 + 4] == "| 0.5 | 0.67, 1.00, 0.80 |"
    assert lines[-1] == f"| area under the curve | {1 / 2 + 2 / 3 / 2:.2f} |"


def test_a_table_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- figures -->old<!-- end of figures -->\nbehind\n")
    for text in ("| 1 |", "| \\2 |"):
        tables.fill(document, "figures", text)
    assert document.read_text() == "before\n<!-- figures -->\n\n| \\2 |\n\n<!-- end of figures -->\nbehind\n"
    with pytest.raises(ValueError, match="no place for other"):
        tables.fill(document, "other", "")


def test_classes_cost_prompts_in_a_caption_and_keys_beside_it(sd15: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "FOLLOWING", 1)
    monkeypatch.setattr(vocabulary, "SIZE", 64)
    monkeypatch.delitem(vocabulary.RECIPES, "goca-open")
    measured = list(vocabulary.rows({"tiny": sd15}, (2, 20)))
    following = {(row.recipe, row.classes): row.following[0] for row in measured}
    assert following["goca-balanced", 2] == 1
    assert following["goca-balanced", 20] >= 2
    side = [row for row in measured if "side" in row.recipe]
    # Each class is encoded once, in a row of its own.
    assert [(row.first[0], row.following[0]) for row in side] == [(3, 1), (21, 1)]
    assert len(vocabulary.to_markdown(measured).splitlines()) == 2 + len(measured)


@pytest.mark.slow
def test_the_first_image_is_a_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.5 < first_image.cpu_seconds(["-c", "import time\nwhile time.process_time() < 0.5: pass"], 1) < 2
    with pytest.raises(subprocess.CalledProcessError):
        first_image.cpu_seconds(["-c", "raise SystemExit(3)"], 1)
    seconds: dict[str, float] = {}
    asked: list[str] = []

    def once(arguments: Sequence[str], threads: int) -> float:
        """As the first of these processes took: each takes seconds."""
        asked.append(" ".join(arguments))
        if asked[-1] not in seconds:
            seconds[asked[-1]] = cpu_seconds(arguments, threads)
        return seconds[asked[-1]] + len(asked)

    cpu_seconds = first_image.cpu_seconds
    monkeypatch.setattr(first_image, "cpu_seconds", once)
    measured = first_image.measure("bundled", rounds=1, threads=1)
    imports, segment = seconds.values()
    assert measured == {"imports": [imports + 3], "segment": [segment + 4]}  # in turn, and without the first round


def test_made_up_words_differ() -> None:
    assert len(set(vocabulary.names(1000))) == 1000


def test_every_module_whose_faults_are_counted_has_tests() -> None:
    rooms = [mutation.PACKAGE / room for room in ("maths", "tagging")]
    files = [file.relative_to(mutation.PACKAGE).with_suffix("") for room in rooms for file in room.glob("*.py")]
    assert {str(file) for file in files} - {"maths/__init__"} <= set(mutation.TESTS)
    for module, tests in mutation.TESTS.items():
        assert (mutation.PACKAGE / f"{module}.py").exists()
        assert all((mutation.ROOT / f"tests/{name}.py").exists() for name in tests.split()), module


def test_a_fault_is_noticed_by_its_exit_code_or_by_its_taking_too_long() -> None:
    assert mutation.in_child(lambda: 0, 60) == 0
    assert mutation.in_child(lambda: 3, 60) == 3
    assert mutation.in_child(lambda: time.sleep(600) or 0, 0.2) is None
