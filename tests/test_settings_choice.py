"""Settings chosen without labels: the choice by hand, a planted model, files of settings, and the command."""

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

from goca import GocaError, Segmenter, automatic_settings, choose_settings, settings_choice, write_settings
from goca.settings_choice import CRITERION, Measured, measure
from goca.testing.tiny import BUILDERS

NOUNS = ("cat", "grass", "sky")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer timesteps, and fewer cells, take milliseconds."""
    monkeypatch.setattr(settings_choice, "TIMESTEPS", (100,))
    monkeypatch.setattr(settings_choice, "CELLS", (8, 8))


def patches(seed: int) -> Image.Image:
    """Four patches of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST)


def test_the_greatest_figures_are_chosen() -> None:
    # At each timestep two references, then three blocks that refine.
    figures = torch.tensor([[0.5, 0.1, 0.9, 0.2, 0.3], [0.1, 0.2, 0.1, 0.5, 1.0]])
    measured = Measured((100, 200), ("a", "b"), ("x", "y", "z"), {"any": figures})
    first = {"timestep": 100, "reference": "a", "refine": ("x",)}
    assert measured.best("any", refining=1) == first  # 0.5 + 0.9 against 0.2 + 1.0
    second = {"timestep": 200, "reference": "b", "refine": ("y", "z")}
    figures[0, 0] = 0.3  # with two blocks, 0.3 + 0.6 against 0.2 + 0.75
    assert measured.best("any", refining=2) == second


@pytest.mark.parametrize(
    ("criterion", "planted"),
    [("prediction", {0}), ("prediction", {1}), ("prediction", {2}), (CRITERION, {0, 1}), (CRITERION, {1, 3})],
)
def test_planted_blocks_refine(criterion: str, planted: set[int]) -> None:
    """They look at like pixels, the other blocks at themselves, or at all alike; only together can they agree."""
    pipe = BUILDERS["pixart_alpha"]()
    for index, block in enumerate(pipe.transformer.transformer_blocks):
        sharpness = 4.0 if index in planted else (0.0 if index % 2 else 400.0)
        for layer in (block.attn1.to_q, block.attn1.to_k):
            torch.nn.init.zeros_(layer.bias)
            layer.weight.data = torch.eye(len(layer.weight)) * sharpness
    segmenter = Segmenter.from_pipeline(pipe, "goca")
    measured = measure(segmenter, [patches(seed) for seed in range(4)], NOUNS, [criterion])
    chosen = measured.best(criterion, refining=len(planted))["refine"]
    assert set(chosen) == {f"transformer_blocks.{index}" for index in planted}


@pytest.mark.parametrize("name", ["sdxl", "sana", "flux", "sd3"])
def test_every_kind_of_attention_gives_settings_that_the_model_takes(name: str, image: Callable[..., Any]) -> None:
    segmenter = Segmenter.from_pipeline(BUILDERS[name](), "goca", size=64)
    images = [image(64, 64, 0), image(96, 64, 1), image(64, 64, 2)]
    chosen = choose_settings(segmenter, images, NOUNS)
    assert choose_settings(segmenter, images[::-1], NOUNS) == chosen
    segmenter = Segmenter.from_pipeline(segmenter.backbone.pipeline, "goca", size=64, settings=chosen)
    assert segmenter(images[0], NOUNS).labels.any()
    assert f'criterion "{CRITERION}" on 3 images' in segmenter.plan.settings


def test_a_file_of_settings_is_read_as_it_was_written(sd15: Any, tmp_path: Path) -> None:
    own = Segmenter.from_pipeline(sd15, "goca")
    blocks = own.backbone.blocks
    chosen = replace(
        own.backbone.settings, timestep=77, reference=blocks[1], refine=(blocks[0], blocks[2]), order=3, origin="a test"
    )
    path = write_settings(chosen, tmp_path / "settings.json")
    for given in (path, str(path), json.loads(path.read_text()), chosen):
        segmenter = Segmenter.from_pipeline(sd15, "goca", settings=given)
        assert segmenter.backbone.settings == chosen
        plan = segmenter.plan
        assert (plan.timestep, plan.reference, plan.refine, plan.order) == ((77,), blocks[1], (blocks[0], blocks[2]), 3)
        assert plan.settings == "a test"
        assert plan.origin["reference"] == "settings"
    assert own.plan != plan


def test_settings_may_say_how_fine_the_common_grid_is(sd15: Any, image: Callable[..., Any]) -> None:
    segmenter = Segmenter.from_pipeline(sd15, "goca", size=64, settings={"grid": 23})
    assert (segmenter.plan.grid, segmenter.plan.settings) == (23, "given by the user")
    assert segmenter(image(64, 64), NOUNS).scores.grid.shape == (len(NOUNS), 23, 23)


