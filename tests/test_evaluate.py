"""Scores against loops and hand-made runs; images one at a time; scenes against the segmenter's own labels."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import dataset_folders as folders
import numpy as np
import pytest
import torch
from PIL import Image

from goca import GOCA, GocaError, Segmenter
from goca import bundled as shipped
from goca.bundled import Scene
from goca.evaluation import metrics
from goca.evaluation.ablate import scenes_benchmark
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.confusion_image import GAP, LARGEST, SWATCH, confusion_image
from goca.evaluation.datasets.base import VOID, Dataset, Sample
from goca.evaluation.evaluator import Evaluator, ImageBatch, evaluate_dataset
from goca.evaluation.metrics import Counting, Tally, band, by_size, gain, miou, resampled_miou, score
from goca.evaluation.oracle import OracleTagger
from goca.evaluation.protocol import Protocol, changed, honest
from goca.evaluation.records import ImageRecord, tally
from goca.evaluation.report import Report
from goca.evaluation.runner import evaluate
from goca.imaging.palette import magma, palette
from goca.request import SegmentationRequest
from goca.tagging.fixed import FixedTagger
from goca.text.nouns import Category

COUNTINGS = [Counting(background, absent) for background in (False, True) for absent in (False, True)]


def confusion(truth: torch.Tensor, predicted: torch.Tensor, labels: int) -> torch.Tensor:
    """A confusion matrix, truth first."""
    pairs = truth.long().flatten() * labels + predicted.long().flatten()
    return pairs.bincount(minlength=labels**2).reshape(labels, labels)


def tally_of(matrices: torch.Tensor) -> Tally:
    """From one confusion matrix an image."""
    return Tally(matrices.diagonal(dim1=1, dim2=2), matrices.sum(2), matrices.sum(1))


def matrices(count: int = 7, labels: int = 5, lowest: int = 1, seed: int = 0) -> torch.Tensor:
    """Confusion matrices of random label maps; labels below `lowest` never occur."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(lowest, labels, (count, 2, 11, 13), generator=generator)
    return torch.stack([confusion(truth, found, labels) for truth, found in maps])


def slow_miou(matrix: torch.Tensor, counting: Counting) -> float:
    """By a loop over labels, from one confusion matrix."""
    ratios = []
    for label in range(len(matrix)):
        row, column = (sum(int(value) for value in line) for line in (matrix[label], matrix[:, label]))
        hit = int(matrix[label, label])
        if label == 0 and not counting.background:
            continue
        if row:
            ratios.append(hit / (row + column - hit))
        elif counting.absent:
            ratios.append(0.0)
    return sum(ratios) / len(ratios)


# ---- scores


def test_a_score_by_hand() -> None:
    # Two images: 3 of 4 pixels of "a" right and one called "b"; both pixels of "b" right. "c" never occurs.
    first = confusion(torch.tensor([1, 1, 1, 1]), torch.tensor([1, 1, 1, 2]), 4)
    second = confusion(torch.tensor([2, 2]), torch.tensor([2, 2]), 4)
    counts = tally_of(torch.stack([first, second]))
    got = score(counts, ("a", "b", "c"))
    assert got.per_class == pytest.approx({"a": 3 / 4, "b": 2 / 3})
    assert got.miou == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert got.labels == 2
    assert got.pixel_accuracy == pytest.approx(5 / 6)
    assert got.frequency_weighted_iou == pytest.approx((4 * 3 / 4 + 2 * 2 / 3) / 6)
    # Drawn with replacement: the first alone scores 3/4, the second alone 1, both together as above.
    assert got.ci95 == pytest.approx(((3 / 4 + 2 / 3) / 2, 1))
    zero = score(counts, ("a", "b", "c"), Counting(background=True, absent=True))
    assert zero.per_class == pytest.approx({"background": 0, "a": 3 / 4, "b": 2 / 3, "c": 0})
    assert zero.miou == pytest.approx((3 / 4 + 2 / 3) / 4)
    assert zero.labels == 4


