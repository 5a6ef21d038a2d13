"""Scores on the scenes benchmark, against loops and hand-made runs."""

import numpy as np
import pytest
import torch
from PIL import Image

from goca import GocaError, Segmenter, bundled
from goca.bench.evaluate import evaluate_scenes
from goca.bench.scores import gain, resampled_miou, score
from goca.bundled import Scene
from goca.maths.confusion import confusion, mean_iou


def runs(count: int = 7, labels: int = 5, seed: int = 0) -> torch.Tensor:
    """Confusion matrices of random label maps; label 0 never occurs, as in the scenes."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(1, labels, (count, 2, 11, 13), generator=generator)
    return torch.stack([confusion(truth, found, labels) for truth, found in maps])


def test_a_score_by_hand() -> None:
    # Two pictures: 3 of 4 pixels of "a" right and one called "b"; both pixels of "b" right. "c" never occurs.
    first = confusion(torch.tensor([1, 1, 1, 1]), torch.tensor([1, 1, 1, 2]), 4)
    second = confusion(torch.tensor([2, 2]), torch.tensor([2, 2]), 4)
    got = score(torch.stack([first, second]), ("a", "b", "c"))
    assert got.per_class == pytest.approx({"a": 3 / 4, "b": 2 / 3})
    assert got.miou == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert got.pixel_accuracy == pytest.approx(5 / 6)
    # Drawn with replacement: the first alone scores 3/4, the second alone 1, both together as above.
    assert got.ci95 == pytest.approx(((3 / 4 + 2 / 3) / 2, 1), rel=1e-5)


def test_resampling_is_the_loop() -> None:
    matrices = runs()
    drawn = torch.randint(7, (2000, 7), generator=torch.Generator().manual_seed(0))
    ours = resampled_miou(matrices)
    for resample in (0, 1, 1999):
        total = sum((matrices[index] for index in drawn[resample].tolist()), torch.zeros_like(matrices[0]))
        assert float(ours[resample]) == pytest.approx(mean_iou(total), rel=1e-5)


def test_a_gain_is_paired() -> None:
    ours = runs()
    assert gain(ours, ours) == (0, (0, 0))
    perfect = torch.stack([torch.diag(matrix.sum(1)) for matrix in ours])
    difference, (low, high) = gain(perfect, ours)
    assert difference == pytest.approx(1 - mean_iou(ours.sum(0)))
    assert 0 < low < difference < high < 1


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.from_pretrained("bundled")


@pytest.mark.parametrize("captions", ["nouns", "sentences"])
def test_some_scenes(segmenter: Segmenter, captions: str) -> None:
    done: list[int] = []
    # Version 0 of the bundled pipeline reads 24 tokens, and not every sentence is as short.
    short = [scene for scene in bundled.scenes() if len(scene.captions["sentences"]) < 30][:5]
    got = evaluate_scenes(segmenter, captions, done=lambda: done.append(1), scenes=short)
    assert len(done) == 5
    assert got.matrices.sum() == 5 * 64 * 64
    assert (got.matrices[:, 0] == 0).all()
    assert (got.matrices[:, :, 0] == 0).all()
    told = got.to_json()
    assert told["protocol"]["captions"] == captions
    assert told["protocol"]["pictures"] == 5
    assert set(told["per_class"]) == {name for scene in short for name in scene.classes}
    assert 0.2 < told["miou"] < 1


def test_truth_and_answer_are_counted_under_the_same_names(segmenter: Segmenter) -> None:
    picture = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    truth = np.full((64, 64), 2, np.uint8)
    scene = Scene(picture, truth, ("sky", "cat"), {"sentences": "a cat under the sky"})
    got = evaluate_scenes(segmenter, scenes=[scene])
    answer = segmenter(picture, ["sky", "cat"], background=None)
    assert got.names == ("cat", "sky")
    assert int(got.matrices[0, 1, 1]) == int((answer.labels == 2).sum())
    assert int(got.matrices[0, 1, 2]) == int((answer.labels == 1).sum())


def test_unknown_captions_are_refused(segmenter: Segmenter) -> None:
    with pytest.raises(GocaError, match="nouns, sentences"):
        evaluate_scenes(segmenter, "poems")


def test_the_benchmark_is_whole() -> None:
    scenes = list(bundled.scenes())
    assert len(scenes) >= 200
    for image, labels, classes in scenes:
        assert labels.shape == (image.height, image.width)
        assert set(np.unique(labels)) == set(range(1, len(classes) + 1))
    for scene in scenes:
        assert scene.captions["nouns"] == ", ".join(scene.classes)
