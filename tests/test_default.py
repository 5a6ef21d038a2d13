"""What a user gets who names no recipe: classes that are there, and a word where none is."""

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Outcome
from PIL import Image

from goca import GOCA_BALANCED, GOCA_OPEN, Segmenter
from goca.errors import GocaError
from goca.evaluation.config import EvaluationConfig
from goca.folders import Calibrating, ModelOptions, plan_outputs, segment_images
from goca.plan import Options
from goca.prototypes import FILE, Prototypes
from goca.request import SegmentationRequest
from goca.segmentation import Segmentation
from goca.self_tagging import SelfTagger
from goca.testing.tiny import BUILDERS

Make = Callable[..., Image.Image]
Run = Callable[..., Outcome]
CAT = Path(__file__).parent.parent / "examples" / "cat.png"
CLASSES = ["cat", "rocket", "bus"]


@pytest.fixture(scope="module")
def usual() -> Segmenter:
    return Segmenter.from_pretrained("bundled", device="cpu")


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return Image.open(CAT).convert("RGB")


def test_the_default_gives_pixels_to_what_is_there(usual: Segmenter, cat: Image.Image) -> None:
    assert usual.plan.recipe == ModelOptions().recipe == "goca-open"
    result = usual(cat, CLASSES)
    assert [name for name, presence in result.present.items() if presence.share] == ["cat"]
    assert "too little evidence for rocket, bus: no pixels" in result.plan.notes
    assert EvaluationConfig(dataset="scenes").recipe == "goca"


def test_a_pipeline_that_was_loaded_has_its_prototypes(usual: Segmenter, cat: Image.Image) -> None:
    wrapped = Segmenter.from_pipeline(usual.backbone.pipeline)
    assert (wrapped.plan.evidence, wrapped.plan.origin["evidence"]) == ("prototypes", "settings")
    assert np.array_equal(wrapped(cat, CLASSES).labels, usual(cat, CLASSES).labels)


@pytest.mark.parametrize("timestep", [50, (100, 50)])
def test_any_timestep_can_be_chosen(usual: Segmenter, cat: Image.Image, timestep: Any) -> None:
    """The prototypes, of another one, choose the classes; those are then asked for at the user's."""
    segmenter = Segmenter(usual.backbone, options=Options(timestep=timestep), prototypes=usual.prototypes)
    assert (segmenter.plan.evidence, segmenter.plan.origin["timestep"]) == ("prototypes", "user")
    result = segmenter(cat, CLASSES)
    assert result.evidence == usual(cat, CLASSES).evidence
    assert any("another timestep" in note for note in result.plan.notes)
    balanced = Segmenter(usual.backbone, GOCA_BALANCED, Options(timestep=timestep))
    alone = balanced(cat, ["cat"], result.plan.background_classes)
    assert np.array_equal(result.labels, alone.labels)
    assert usual.plan.timestep == (100,)
    of_recipe = Segmenter(usual.backbone, replace(GOCA_OPEN, timestep=50), prototypes=usual.prototypes)
    assert of_recipe.plan.timestep == (50,)


def test_background_nouns_without_prototypes_are_left_out(usual: Segmenter, cat: Image.Image) -> None:
    """As of a model that does not paint every noun of its list."""
    assert usual.prototypes is not None
    some = [noun for noun in usual.prototypes.nouns if noun not in ("sky", "water")]
    segmenter = Segmenter(usual.backbone, prototypes=usual.prototypes.among(some))
    assert not {"sky", "water"} & set(segmenter(cat, ["cat"]).plan.background_classes)
    insisting = replace(GOCA_OPEN, evidence="prototypes")
    with pytest.raises(GocaError, match=r'no prototype of "sky".*choose another recipe'):
        Segmenter(usual.backbone, insisting, prototypes=segmenter.prototypes)(cat, ["cat"], ["sky"])