def test_scores_by_size_by_hand() -> None:
    # "a" has 3 of 1000 pixels in the first image, 30 in the second, none in the third; "b" has the rest.
    first = torch.tensor([[0, 0, 0], [0, 2, 1], [0, 6, 991]])
    second = torch.tensor([[0, 0, 0], [0, 20, 10], [0, 0, 970]])
    third = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 500, 500]])
    small, medium, large = by_size(tally_of(torch.stack([first, second, third])))
    assert (small.regions, medium.regions, large.regions) == (1, 1, 3)
    assert (small.labels, medium.labels, large.labels) == (1, 1, 1)
    assert small.shares == (0, pytest.approx(1 / 300))
    assert medium.shares == (pytest.approx(1 / 300), 0.03)
    assert large.shares == (0.3, 1)
    assert (small.miou, small.recall) == pytest.approx((2 / 9, 2 / 3))
    # The 500 pixels that are called "a" where there is none are in no band.
    assert (medium.miou, medium.recall) == pytest.approx((20 / 30, 20 / 30))
    assert (large.miou, large.recall) == pytest.approx((2461 / (2967 + 11), 2461 / 2967))
    assert small.ci95 == pytest.approx((2 / 9, 2 / 9))
    assert [band(each.shares) for each in (small, medium, large)] == ["0 to 0.33 %", "0.33 to 3 %", "30 to 100 %"]


def test_scores_by_size_are_means_over_the_labels_of_a_band() -> None:
    counts = torch.tensor([[[6, 0, 1, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 0, 0]]])
    (only,) = by_size(tally_of(counts), Counting(absent=True))
    assert (only.shares, only.regions, only.labels) == ((0.1, 0.3), 2, 2)
    assert (only.miou, only.recall) == pytest.approx(((1 / 2 + 2 / 4) / 2, (1 / 2 + 1) / 2))
    some, rest = by_size(tally_of(counts), Counting(background=True))
    assert (some, rest.shares, rest.regions) == (only, (0.3, 1), 1)
    assert (rest.miou, rest.recall) == pytest.approx((6 / 7, 6 / 7))


def test_scores_by_size_have_no_region_where_everything_is_void_or_background() -> None:
    assert by_size(tally_of(torch.zeros(1, 3, 3, dtype=torch.long))) == []
    assert by_size(tally_of(torch.tensor([[[5, 2], [0, 0]]]))) == []


def test_a_class_that_is_only_ever_found_is_no_class_of_the_mean() -> None:
    counts = tally_of(confusion(torch.tensor([1, 1, 1]), torch.tensor([1, 1, 2]), 3)[None])
    assert score(counts, ("a", "b")).per_class == pytest.approx({"a": 2 / 3})
    assert miou(counts, Counting(absent=True)) == pytest.approx(1 / 3)


@pytest.mark.parametrize("counting", COUNTINGS, ids=str)
@pytest.mark.parametrize("lowest", [0, 1, 2])
def test_scores_are_the_loop(counting: Counting, lowest: int) -> None:
    counts = matrices(lowest=lowest)
    expected = slow_miou(counts.sum(0), counting)
    assert miou(tally_of(counts), counting) == pytest.approx(expected)
    assert score(tally_of(counts), "abcd", counting).miou == pytest.approx(expected)


@pytest.mark.parametrize("counting", COUNTINGS, ids=str)
def test_resampling_is_the_loop(counting: Counting) -> None:
    counts = matrices(lowest=0)
    drawn = torch.randint(7, (2000, 7), generator=torch.Generator().manual_seed(0))
    ours = resampled_miou(tally_of(counts), counting)
    for resample in (0, 1, 1999):
        total = sum((counts[index] for index in drawn[resample].tolist()), torch.zeros_like(counts[0]))
        assert float(ours[resample]) == pytest.approx(slow_miou(total, counting))


