"""Protocols: the paper's label maps, suffixes and class counts data set by data set; switches; narrowed data sets."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from dataset_folders import (
    ADE20K_PAIRS,
    CITYSCAPES_PAIRS,
    CONTEXT_PAIRS,
    STUFF_27_PAIRS,
    VOC_PAIRS,
    make_ade20k,
    make_cityscapes,
    make_coco_object,
    make_coco_stuff,
    make_context_mat,
    make_context_png,
    make_voc,
)
from PIL import Image

from goca import GocaError
from goca.evaluation.choices import PRESET_NAMES, SWITCHES, split_of
from goca.evaluation.datasets import open_dataset
from goca.evaluation.datasets.base import VOID, Dataset, Sample
from goca.evaluation.protocol import PRESETS, SWEEP, Protocol, changed, honest, paper
from goca.evaluation.remap import narrowed
from goca.tagging.caption_nouns import captioned
from goca.text.nouns import Category

MAKERS: dict[str, Callable[[Path], object]] = {
    "voc": make_voc,
    "context": make_context_png,
    "coco-object": make_coco_object,
    "coco-stuff-27": lambda root: make_coco_stuff(root, STUFF_27_PAIRS),
    "coco-stuff-171": make_coco_stuff,
    "cityscapes": make_cityscapes,
    "ade20k": make_ade20k,
}
LABELS = {
    "voc": 21,
    "context": 60,
    "coco-object": 81,
    "coco-stuff-27": 28,
    "coco-stuff-171": 172,
    "cityscapes": 20,
    "ade20k": 151,
}
SUFFIX = {"voc", "coco-object", "ade20k"}
COMPLETE = {"voc", "context", "coco-stuff-27", "coco-stuff-171"}
SPLITS = {
    "voc": "train",
    "context": "train",
    "coco-object": "val2017",
    "coco-stuff-27": "val2017",
    "coco-stuff-171": "val2017",
    "cityscapes": "val",
    "ade20k": "validation",
}
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]


def opened(name: str, root: Path, preset: str = "paper") -> Dataset:
    MAKERS[name](root)
    return open_dataset(name, root, split_of(preset, name, None))


def toy(background: bool = False) -> Dataset:
    """Three categories, one image of eight pixels with every label and void."""
    truth = np.array([[0, 1, 2, 3], [1, 3, VOID, 0]], np.uint16)
    categories = (Category("cat", ("kitty",)), Category("grass"), Category("sky"))
    sample = Sample("one", Path("one.png"), truth.copy)
    return Dataset("toy", "all", categories, (sample,), background, np.arange(12, dtype=np.uint8).reshape(4, 3))


@pytest.mark.parametrize("name", MAKERS)
def test_the_papers_switches(name: str, tmp_path: Path) -> None:
    dataset = opened(name, tmp_path)
    found = paper(dataset, "vlm of theirs")
    assert dataset.split == SPLITS[name]
    assert len(dataset.categories) + 1 == LABELS[name]
    assert found.nouns.suffix == (("background",) if name in SUFFIX else ())
    assert found.nouns.complete == (name in COMPLETE)
    assert found.nouns.true_only
    assert not found.nouns.keep_parts
    assert (found.void, found.absent, found.counted, found.threshold) == (
        "background",
        "count 0",
        "classes and background",
        "oracle",
    )
    assert found.counting.background
    assert found.counting.absent
    assert found.merged == (((15, 3), (16, 4)) if name == "coco-stuff-27" else ())
    assert SWEEP == (-0.4, -0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3, 0.4)


RULES: dict[str, tuple[list[tuple[int, int]], Callable[[int], int]]] = {
    # Values in the files, and what the released code makes of each.
    "voc": (VOC_PAIRS, lambda value: 0 if value > 20 else value),
    "context": (CONTEXT_PAIRS, lambda value: value),
    "cityscapes": (
        CITYSCAPES_PAIRS,
        lambda value: CITYSCAPES_IDS.index(value) + 1 if value in CITYSCAPES_IDS else 0,
    ),
    "ade20k": (ADE20K_PAIRS, lambda value: 0 if value > 150 else value),
}
TRUTHS = {
    "voc": "VOCdevkit/VOC2012/SegmentationClass/{}.png",
    "context": "VOCdevkit/VOC2010/SegmentationClassContext/{}.png",
    "cityscapes": "gtFine/val/{0[0]}/{0[1]}_gtFine_labelIds.png",
    "ade20k": "ADEChallengeData2016/annotations/validation/{}.png",
}


@pytest.mark.parametrize("name", RULES)
def test_the_papers_label_maps_from_the_files_values(name: str, tmp_path: Path) -> None:
    dataset = opened(name, tmp_path)
    pairs, rule = RULES[name]
    protocol = paper(dataset, "oracle")
    seen = set()
    for sample in dataset.samples:
        key = (sample.id.split("_")[0], sample.id) if name == "cityscapes" else sample.id
        values = np.asarray(Image.open(tmp_path / TRUTHS[name].format(key)))
        expected = [[rule(int(value)) for value in row] for row in values]
        assert protocol.truth(sample.truth()).tolist() == expected
        seen |= set(values.ravel().tolist())
    assert seen == {value for value, _ in pairs}


def test_the_papers_coarse_stuff_merges_food_and_furniture(tmp_path: Path) -> None:
    dataset = opened("coco-stuff-27", tmp_path)
    protocol = paper(dataset, "oracle")
    names = [one.name for one in dataset.categories]
    assert (names[14], names[2], names[15], names[3]) == ("food-stuff", "food", "furniture-stuff", "furniture")
    for sample in dataset.samples:
        expected = sample.truth()
        for before, after in ((15, 3), (16, 4), (VOID, 0)):
            expected[expected == before] = after
        assert protocol.truth(sample.truth()).tolist() == expected.tolist()
    # A caption's word for what is merged away names what it counts as.
    kept = protocol.categories(dataset.categories)
    assert len(kept) == 25
    assert "food-stuff" in next(one for one in kept if one.name == "food").synonyms
    asked = captioned("food-stuff, person", kept, protocol.nouns, ("food",))
    assert list(asked.classes) == ["food"]
    assert honest(dataset, "oracle").categories(dataset.categories) == dataset.categories


def test_the_papers_context_of_459_is_that_of_59(tmp_path: Path) -> None:
    truths = make_context_mat(tmp_path)
    dataset = open_dataset("context", tmp_path, split_of("paper", "context", None))
    protocol = paper(dataset, "oracle")
    for sample in dataset.samples:
        assert protocol.truth(sample.truth()).tolist() == truths["train"][sample.id].tolist()


def test_the_paper_knows_no_other_data_set() -> None:
    with pytest.raises(GocaError, match='no "paper" protocol for "scenes"'):
        paper(open_dataset("scenes", None), "oracle")
    with pytest.raises(GocaError, match="honest, paper"):
        split_of("mine", "voc", None)
    assert split_of("paper", "voc", "val") == "val"
    assert split_of("honest", "voc", None) is None
    assert (*PRESETS,) == PRESET_NAMES


@pytest.mark.parametrize("background", [False, True])
def test_honest(background: bool) -> None:
    found = honest(toy(background), "someone")
    assert (found.void, found.absent, found.tags) == ("ignored", "left out", "someone")
    assert found.threshold == ("fixed" if background else "none")
    assert found.counting.background == background
    assert not found.counting.absent
    assert not found.nouns.complete
    assert not found.nouns.true_only
    truth = toy().samples[0].truth()
    assert np.array_equal(found.truth(truth), truth)


# ---- switches


@pytest.mark.parametrize(("switch", "value"), [(name, value) for name in SWITCHES for value in SWITCHES[name]])
def test_every_switch_changes_what_it_names_or_nothing(switch: str, value: str) -> None:
    before = [honest(toy(), "oracle"), replace(honest(toy(), "oracle"), nouns=paper(_voc(), "").nouns)]
    found = [changed(one, [f"{switch}={value}"]) for one in before]
    assert found[0].name == f"honest, but {switch}={value}"
    # Whatever it was before, it is the same now.
    field = {"void": "void", "absent": "absent", "counted": "counted", "threshold": "threshold"}.get(switch)
    one, other = ((asdict(protocol) if field else asdict(protocol.nouns)) for protocol in found)
    key = field or switch.replace("-", "_").replace("odd_", "")
    assert one[key] == other[key]
    untouched = [{**asdict(protocol), "name": "", "nouns": "", field: ""} for protocol in (before[0], found[0])]
    assert untouched[0] == untouched[1]


def _voc() -> Dataset:
    return replace(toy(True), name="voc")


def test_switches_each_have_two_sides() -> None:
    for name, values in SWITCHES.items():
        found = {str(changed(honest(toy(), ""), [f"{name}={value}"]).to_json() | {"name": ""}) for value in values}
        assert len(found) == len(values) >= 2


@pytest.mark.parametrize("wrong", ["void", "void=perhaps", "colour=red", ""])
def test_odd_switches_are_refused(wrong: str) -> None:
    with pytest.raises(GocaError, match="choose from"):
        changed(honest(toy(), "oracle"), [wrong])


def test_void_as_background() -> None:
    protocol = changed(honest(toy(), "oracle"), ["void=background"])
    assert protocol.truth(toy().samples[0].truth()).tolist() == [[0, 1, 2, 3], [1, 3, 0, 0]]


def test_every_line_of_a_protocol_is_said() -> None:
    for preset in PRESETS.values():
        protocol: Protocol = preset(_voc(), "oracle")
        said = "\n".join(protocol.lines())
        assert said.startswith(f"protocol: {protocol.name}\n")
        assert all(f"\n{name.replace('_', ' ')}: " in said for name in asdict(protocol) if name != "name")
        assert all(name in said for name in asdict(protocol.nouns))


# ---- categories as background


def test_a_narrowed_data_set() -> None:
    found = narrowed(toy(), ["grass"])
    assert [one.name for one in found.categories] == ["cat", "sky"]
    assert found.samples[0].truth().tolist() == [[0, 1, 0, 2], [1, 2, VOID, 0]]
    assert found.background
    assert found.palette.tolist() == [[0, 1, 2], [3, 4, 5], [9, 10, 11]]
    assert narrowed(toy(), []) == toy() or narrowed(toy(), []).categories == toy().categories
    with pytest.raises(GocaError, match="choose from cat, grass, sky"):
        narrowed(toy(), ["dog"])
    with pytest.raises(GocaError, match="keep at least one"):
        narrowed(toy(), ["cat", "grass", "sky"])