def test_what_is_not_used_is_said(usual: Segmenter, cat: Image.Image) -> None:
    notes = usual(cat, ["cat"], caption="a cat at sea").plan.notes
    assert "prototypes label the pixels: the caption is not used" in notes
    every = usual(cat, ["cat", "rocket"], background="none")
    assert min(every.evidence) < usual.plan.floor
    assert "every pixel gets a class: all classes are kept, even below the floor" in every.plan.notes


def test_nouns_without_prototypes_are_looked_for_by_attention(usual: Segmenter, cat: Image.Image) -> None:
    """As of a user who learned twenty nouns and asks for another one."""
    assert usual.prototypes is not None
    prototypes = usual.prototypes.among([noun for noun in usual.prototypes.nouns if noun not in ("rocket", "sky")])
    segmenter = Segmenter(usual.backbone, prototypes=prototypes, batch=3)
    without = Segmenter(usual.backbone)
    classes = [["Cats", "bus"], ["cat", "rocket"], ["bus", "cat"]]
    requests = [SegmentationRequest(cat, names) for names in classes]
    known, unknown, again = (result for _, result in segmenter.stream(requests) if isinstance(result, Segmentation))
    assert known.plan.evidence == again.plan.evidence == "prototypes"
    note = "no prototype of rocket: attention is the evidence for all classes"
    assert note in unknown.plan.notes
    assert note not in (*known.plan.notes, *again.plan.notes)
    expected = without(cat, classes[1])
    assert np.array_equal(unknown.labels, expected.labels)
    assert unknown.evidence == expected.evidence
    assert replace(unknown.plan, notes=expected.plan.notes) == expected.plan
    assert segmenter.for_request(SegmentationRequest("", ["cat"], ["sky"])).plan.evidence == "attention"
    at_50 = Segmenter(usual.backbone, options=Options(timestep=50), prototypes=prototypes).for_request(requests[1])
    assert (at_50.plan.evidence, at_50.plan.timestep) == ("attention", (50,))
    assert SelfTagger(segmenter).shown(cat, classes[1]) == SelfTagger(without).shown(cat, classes[1])


def test_prototypes_of_other_weights_are_passed_over(tmp_path: Path) -> None:
    """A model with a LoRA is looked at by its attention, as one without prototypes."""
    pipeline = BUILDERS["sd15"]()
    pipeline.save_pretrained(tmp_path)
    backbone = Segmenter.from_pipeline(pipeline, size=64).backbone
    Prototypes(
        nouns=("cat",),
        channels=dict.fromkeys(backbone.blocks, 1),
        timestep=100,
        gaussians=(1,),
        weight=torch.zeros(1, len(backbone.blocks)),
        bias=torch.zeros(1),
        sample=torch.zeros(3),
        facts={},
    ).save(tmp_path / FILE)
    assert Segmenter.from_pretrained(tmp_path, device="cpu").plan.evidence == "attention"


def test_a_refused_request_ends_no_other_inference(image: Make) -> None:
    segmenter = Segmenter.from_pipeline(BUILDERS["sd15"](), size=64, floor=0.0)
    with pytest.raises(GocaError, match='"dog" is not in the caption'):
        segmenter(image(), ["cat", "dog"], caption="a cat on grass")
    with segmenter.inference():
        gc.collect()
        assert not torch.is_grad_enabled()


def test_a_size_of_less_than_a_patch(usual: Segmenter) -> None:
    assert Segmenter(usual.backbone, options=Options(size=8)).plan.size == 8
    with pytest.raises(GocaError, match=r"size 7 is too small: .* give 8 or more"):
        Segmenter(usual.backbone, options=Options(size=7))


# ---- goca segment


