"""`goca inspect`: what it writes and prints, and what it refuses before a model is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Outcome
from PIL import Image

from goca import Segmenter

Goca = Callable[..., Outcome]
ASK = ("--classes", "cat, grass", "--background-classes", "sky")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Callable[..., Image.Image]) -> Path:
    monkeypatch.chdir(tmp_path)
    image(160, 96).save("photo.jpg")
    Path("broken.png").write_bytes(b"no image")
    Path("file").write_text("")
    return tmp_path


@pytest.fixture
def loaded(bundled: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(model: str, recipe: str, **options: Any) -> Segmenter:
        return Segmenter.from_pipeline(bundled.backbone.pipeline, recipe=recipe)

    monkeypatch.setattr(Segmenter, "from_pretrained", from_pretrained)


def test_a_sheet_and_its_numbers(goca: Goca, loaded: None) -> None:
    told = goca("inspect", "photo.jpg", *ASK, "--at", "120,50", "--at", "0,0", "--keep", "heads")
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines()[-2:] == ["goca-out/photo.inspect.png", "goca-out/photo.inspect.json"]
    assert "note: every class is in the prompt" in told.out
    assert "pixel 120,50: " in told.out
    facts = json.loads(Path("goca-out/photo.inspect.json").read_text())
    assert (facts["image"], facts["height"], facts["width"]) == ("photo.jpg", 96, 160)
    assert [entry["name"] for entry in facts["classes"]] == ["cat", "grass"]
    assert [entry["name"] for entry in facts["background_classes"]] == ["sky"]
    tokens = {token["index"]: token for token in facts["tokens"]}
    assert [tokens[entry["tokens"][0]]["text"] for entry in facts["classes"]] == ["cat", "grass"]
    assert sum(token["attention"] for token in tokens.values()) == pytest.approx(1, abs=1e-4)
    special = sum(token["attention"] for token in tokens.values() if token["special"])
    assert sum(sink["attention"] for sink in facts["sinks"]) == pytest.approx(special)
    assert sum(layer["weight"] for layer in facts["layers"]) == pytest.approx(1)
    assert all(sum(layer["heads"]) == pytest.approx(1, abs=1e-4) for layer in facts["layers"])
    assert [(pixel["x"], pixel["y"]) for pixel in facts["pixels"]] == [(120, 50), (0, 0)]
    assert all(sum(word["share"] for word in pixel["words"]) == pytest.approx(1) for pixel in facts["pixels"])
    assert facts["plan"]["versions"]["goca"]
    with Image.open("goca-out/photo.inspect.png") as sheet:
        with_heads = sheet.height
    told = goca("inspect", "photo.jpg", *ASK, "--json", "--recipe", "goca", "--out", "other")
    assert (told.code, told.err) == (0, "")
    printed = json.loads(told.out)
    assert printed["files"] == ["other/photo.inspect.png", "other/photo.inspect.json"]
    assert printed["plan"]["notes"] == []  # this recipe leaves nothing out
    with Image.open("other/photo.inspect.png") as sheet:
        assert sheet.height < with_heads


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("photo.jpg",), "no classes"),
        (("missing.jpg", *ASK), "no image or folder missing.jpg"),
        ((".", *ASK), ". is a folder: name an image"),
        (("broken.png", *ASK), "broken.png is not an image"),
        (
            ("photo.jpg", *ASK, "--at", "160,0"),
            "there is no pixel (160, 0): x goes from 0 to 159, y from 0 to 95 (--at)",
        ),
        (("photo.jpg", *ASK, "--at", "-1,0"), '"-1,0" is not a pixel'),
        (("photo.jpg", *ASK, "--at", "3"), '"3" is not a pixel'),
        (("photo.jpg", *ASK, "--keep", "steps"), "choose from heads"),
        (("photo.jpg", "--classes", "unicorn"), '"unicorn"'),
        (("photo.jpg", *ASK, "--timestep", "100,50"), "give one timestep (--timestep)"),
        (("photo.jpg", *ASK, "--recipe", "best"), 'no recipe "best"'),
        (("photo.jpg", *ASK, "--out", "file"), "cannot write to file: it is not a folder; choose another"),
    ],
)
def test_what_is_refused_before_a_model_is_loaded(
    goca: Goca, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    def from_pretrained(*args: Any, **options: Any) -> Segmenter:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Segmenter, "from_pretrained", from_pretrained)
    assert told in goca("inspect", *arguments).mistake()
    assert {path.name for path in Path().iterdir()} == {"photo.jpg", "broken.png", "file"}


def test_a_sheet_is_not_taken_for_an_image(goca: Goca, loaded: None) -> None:
    assert goca("inspect", "photo.jpg", *ASK, "--recipe", "goca", "--out", ".").code == 0
    Path("broken.png").unlink()
    told = goca("segment", ".", *ASK, "--recipe", "goca", "--json", "--out", "masks")
    assert [json.loads(line)["image"] for line in told.out.splitlines()] == ["photo.jpg"], told.err
