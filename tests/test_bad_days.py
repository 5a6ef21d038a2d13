"""Odd images, odd requests and two threads at once, through the whole library."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import config
from PIL import Image

from goca import GOCA, GocaError, Segmentation, Segmenter
from goca.plan import Options

Make = Callable[..., Image.Image]
ASK: dict[str, Any] = {"classes": ["cat", "grass"], "background_classes": ["sky"]}


def upright(image: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


KINDS: dict[str, Callable[[Image.Image, Path], None]] = {
    "grey.png": lambda image, path: image.convert("L").save(path),
    "deep.png": lambda image, path: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8).save(path),
    "alpha.png": lambda image, path: image.convert("RGBA").save(path),
    "palette.gif": lambda image, path: image.convert("P").save(path),
    "ink.jpg": lambda image, path: image.convert("CMYK").save(path),
    "turned.jpg": upright,
    "film.gif": lambda image, path: image.save(path, save_all=True, append_images=[image.rotate(180)]),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_gets_labels_of_its_size(
    name: str, bundled: Segmenter, image: Make, tmp_path: Path
) -> None:
    KINDS[name](image(72, 48), tmp_path / name)
    result = bundled(tmp_path / name, **ASK)
    assert result.labels.shape == ((72, 48) if name == "turned.jpg" else (48, 72))
    assert np.isfinite(result.scores.grid).all()


def test_12000_by_40_is_seen_whole(bundled: Segmenter) -> None:
    strip = np.zeros((40, 12000, 3), np.uint8)
    strip[:, 6000:] = 255
    result = bundled(strip, **ASK)
    assert result.labels.shape == (40, 12000)
    assert any("too long for 64 windows: processed whole, at 1112 x 8 px" in note for note in result.plan.notes)
    height, width = result.scores.grid.shape[1:]
    assert width / height == pytest.approx(1112 / 8, rel=0.2)
    windowed = Segmenter(bundled.backbone, GOCA, Options(window=True), 4)
    with pytest.raises(GocaError, match=r"12000 x 40 px would take more than 64 windows.*switch off window") as caught:
        windowed(strip, **ASK)
    assert caught.value.hint == "window"


@pytest.fixture
def as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the tests' type checks, which would speak first."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize(
    ("classes", "background_classes", "told"),
    [
        (None, (), "instead of None"),
        (7, (), "instead of 7"),
        (["cat"], 7, "instead of 7"),
        ({"cat": None}, (), 'synonyms of "cat" must be a list: write [] instead of None'),
        (["cat", None], (), "None is not a name"),
    ],
)
def test_a_request_that_is_none(
    classes: Any, background_classes: Any, told: str, bundled: Segmenter, image: Make
) -> None:
    with pytest.raises(GocaError) as caught:
        bundled(image(), classes, background_classes)
    assert told in str(caught.value)


@pytest.fixture(scope="module")
def result(bundled: Segmenter) -> Segmentation:
    return bundled(np.zeros((48, 64, 3), np.uint8), **ASK)


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5,), (5, 5, 5), (2.5, 5), 5, None], ids=str)
def test_scores_at_no_size(size: Any, result: Segmentation) -> None:
    with pytest.raises(GocaError, match="is not a size: give"):
        result.scores.at(size)


@pytest.mark.usefixtures("as_users_have_it")
def test_scores_at_a_size(result: Segmentation) -> None:
    assert result.scores.at((5, 7)).shape == (2, 5, 7)
    assert result.scores.at((np.int64(1), 1)).shape == (2, 1, 1)


def test_two_threads_ask_one_pipeline(sd15: Any, image: Make) -> None:
    segmenters = [
        Segmenter.from_pipeline(sd15, GOCA, size=64),
        Segmenter.from_pipeline(sd15, recipe="vanilla", size=64),
    ]
    asked = [["cat", "grass"], ["dog", "sky", "traffic light"]]
    images = [image(seed=seed) for seed in range(2)]
    alone = [segmenter(images, names) for segmenter, names in zip(segmenters, asked, strict=True)]
    together: list[Any] = [None, None]

    def ask(index: int) -> None:
        together[index] = segmenters[index](images, asked[index])

    for _ in range(3):
        threads = [threading.Thread(target=ask, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for results, expected in zip(together, alone, strict=True):
            for result, other in zip(results, expected, strict=True):
                assert np.array_equal(result.labels, other.labels)
                np.testing.assert_array_equal(result.scores.grid, other.scores.grid)


@pytest.mark.usefixtures("as_users_have_it")
@pytest.mark.parametrize(
    "setting", [{"timestep": 10.5}, {"timestep": (50, 2.5)}, {"size": "64"}, {"seeds": 1.5}], ids=str
)
def test_a_setting_that_is_not_a_whole_number(setting: dict[str, Any], sd15: Any) -> None:
    (name,) = setting
    with pytest.raises(GocaError, match="not a whole number") as caught:
        Segmenter.from_pipeline(sd15, GOCA, **setting)
    assert caught.value.hint == name