def test_no_class_is_there(goca: Run, tmp_path: Path) -> None:
    ran = goca("segment", CAT, "--classes", "rocket, bus", "--out", tmp_path / "a", "--json")
    assert ran.code == 0
    assert not any(entry["share"] for entry in json.loads(ran.out)["classes"])
    assert ran.err.splitlines() == [
        "goca: no class was found in the image, so all pixels are background: lower the floor; 0 keeps every class "
        "(--floor)"
    ]
    forced = goca("segment", CAT, "--classes", "rocket, bus", "--out", tmp_path / "b", "--json", "--floor", "0")
    assert (forced.code, forced.err) == (0, "")
    assert any(entry["share"] for entry in json.loads(forced.out)["classes"])
    cut = goca("segment", CAT, "--classes", "cat", "--background", "1", "--out", tmp_path / "e")
    assert (cut.code, cut.err) == (0, "")  # a threshold took the pixels, no floor
    both = tmp_path / "photos"
    both.mkdir()
    Image.open(CAT).save(both / "1.png")
    Image.open(CAT).save(both / "2.png")
    assert "in any of the 2 images" in goca("segment", both, "--classes", "rocket", "--out", tmp_path / "c").err
    assert "was found" not in goca("segment", both, "--classes", "rocket, cat", "--out", tmp_path / "d").err


def test_absent_classes_of_many_images_share_a_note(goca: Run, tmp_path: Path, cat: Image.Image) -> None:
    cat.save(tmp_path / "cat.png")
    cat.crop((0, 0, 128, 41)).save(tmp_path / "sky.png")
    ran = goca("segment", tmp_path, "--classes", "cat, rocket", "--out", tmp_path / "out")
    plans = [json.loads((tmp_path / "out" / f"{name}.json").read_text())["plan"] for name in ("cat", "sky")]
    assert "too little evidence for rocket: no pixels" in plans[0]["notes"]
    assert "too little evidence for cat, rocket: no pixels" in plans[1]["notes"]
    notes = [line for line in ran.out.splitlines() if "evidence" in line]
    assert notes == ["note: too little evidence for some classes: no pixels (2 of 2 images)"]


def test_results_of_another_default_are_not_resumed(goca: Run, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    Image.open(CAT).save(photos / "1.png")
    asked = ("segment", photos, "--classes", "cat", "--out", out, "--resume")
    assert goca(*asked, "--recipe", "goca").code == 0
    refused = goca(*asked)
    assert refused.code == 2
    assert "comes from a run with other recipe" in refused.err
    assert goca(*asked, "--recipe", "goca").code == 0


def test_the_empty_path_is_not_the_current_folder(goca: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.open(CAT).save(tmp_path / "1.png")
    monkeypatch.chdir(tmp_path)
    ran = goca("segment", "", "--classes", "cat")
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1
    assert '"" is not a path' in ran.err
    assert not (tmp_path / "goca-out").exists()
    assert goca("segment", ".", "--classes", "cat").code == 0


def test_what_a_first_look_costs_is_said_once(tmp_path: Path, image: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    BUILDERS["sd15"]().save_pretrained(tmp_path / "model")
    image().save(tmp_path / "1.png")

    def events(name: str) -> list[Any]:
        jobs = plan_outputs([tmp_path / "1.png"], tmp_path / name, ["json"])
        model = ModelOptions(name=str(tmp_path / "model"), device="cpu", settings={"size": 64})
        return list(segment_images(jobs, SegmentationRequest("", ["cat", "dog"]), model))

    first = events("a")
    assert first[0] == Calibrating(6)
    assert not any(isinstance(event, Calibrating) for event in (*first[1:], *events("b")))


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_every_way_to_ask_works_without_prototypes(name: str, image: Make) -> None:
    segmenter = Segmenter.from_pipeline(BUILDERS[name](), size=64, batch=2)
    ways: list[dict[str, Any]] = [
        {"classes": ["cat"]},
        {"classes": {"cat": ["kitten"], "grass": []}},
        {"classes": ["cat", "grass"], "background": "none"},
        {"classes": ["cat", "grass"], "caption": "a cat on grass"},
    ]
    for way in ways:
        result = segmenter(image(), **way)
        assert isinstance(result, Segmentation)
        assert result.plan.evidence == "attention"
        assert result.labels.max() <= len(way["classes"])
        assert way.get("background") != "none" or result.labels.all()