CONTENT = {"timestep": 77, "reference": "a", "refine": ["b"], "order": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (CONTENT, "lacks"),
        ({**CONTENT, "timestep": 1000}, "1000 is not a whole number from 0 to 999"),
        ({**CONTENT, "order": "two"}, "'two' is not a whole number"),
        ({**CONTENT, "refine": "b"}, "\"refine\": 'b' is not a list"),
        ({"noise": 77}, '"noise": the entry is unknown'),
        ({}, "does not hold settings"),
        ([], "does not hold settings"),
    ],
)
def test_settings_that_do_not_fit_are_refused(sd15: Any, tmp_path: Path, content: Any, reason: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(content))
    with pytest.raises(GocaError, match=reason) as caught:
        Segmenter.from_pipeline(sd15, settings=path)
    assert caught.value.hint == "settings"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "reason"), [("auto", "call automatic_settings"), ("none.json", "no such file: none.json")]
)
def test_settings_that_are_not_there_are_refused(sd15: Any, given: str, reason: str) -> None:
    with pytest.raises(GocaError, match=reason):
        Segmenter.from_pipeline(sd15, settings=given)


def test_one_image_is_too_few(sd15: Any) -> None:
    with pytest.raises(GocaError, match="two or more") as caught:
        choose_settings(Segmenter.from_pipeline(sd15), [patches(0)])
    assert caught.value.hint == "images"


def test_a_command_chooses_and_another_uses_what_it_wrote(
    goca: Callable[..., Outcome], image: Callable[..., Any], tmp_path: Path
) -> None:
    names = [tmp_path / f"{seed}.png" for seed in range(2)]
    for seed, path in enumerate(names):
        image(64, 64, seed).save(path)
    written = tmp_path / "settings.json"
    chosen = goca("settings", *names, "--nouns", "cat, grass", "--out", written, "--json")
    assert chosen.code == 0, chosen.err
    content = json.loads(written.read_text())
    assert json.loads(chosen.out) == {"file": str(written), **content}
    using = ("segment", names[0], "--classes", "cat, grass", "--recipe", "goca", "--out", tmp_path / "out")
    used = goca(*using, "--settings", written, "--json")
    assert used.code == 0, used.err
    plan = json.loads(used.out)["plan"]
    assert plan["settings"] == content["origin"]
    assert [plan[name] for name in ("reference", "refine", "order")] == [
        content[name] for name in ("reference", "refine", "order")
    ]
    # A run with other settings is another run.
    content["order"] += 1
    written.write_text(json.dumps(content))
    resumed = goca(*using, "--settings", written, "--resume")
    assert resumed.code == 2
    assert "other order" in resumed.err
    written.write_text("[]")
    refused = goca(*using, "--settings", written)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.count("\n") == 1
    assert "--settings" in refused.err


def test_auto_is_what_was_chosen_once_for_these_weights(sd15: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_choice, "painted", lambda model, nouns: [patches(0), patches(1)])
    chosen = automatic_settings(Segmenter.from_pipeline(sd15))
    assert CRITERION in chosen.origin
    monkeypatch.delattr(settings_choice, "painted")
    assert automatic_settings(Segmenter.from_pipeline(sd15)) == chosen
    assert Segmenter.from_pipeline(sd15, settings="auto").backbone.settings == chosen
    with pytest.raises(GocaError, match="in float16"):
        Segmenter.from_pipeline(BUILDERS["sd15"]().to(torch.float16), settings="auto")
    next(sd15.unet.parameters()).data.add_(1)
    with pytest.raises(GocaError, match="no settings have been chosen"):
        Segmenter.from_pipeline(sd15, settings="auto")


@pytest.mark.parametrize("content", ["broken", json.dumps({"reference": "another.block"})])
def test_auto_is_chosen_again_where_what_was_kept_does_not_fit(
    sd15: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(settings_choice, "painted", lambda model, nouns: [patches(0), patches(1)])
    next(sd15.unet.parameters()).data.mul_(0.5)
    before = set(cache.rglob("*.json"))
    chosen = automatic_settings(Segmenter.from_pipeline(sd15))
    (kept,) = set(cache.rglob("*.json")) - before
    kept.write_text(content)
    with pytest.raises(GocaError, match="no settings have been chosen"):
        Segmenter.from_pipeline(sd15, settings="auto")
    assert automatic_settings(Segmenter.from_pipeline(sd15)) == chosen
    kept.unlink()


def test_auto_does_not_depend_on_the_size_of_who_chooses_first(sd15: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def painted(model: Any, nouns: Any) -> list[Image.Image]:
        sizes.append(model.plan.size)
        return [patches(0), patches(1)]

    monkeypatch.setattr(settings_choice, "painted", painted)
    next(sd15.unet.parameters()).data.mul_(0.25)
    segmenter = Segmenter.from_pipeline(sd15, size=32)
    automatic_settings(segmenter)
    assert sizes == [segmenter.backbone.settings.size]


def test_a_command_chooses_before_its_first_run(
    goca: Callable[..., Outcome], image: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_choice, "painted", lambda model, nouns: [patches(0), patches(1)])
    image(64, 64, 0).save(tmp_path / "a.png")
    using = ("segment", tmp_path / "a.png", "--classes", "cat, grass", "--recipe", "goca", "--out", tmp_path / "out")
    plan = json.loads(goca(*using, "--settings", "auto", "--json").out)["plan"]
    assert "chosen without labels" in plan["settings"]
    monkeypatch.delattr(settings_choice, "painted")
    resumed = goca(*using, "--settings", "auto", "--json", "--resume")
    assert resumed.code == 0
    assert "1 of them by an earlier run" in resumed.err
