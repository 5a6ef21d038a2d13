"""Results in a notebook and between processes: short reprs, HTML, pickles, masks by name; and settings' types."""

import copy
import json
import pickle
import re

import numpy as np
import pytest
import torch
from jaxtyping import config

import goca
from goca import GOCA, GocaError, Segmenter, trace
from goca.segmentation import ScoreMaps, Segmentation
from goca.testing.tiny import BUILDERS

IMAGE = np.linspace(0, 255, 40 * 56 * 3).reshape(40, 56, 3).astype(np.uint8)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.from_pipeline(BUILDERS["sd15"](), GOCA, size=64)


@pytest.fixture(scope="module")
def result(segmenter) -> Segmentation:
    return segmenter(IMAGE, ["cat", "dog", "grass"])


@pytest.fixture(scope="module")
def traced():
    pipe = BUILDERS["sd15"]()
    with trace(pipe) as tr:
        pipe(["a cat on grass", "<b>dog</b>"], num_inference_steps=2, height=64, width=64)
    return tr


def test_a_result_is_a_mapping_from_classes_to_masks(result):
    assert list(result) == ["cat", "dog", "grass"]
    assert len(result) == 3
    assert "cat" in result
    assert "zebra" not in result
    assert (result["dog"] == (result.labels == 2)).all()
    with pytest.raises(GocaError, match='"zebra" is not a class of this result: there are cat, dog, grass'):
        result["zebra"]


@pytest.mark.parametrize("carry", [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy])
def test_results_survive_pickling(result, carry):
    carried = carry(result)
    assert (carried.labels == result.labels).all()
    assert (carried.scores.grid == result.scores.grid).all()
    assert np.array_equal(carried.image, result.image)
    assert (carried.plan, carried.classes, carried.present) == (result.plan, result.classes, result.present)
    assert hash(carried.plan) == hash(result.plan)


def test_a_traced_image_survives_pickling(traced):
    carried = pickle.loads(pickle.dumps(traced[0]))
    assert (carried.map("cat") == traced[0].map("cat")).all()
    assert (carried.segment(["cat", "grass"]).labels == traced[0].segment(["cat", "grass"]).labels).all()


def test_results_are_themselves_as_keys_and_in_comparisons(result):
    other = copy.deepcopy(result)
    assert {result: 1, other: 2}[result] == 1
    assert result != other
    assert result.scores != other.scores


def test_reprs_are_one_short_line(segmenter, result, traced):
    many = copy.deepcopy(result)
    grid = np.concatenate([result.scores.grid] * 50)
    many = Segmentation(
        result.image, tuple(map(str, range(150))), result.labels, ScoreMaps(grid, None), result.plan, (0.5,) * 150
    )
    for shown in (segmenter, result, result.scores, result.plan, many, traced, traced[0], traced.steps[0]):
        assert repr(shown).startswith(type(shown).__name__ + "(")
        assert len(repr(shown)) < 300
        assert "\n" not in repr(shown)
    assert " and 145 more" in repr(many)
    pipe = BUILDERS["sd15"]()
    assert repr(trace(pipe)) == "Trace(nothing yet)"


def test_a_notebook_shows_image_and_classes_with_the_largest_first(result):
    shown = result._repr_html_()
    assert 'src="data:image/jpeg;base64,' in shown
    rows = re.findall(r"<tr><td[^>]*><span [^>]*></span>(\w+)</td><td>([\d.]+)%</td><td>([\d.]+)</td></tr>", shown)
    assert {name for name, *_ in rows} == {"cat", "dog", "grass"}
    shares = [float(share) for _, share, _ in rows]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(100 * max(presence.share for presence in result.present.values()), abs=0.05)


def test_a_large_image_makes_a_small_page(result):
    rng = np.random.default_rng(0)
    labels = np.zeros((3001, 4001), np.uint16)
    labels[:, 2000:] = 2
    image = goca.imaging.images.load(rng.integers(0, 256, (3001, 4001, 3), dtype=np.uint8))
    large = Segmentation(image, result.classes, labels, result.scores, result.plan, result.evidence)
    assert len(large._repr_html_()) < 500_000


