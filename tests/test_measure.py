"""`goca evaluate` and `goca ablate`: every data set under both protocols, one object, one line for a mistake."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from commands import Outcome
from dataset_folders import (
    STUFF_27_PAIRS,
    make_ade20k,
    make_cityscapes,
    make_coco_object,
    make_coco_panoptic,
    make_coco_stuff,
    make_context_mat,
    make_context_png,
    make_folder,
    make_voc,
)

from goca import bundled
from goca.evaluation.ablate import AblationRow, to_markdown
from goca.segmenter import Segmenter
from goca.testing.tiny import UNET_BUILDERS

Goca = Callable[..., Outcome]

# (data set, who makes it, how many labels "paper" counts; None where it does not know the data set)
SETS: dict[str, tuple[str, Callable[[Path], Any], int | None]] = {
    "voc": ("voc", make_voc, 21),
    "context-png": ("context", make_context_png, 60),
    "context-mat": ("context", make_context_mat, 60),
    "coco-object": ("coco-object", make_coco_object, 81),
    "coco-stuff-27": ("coco-stuff-27", lambda root: make_coco_stuff(root, STUFF_27_PAIRS), 28),
    "coco-panoptic": ("coco-stuff-27", make_coco_panoptic, 28),
    "coco-stuff-171": ("coco-stuff-171", make_coco_stuff, 172),
    "cityscapes": ("cityscapes", make_cityscapes, 20),
    "ade20k": ("ade20k", make_ade20k, 151),
    "folder": ("folder", make_folder, None),
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline that knows every word, and no image."""
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    UNET_BUILDERS["sd15"]().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "made", [pytest.param(made, marks=[pytest.mark.slow] * (made in ("cityscapes", "ade20k"))) for made in SETS]
)
def test_every_data_set_under_both_protocols(goca: Goca, made: str, tiny: Path, tmp_path: Path) -> None:
    name, make, labels = SETS[made]
    make(tmp_path)
    # Cityscapes has an image for each of its cities.
    ask = ("evaluate", name, "--root", tmp_path, "--model", tiny, "--size", "64", "--tagger", "oracle", "--limit", "3")
    honest = goca(*ask, "--json")
    assert (honest.code, honest.err) == (0, "")
    told = json.loads(honest.out)
    assert told["protocol"]["name"] == "honest"
    assert told["protocol"]["threshold"] == told["threshold"]
    assert told["left_out_images"] == []
    assert told["labels"] == len(told["per_class"]) >= 2
    assert ("sweep" in told) == ("background" in told["per_class"]) == (told["threshold"] == "fixed")
    assert told["miou"] == pytest.approx(sum(told["per_class"].values()) / told["labels"])
    paper = goca(*ask, "--protocol", "paper", "--json")
    if labels is None:
        assert 'no "paper" protocol' in paper.mistake()
        return
    assert (paper.code, paper.err) == (0, "")
    told = json.loads(paper.out)
    assert told["labels"] == labels == len(told["per_class"])
    assert told["miou"] == told["oracle_threshold"]["miou"] == max(one["miou"] for one in told["sweep"])
    assert told["miou"] == pytest.approx(sum(told["per_class"].values()) / labels)
    assert float(told["threshold"]) == told["oracle_threshold"]["threshold"]


def test_evaluate_prints_one_object(goca: Goca) -> None:
    found = goca("evaluate", "scenes", "--limit", "3", "--json")
    assert (found.code, found.err) == (0, "")
    told = json.loads(found.out)
    assert 0 < told["miou"] <= 1
    assert 0 < told["pixel_accuracy"] <= 1
    assert 0 < told["frequency_weighted_iou"] <= 1
    assert told["ci95"][0] <= told["miou"] <= told["ci95"][1]
    assert told["protocol"]["images"] == told["images"] == 3
    scenes = list(islice(bundled.scenes(), 3))
    assert sum(size["regions"] for size in told["by_size"]) == sum(len(set(scene.labels.flat)) for scene in scenes)
    assert told["protocol"]["tags"] == "oracle"
    assert told["plan"]["recipe"] == "goca"


@pytest.mark.slow
def test_evaluate_prints_all_of_the_protocol(goca: Goca, tmp_path: Path) -> None:
    ask = ("evaluate", "scenes", "--limit", "2", "--as-background", "sky, grass", "--set", "void=background")
    found = goca(*ask, "--set", "absent=zero", "--out", tmp_path / "run")
    assert (found.code, found.err) == (0, "")
    for line in (
        "protocol: honest, but void=background, absent=zero",
        "tags: oracle",
        "void: background",
        "as background: sky, grass",
        "absent: count 0",
        "counted: classes and background",
        "threshold: fixed",
        f"written to {tmp_path / 'run'}",
    ):
        assert f"\n{line}\n" in found.out
    assert "oracle threshold" in found.out
    assert "30 to 100 %" in found.out
    assert "31 labels, 2 images" in found.out
    again = goca(*ask, "--set", "absent=zero", "--out", tmp_path / "run")
    assert (again.code, again.out) == (0, found.out)
    other = goca(*ask, "--out", tmp_path / "run")
    assert "run that differs in protocol.name" in other.mistake()