def whole_resamples(counts: torch.Tensor, counting: Counting, seed: int = 0) -> torch.Tensor:
    """mIoU of each resample with everything held at once: each image's matrix as often as it was drawn."""
    drawn = torch.randint(len(counts), (2000, len(counts)), generator=torch.Generator().manual_seed(seed))
    total = counts[drawn].sum(1)
    hit, truth, found = total.diagonal(dim1=1, dim2=2), total.sum(2), total.sum(1)
    ratio = torch.where(truth > 0, hit.double() / (truth + found - hit), 0.0 if counting.absent else torch.nan)
    return (ratio if counting.background else ratio.index_fill(1, torch.tensor(0), torch.nan)).nanmean(1)


@pytest.mark.parametrize("chunk", [1, 23, 7 * 1999, 2**22])
@pytest.mark.parametrize("counting", COUNTINGS[::3], ids=str)
def test_resampling_in_chunks_is_that_of_the_whole(
    counting: Counting, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    ours, theirs = matrices(lowest=0), matrices(lowest=0, seed=1)
    for seed in (0, 1):
        whole = whole_resamples(ours, counting, seed)
        assert torch.equal(resampled_miou(tally_of(ours), counting, seed), whole)
    assert whole.unique().numel() > 100
    paired = metrics.interval(whole_resamples(ours, counting) - whole_resamples(theirs, counting))
    assert gain(tally_of(ours), tally_of(theirs), counting)[1] == paired


@pytest.mark.slow
def test_resampling_needs_little_memory_however_many_images() -> None:
    code = (
        "import torch; from pathlib import Path; from goca.evaluation.metrics import Tally, gain\n"
        "def resident(name):\n"
        "    lines = dict(line.split(':') for line in Path('/proc/self/status').read_text().splitlines())\n"
        "    return int(lines[name].split()[0])\n"
        "counts = torch.arange(23003 * 31).reshape(23003, 31) % 997\n"
        "ours, theirs = Tally(counts, 2 * counts, 2 * counts), Tally(counts // 2, 2 * counts, 2 * counts)\n"
        "before = resident('VmRSS')\n"
        "Path('/proc/self/clear_refs').write_text('5')\n"
        "gain(ours, theirs)\n"
        "print(resident('VmHWM') - before)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # At once, it would be 351 MiB for each of what was drawn, how often, and that as float64.
    assert int(told.stdout) < 2**17


def test_an_interval_leaves_out_two_and_a_half_percent_at_either_end() -> None:
    values = torch.linspace(0, 1, 2001, dtype=torch.float64)
    assert metrics.interval(values) == pytest.approx((0.025, 0.975))
    with_gaps = torch.cat([values, values.new_full((7,), torch.nan)])
    assert metrics.interval(with_gaps) == pytest.approx((0.025, 0.975))


def test_a_gain_is_paired() -> None:
    ours = matrices()
    assert gain(tally_of(ours), tally_of(ours)) == (0, (0, 0))
    perfect = torch.stack([torch.diag(matrix.sum(1)) for matrix in ours])
    difference, (low, high) = gain(tally_of(perfect), tally_of(ours))
    assert difference == pytest.approx(1 - slow_miou(ours.sum(0), Counting()))
    assert 0 < low < difference < high < 1


def test_the_threshold_of_the_oracle_is_the_best_of_the_sweep() -> None:
    good, bad = ((1, 1, 6), (2, 2, 2)), ((1, 0, 6), (2, 2, 2))
    dataset = toy(np.ones((2, 4), np.uint16))
    protocol = changed(honest(dataset, "oracle"), ["threshold=oracle"])
    counts = {name: good if name in ("0.1", "0.2") else bad for name in protocol.labellings}
    report = Report(("cat", "grass"), protocol, (ImageRecord("a", counts=counts), ImageRecord("b", left_out="broken")))
    told = report.metrics()
    assert (told["miou"], told["threshold"], told["images"], told["left_out"]) == (1, "0.1", 1, 1)
    assert told["oracle_threshold"] == {"threshold": 0.1, "miou": 1}
    assert told["fixed_threshold"] == {"miou": 0.5, "ci95": (0.5, 0.5)}
    assert told["ci95"] == (1, 1)
    assert [one["miou"] for one in told["sweep"]] == [0.5, 0.5, 0.5, 0.5, 0.5, 1, 1, 0.5, 0.5]
    assert report.confusion.tolist() == [[0, 0, 0], [0, 6, 0], [0, 0, 2]]


def test_images_without_a_label_have_no_figures() -> None:
    protocol = honest(toy(np.ones((2, 4), np.uint16)), "oracle")
    void = Report(
        ("cat", "grass"), protocol, (ImageRecord("a", counts={"none": ()}), ImageRecord("b", left_out="broken"))
    )
    found: list[Callable[[Report], object]] = [
        Report.metrics,
        Report.score,
        Report.tally,
        lambda report: report.confusion,
        lambda report: confusion_image(report, np.zeros((3, 3), np.uint8)),
    ]
    for ask in found:
        with pytest.raises(GocaError, match=r"^no labelled pixel in 1 image of toy: .*set void=background$"):
            ask(void)
    rest = (ImageRecord("a", counts={"none": ((0, 1, 7),)}), ImageRecord("b", counts={"none": ()}))
    with pytest.raises(GocaError, match=r"^no pixel of a class in 2 images of toy: .*set counted=and-background$"):
        Report(("cat", "grass"), protocol, rest).metrics()
    for switch, per_class in (
        ("counted=and-background", {"background": 0}),
        ("absent=zero", {"cat": 0, "grass": 0}),
    ):
        told = Report(("cat", "grass"), changed(protocol, [switch]), rest).metrics()
        assert (told["miou"], told["per_class"]) == (0, per_class)
        json.dumps(told, allow_nan=False)


def test_the_confusion_image_is_shares_of_each_row(tmp_path: Path) -> None:
    dataset = toy(np.ones((2, 4), np.uint16))
    # Of the cat's pixels 1 in 4 is found as grass; "background" is neither there nor found.
    counts = {"none": ((1, 1, 3), (1, 2, 1), (2, 2, 5))}
    report = Report(("cat", "grass"), honest(dataset, "oracle"), (ImageRecord("a", counts=counts),))
    (tmp_path / "confusion.png").write_bytes(
        confusion_image(report, np.array([[0, 0, 0], [200, 0, 7], [0, 190, 5]], np.uint8))
    )
    with Image.open(tmp_path / "confusion.png") as image:
        pixels = np.asarray(image)
    corner = pixels.shape[0] - GAP - 2 * LARGEST
    cells = [corner + LARGEST // 2, corner + LARGEST // 2 + LARGEST]
    shares = np.array([[0.75, 0.25], [0.0, 1.0]])
    assert np.array_equal(pixels[np.ix_(cells, cells)], magma(shares))
    beside = corner - GAP - SWATCH // 2
    assert pixels[cells, beside].tolist() == pixels[beside, cells].tolist() == [[200, 0, 7], [0, 190, 5]]


def test_the_confusion_image_of_150_classes_can_be_read() -> None:
    names = tuple(f"class number {index}" for index in range(1, 151))
    counts = {"none": tuple((index, index, 1) for index in range(151))}
    protocol = honest(toy(np.ones((2, 4), np.uint16)), "oracle")
    report = Report(names, protocol, (ImageRecord("a", counts=counts),))
    with Image.open(io.BytesIO(confusion_image(report, palette(150)))) as image:
        assert 151 * 14 < image.width == image.height < 2600


# ---- one image at a time


ONE = ImageBatch(range(1))


class Says:
    """A tagger of the tests, which says what it is told to."""

    name = "someone"

    def __init__(self, captions: Mapping[str, str]) -> None:
        self.captions = captions

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        return self.captions[sample.id]


def toy(truth: np.ndarray, image: Path = Path("none.png"), background: bool = False) -> Dataset:
    categories = (Category("cat", ("kitty",)), Category("grass"))
    return Dataset(
        "toy", "all", categories, (Sample("one", image, truth.copy),), background, np.zeros((3, 3), np.uint8)
    )


@pytest.fixture(scope="module")
def scene() -> Scene:
    return next(scene for scene in shipped.scenes() if {"cat", "grass"} <= set(scene.classes))


@pytest.fixture
def photo(scene: Scene, tmp_path: Path) -> Path:
    scene.image.save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def counted(segmenter: Segmenter, dataset: Dataset, caption: str, *switches: str) -> tuple[ImageRecord, Protocol]:
    protocol = changed(honest(dataset, "someone"), switches)
    (found,) = Evaluator(segmenter, dataset, Says({"one": caption}), protocol)(ONE)
    return found, protocol


def halves(scene: Scene) -> np.ndarray:
    """Truth of a scene's size: cat above, grass below, a void row between, a background row at the end."""
    truth = np.ones((scene.image.height, scene.image.width), np.uint16)
    truth[32:] = 2
    truth[31] = VOID
    truth[63] = 0
    return truth


def test_labels_are_counted_as_the_segmenter_gives_them(bundled: Segmenter, scene: Scene, photo: Path) -> None:
    truth = halves(scene)
    found, _ = counted(bundled, toy(truth, photo), "grass, cat, sky")
    assert (found.classes, found.background_classes) == (("grass", "cat"), ("sky",))
    answer = bundled(photo, ["grass", "cat"], background_classes=["sky"], background=None).labels
    swapped = np.array([0, 2, 1])[answer]
    for true, said, pixels in (found.counts or {})["none"]:
        assert pixels == int(((truth == true) & (swapped == said)).sum())
    assert sum(pixels for *_, pixels in (found.counts or {})["none"]) == 63 * 64


def test_a_background_is_counted_at_the_fixed_threshold_and_along_the_sweep(
    bundled: Segmenter, scene: Scene, photo: Path
) -> None:
    truth = halves(scene)
    found, protocol = counted(bundled, toy(truth, photo, background=True), "kitty, grass", "threshold=oracle")
    assert "kitty" in found.left_out  # a word that this model was not trained on
    found, protocol = counted(bundled, toy(truth, photo, background=True), "cat, brick", "threshold=oracle")
    result = bundled(photo, ["cat"], background_classes=["brick"])
    maps = [result.labels, *result.relabelled(protocol.backgrounds)]
    for name, labels in zip(protocol.labellings, maps, strict=True):
        for true, said, pixels in (found.counts or {})[name]:
            assert pixels == int(((truth == true) & (labels == said)).sum())
    assert len({(found.counts or {})[name] for name in protocol.labellings}) > 2


def test_what_need_not_be_asked(bundled: Segmenter, scene: Scene) -> None:
    dataset = toy(halves(scene))
    denoiser = bundled.backbone.denoiser
    refusing = denoiser.conv_in.register_forward_pre_hook(lambda *unused: pytest.fail("the denoiser ran"))
    try:
        alone, _ = counted(bundled, dataset, "sky, cat")
        nothing, protocol = counted(bundled, dataset, "sky, sand", "threshold=fixed")
    finally:
        refusing.remove()
    assert (alone.counts or {})["none"] == ((0, 1, 64), (1, 1, 31 * 64), (2, 1, 31 * 64))
    assert set(nothing.counts or {}) == set(protocol.labellings)
    assert (nothing.counts or {})["fixed"] == ((0, 0, 64), (1, 0, 31 * 64), (2, 0, 31 * 64))


def test_what_cannot_be_done_is_left_out_with_its_reason(bundled: Segmenter, scene: Scene, photo: Path) -> None:
    truth = halves(scene)
    missing, _ = counted(bundled, toy(truth, photo.with_name("gone.png")), "cat, grass")
    assert "no such file" in missing.left_out
    small, _ = counted(bundled, toy(truth[:7], photo), "cat, grass")
    assert "differ in size" in small.left_out
    strange, _ = counted(bundled, toy(truth + 1, photo), "cat, grass")
    assert "label 3, but toy has 2 categories" in strange.left_out
    dataset = toy(truth, photo)
    evaluator = Evaluator(bundled, dataset, Says({}), honest(dataset, "someone"))
    (untold,) = evaluator(ImageBatch(range(1), {"one": GocaError("the server is asleep")}))
    assert (untold.left_out, untold.caption) == ("the server is asleep", None)
    (told,) = evaluator(ImageBatch(range(1), {"one": "cat, grass"}))
    assert told.counts is not None


@pytest.mark.parametrize("order", [1, -1])
def test_a_caption_that_is_too_long_is_spread_whatever_its_order(
    order: int, sd15: Any, scene: Scene, photo: Path
) -> None:
    """Classes and background classes, mixed: 77 tokens hold some of them."""
    classes = [f"animal{number}" for number in range(9)]
    others = [f"surrounding{number}" for number in range(9)]
    mixed = [noun for pair in zip(classes, others, strict=True) for noun in pair][::order]
    segmenter = Segmenter.from_pipeline(sd15, GOCA, size=64)
    truth = np.ones((scene.image.height, scene.image.width), np.uint16)
    dataset = Dataset(
        "toy",
        "all",
        tuple(map(Category, classes)),
        (Sample("one", photo, truth.copy),),
        False,
        np.zeros((10, 3), np.uint8),
    )
    evaluator = Evaluator(segmenter, dataset, FixedTagger(", ".join(mixed)), honest(dataset, "given"))
    (found,) = evaluator(ONE)
    assert not found.left_out
    assert set(found.classes) == set(classes)
    assert any("spread over" in note for note in found.notes)
    # Background classes are in every prompt; what does not fit beside the longest class is left out, and said.
    kept = [noun for noun in mixed if noun in others][: len(found.background_classes)]
    assert list(found.background_classes) == kept
    assert 0 < len(kept) < 9
    assert any(note.startswith("the caption is too long for this model: left out surrounding") for note in found.notes)


def test_the_words_of_one_thing_that_are_too_many(sd15: Any, scene: Scene, photo: Path) -> None:
    parts = [f"part{number}" for number in range(30)]
    dataset = Dataset(
        "toy",
        "all",
        (Category("animal"), Category("sky")),
        (Sample("one", photo, np.ones((scene.image.height, scene.image.width), np.uint16).copy),),
        False,
        np.zeros((3, 3), np.uint8),
    )
    caption = f"sky, (animal, {', '.join(parts)})"
    evaluator = Evaluator(
        Segmenter.from_pipeline(sd15, GOCA, size=64), dataset, FixedTagger(caption), honest(dataset, "given")
    )
    (found,) = evaluator(ONE)
    assert not found.left_out
    assert set(found.classes) == {"animal", "sky"}
    (note,) = [note for note in found.notes if note.startswith("the caption is too long for this model: left out part")]
    assert note.endswith("part29")


def test_a_class_that_the_caption_missed(bundled: Segmenter, scene: Scene, photo: Path) -> None:
    dataset = toy(halves(scene), photo)
    assert counted(bundled, dataset, "cat, sky")[0].classes == ("cat",)
    completed, _ = counted(bundled, dataset, "cat, sky", "complete=yes")
    assert completed.classes == ("cat", "grass")
    assert completed.notes == ("from the ground truth: grass",)
    dataset = toy(np.where(halves(scene) == 2, 0, halves(scene)).astype(np.uint16), photo)
    assert counted(bundled, dataset, "cat, grass", "true-only=yes")[0].background_classes == ("grass",)


# ---- scenes


@pytest.mark.parametrize("captions", ["nouns", "sentences"])
def test_scenes_are_counted_as_the_segmenter_labels_them(captions: str) -> None:
    dataset, protocol = scenes_benchmark(captions, limit=7)
    names = [category.name for category in dataset.categories]
    segmenter = Segmenter.from_pretrained("bundled", GOCA, batch=3)
    report = evaluate_dataset(segmenter, dataset, OracleTagger(), protocol)
    total = torch.zeros(len(names) + 1, len(names) + 1, dtype=torch.int64)
    scenes = list(islice(shipped.scenes(), 7))
    for start in (0, 3, 6):
        requests = [
            SegmentationRequest(
                scene.image, scene.classes, (), None, scene.captions["sentences"] if captions == "sentences" else None
            )
            for scene in scenes[start : start + 3]
        ]
        for scene, (_, result) in zip(scenes[start:], segmenter.stream(requests), strict=False):
            assert not isinstance(result, GocaError)
            table = torch.tensor([0, *(names.index(name) + 1 for name in scene.classes)])
            truth, labels = (table[torch.from_numpy(map_.astype(np.int64))] for map_ in (scene.labels, result.labels))
            total += confusion(truth, labels, len(names) + 1)
    assert report.confusion.tolist() == total.tolist()
    assert report.metrics()["miou"] == pytest.approx(slow_miou(total, Counting()))
    assert protocol.to_json()["captions"] == captions
    assert set(names) == {name for scene in scenes for name in scene.classes}


def test_folders_may_be_given_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.write_lines(tmp_path / "data" / "classes.txt", ["cat", "grass"])
    folders.image(tmp_path / "data" / "one.jpg", (61, 67))
    folders.indexed(tmp_path / "data" / "labels" / "one.png", np.full((61, 67), 2))
    monkeypatch.chdir(tmp_path)
    finished = evaluate(EvaluationConfig(dataset="folder", root="data"), "run")
    assert [image.id for image in finished.report.images] == ["one.jpg"]
    assert json.loads(Path("run/run.json").read_text())["root"] == str(tmp_path / "data")


@pytest.mark.parametrize("captions", ["nouns", "sentences"])
def test_categories_that_no_scene_shows_change_nothing(captions: str) -> None:
    finished = evaluate(EvaluationConfig(dataset="scenes", limit=4, batch=3, captions=captions))
    dataset, protocol = scenes_benchmark(captions, limit=4)
    narrow = evaluate_dataset(Segmenter.from_pretrained("bundled", GOCA, batch=3), dataset, OracleTagger(), protocol)
    assert finished.settings["protocol"] == protocol.to_json()
    assert len(dataset.categories) < len(finished.report.names)
    # The same numbers, among more of classes that do not occur, are added up in another order.
    whole = finished.report.metrics()
    for name in ("miou", "ci95", "pixel_accuracy", "frequency_weighted_iou", "per_class"):
        assert whole[name] == pytest.approx(narrow.metrics()[name], rel=1e-14)


def test_captions_that_there_are_not() -> None:
    with pytest.raises(GocaError, match="nouns, sentences"):
        EvaluationConfig(dataset="scenes", captions="poems").open_dataset()
    with pytest.raises(GocaError, match="only scenes with oracle tags"):
        EvaluationConfig(dataset="scenes", captions="sentences", tagger="given:cat").open_dataset()


def test_the_benchmark_is_whole() -> None:
    scenes = list(shipped.scenes())
    assert len(scenes) >= 200
    for image, labels, classes in scenes:
        assert labels.shape == (image.height, image.width)
        assert set(np.unique(labels)) == set(range(1, len(classes) + 1))
    for scene in scenes:
        assert scene.captions["nouns"] == ", ".join(scene.classes)


def test_a_tally_is_that_of_the_matrices() -> None:
    full = matrices(count=3, labels=4, lowest=0)
    images = [
        ImageRecord(str(index), counts={"none": tuple((a, b, int(one[a, b])) for a in range(4) for b in range(4))})
        for index, one in enumerate(full)
    ]
    for ours, theirs in zip(vars(tally(images, "none", 4)).values(), vars(tally_of(full)).values(), strict=True):
        assert torch.equal(ours, theirs)