def test_a_notebook_shows_plan_and_trace(segmenter, traced):
    assert re.search("<td[^>]*>size</td><td[^>]*>64</td><td[^>]*>user</td>", segmenter._repr_html_())
    captions = re.findall("<br>([^<]*)<", traced._repr_html_())
    assert captions == ["image", "cat", "on", "grass", "image", "b", "dog", "b#2"]
    assert "Trace(nothing yet)" in trace(BUILDERS["sd15"]())._repr_html_()


@pytest.fixture
def unchecked(monkeypatch):
    """The tests check every annotation; a user's program does not."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)


WRONG = [
    ("recipe", None), ("recipe", 3),
    ("batch", None), ("batch", "2"), ("batch", 1.5), ("batch", 0),
    ("size", "x"), ("size", 64.0), ("size", True), ("size", 0), ("size", -64),
    ("timestep", "100"), ("timestep", []), ("timestep", [None]), ("timestep", 1.5), ("timestep", True),
    ("seed", None), ("seed", -1), ("seed", 2**63), ("seed", "1"), ("seed", False),
    ("seeds", 0), ("seeds", None), ("seeds", 10**12),
    ("flip", None), ("flip", "no"), ("flip", 1), ("window", 3), ("refine_edges", "x"), ("family", 3),
]  # fmt: skip


@pytest.mark.parametrize("folder", [None, 5, ["out"]])
def test_a_folder_that_is_no_path(unchecked, result, traced, folder):
    for shown in (result, traced, traced[0]):
        with pytest.raises(GocaError, match="is not a folder: give its path"):
            shown.save(folder)


@pytest.mark.parametrize("formats", [None, 5, "json"])
def test_formats_that_are_no_list(unchecked, result, tmp_path, formats):
    with pytest.raises(GocaError, match=r'formats are a list of names: write \["labels", "json"\] instead of'):
        result.save(tmp_path, formats=formats)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("background", [np.zeros(2), [0.5], b"auto", True, np.nan])
def test_a_background_of_a_wrong_kind(unchecked, segmenter, traced, background):
    for ask in (lambda **given: segmenter(IMAGE, **given), traced.segment):
        with pytest.raises(GocaError, match='is not valid: give "auto", "none" or a threshold from 0 to 1'):
            ask(classes=["cat"], background=background)


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_setting_of_a_wrong_kind_is_named(unchecked, segmenter, name, value):
    with pytest.raises(GocaError, match=name):
        Segmenter.from_pipeline(segmenter.backbone.pipeline, **{"size": 64, name: value})


@pytest.mark.parametrize("caption", [3, b"a cat", ["a cat"]])
def test_a_caption_that_is_not_text_is_named(unchecked, segmenter, caption):
    with pytest.raises(GocaError, match=r"caption .* is not text"):
        segmenter(IMAGE, ["cat"], caption=caption)


@pytest.mark.parametrize(
    ("name", "value", "ran"),
    [
        ("size", np.int64(64), 64),
        ("timestep", [np.int32(100), 50], (100, 50)),
        ("timestep", range(50, 150, 50), (50, 100)),
        ("seed", 2**63 - 1, None),
        ("flip", np.True_, True),
    ],
)
def test_settings_take_numpy_scalars_and_sequences(unchecked, segmenter, name, value, ran):
    made = Segmenter.from_pipeline(segmenter.backbone.pipeline, GOCA, **{"size": 64, name: value})
    assert name == "seed" or getattr(made.plan, name) == ran
    result = made(IMAGE, ["cat", "dog"])
    assert torch.from_numpy(result.scores.grid).isfinite().all()
    pickle.dumps(result.plan)
    json.dumps(result.to_json())


@pytest.mark.parametrize("background", [0.3, "none", None])
def test_the_plan_says_who_chose_the_background(segmenter, background):
    assert segmenter(IMAGE, ["cat", "dog"], background=background).plan.origin["background"] == "user"
    assert segmenter(IMAGE, ["cat", "dog"]).plan.origin["background"] != "user"