def test_an_image_that_is_left_out_is_named(goca: Goca, tmp_path: Path) -> None:
    # What was said of the second scene is no list of the words that the bundled pipeline knows.
    (tmp_path / "said.json").write_text(
        json.dumps({"000": "water, fish", "001": "cat, snow, xylophone", "002": "cat, sky"})
    )
    ask = ("evaluate", "scenes", "--limit", "3", "--tagger", f"captions:{tmp_path / 'said.json'}")
    found = goca(*ask, "--json")
    assert found.code == 1
    assert "left out: 001: " in found.err
    assert "xylophone" in found.err
    assert found.err.splitlines()[-1] == "goca: 1 of 3 images were left out"
    told = json.loads(found.out)
    assert told["images"] == 2
    assert [one["id"] for one in told["left_out_images"]] == ["001"]
    assert told["protocol"]["tags"].startswith("captions said.json ")


@pytest.mark.slow
def test_ablate_prints_every_part(goca: Goca) -> None:
    found = goca("ablate", "scenes", "--limit", "2", "--json")
    assert (found.code, found.err) == (0, "")
    told = json.loads(found.out)
    assert told["rows"][0]["gain"] == 0
    assert {"heads", "layers", "rescaling"} <= {row["name"] for row in told["rows"]}
    assert told["protocol"]["images"] == 2


def test_an_ablation_as_a_table_for_a_document() -> None:
    rows = [
        AblationRow("none", 0.5, (0.25, 0.75), 0.875, 0.0, (0.0, 0.0), (44.3, 51.1)),
        AblationRow("heads", 0.625, (0.5, 0.75), 0.75, 0.125, (-0.0625, 0.25), None),
    ]
    assert to_markdown(rows).splitlines()[2:] == [
        "| none | 50.0% [25.0%, 75.0%] | 87.5% |  | 44.3 / 51.1 |",
        "| heads | 62.5% [50.0%, 75.0%] | 75.0% | +12.5% [-6.2%, 25.0%] |  |",
    ]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("imagenet", "--tagger", "oracle"), 'no data set "imagenet"'),
        (("imagenet",), 'no data set "imagenet"'),
        (("voc",), "--tagger"),
        (("voc", "--tagger", "oracle"), "--root"),
        (("scenes", "--recipe", "best"), 'no recipe "best"'),
        (("scenes", "--captions", "poems"), "nouns, sentences"),
        (("scenes", "--protocol", "mine"), "honest, paper"),
        (("scenes", "--protocol", "paper"), 'no "paper" protocol for "scenes"'),
        (("scenes", "--set", "void=perhaps"), "ignored, background"),
        (("scenes", "--as-background", "unicorn"), 'no category "unicorn"'),
        (("scenes", "--tagger", "crystal-ball"), 'no tagger "crystal-ball"'),
        (("scenes", "--split", "test"), 'no split "test"'),
        (("scenes", "--timestep", "much"), '--timestep "much" is not valid'),
        (("scenes", "--model", "nowhere"), 'no model "nowhere"'),
        (("scenes", "--workers", "0"), "--workers"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(goca: Goca, wrong: tuple[str, ...], said: str) -> None:
    assert said in goca("evaluate", *wrong).mistake()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--protocol", "mine"), 'no protocol "mine"'),
        (("--protocol", "paper"), 'no "paper" protocol'),
        (("--set", "void=perhaps"), 'no value "perhaps" for void'),
        (("--set", "colour=red"), 'no switch "colour"'),
        (("--captions", "poems"), 'no caption style "poems"'),
        (("--as-background", "unicorn"), 'no category "unicorn"'),
        (("--split", "test"), 'no split "test"'),
        (("--tagger", "given:"), "there are no nouns"),
        (("--ray", "nowhere"), "is not a Ray address"),
        (("--out", "other"), "other/run.json is not from a run"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_loaded(
    goca: Goca, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: tuple[str, ...], said: str
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()
    Path("other/run.json").write_text("[]")
    monkeypatch.setattr(Segmenter, "from_pretrained", load)
    assert said in goca("evaluate", "scenes", *wrong).mistake()


def test_a_mended_caption_is_read_again(goca: Goca, tmp_path: Path) -> None:
    said = tmp_path / "said.json"
    said.write_text(json.dumps({"000": "water, fish", "001": "cat, snow, xylophone"}))
    # The captions' digest makes them another tagger's: what the folder kept of the old ones is not gone on with.
    ask = ("evaluate", "scenes", "--limit", "2", "--tagger", f"captions:{said}", "--json")
    assert goca(*ask, "--out", tmp_path / "old").code == 1
    said.write_text(json.dumps({"000": "water, fish", "001": "cat, sky"}))
    assert "differs in protocol.tags" in goca(*ask, "--out", tmp_path / "old").mistake()
    assert goca(*ask, "--out", tmp_path / "new").code == 0


def test_edges_reach_every_threshold(goca: Goca) -> None:
    ask = ("evaluate", "scenes", "--limit", "3", "--as-background", "sky, grass, water, sand, road, snow", "--json")
    plain, edges = (json.loads(goca(*ask, *more).out) for more in ((), ("--refine-edges",)))
    assert [one["miou"] for one in plain["sweep"]] != [one["miou"] for one in edges["sweep"]]
    assert plain["fixed_threshold"]["miou"] != edges["fixed_threshold"]["miou"]
