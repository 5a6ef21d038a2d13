"""What a model's folder states of itself: read, honoured however the model is loaded, and refused entry by entry."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from goca import GocaError, Segmenter, bundled
from goca.diffusion.backbone import Backbone
from goca.diffusion.loading import load, quiet
from goca.diffusion.model_facts import facts_of
from goca.generation import Generated, GenerationOptions, generate, generate_batch
from goca.testing.tiny import BUILDERS
from goca.text.background_nouns import BACKGROUND_NOUNS

WORDS = {"things": ["cat", "dog"], "stuff": ["grass", "sky"]}
NAMES = ("sd15", "pixart_sigma", "flux_schnell")
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny pipelines that state nothing."""
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, folder in folders.items():
        with quiet():
            BUILDERS[name]().save_pretrained(folder)
    return folders


@pytest.fixture
def stating(saved: dict[str, Path], tmp_path: Path) -> Make:
    """A folder of a tiny pipeline that states these facts."""

    def make(name: str, **facts: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for entry in saved[name].iterdir():
            (folder / entry.name).symlink_to(entry)
        (folder / bundled.FACTS).write_text(json.dumps(facts))
        return folder

    return make


def loaded(folder: Path) -> Any:
    with quiet():
        return DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)


def by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Segmenter:
    monkeypatch.setattr(bundled, "names", lambda: ("bundled", "bundled-tiny"))
    monkeypatch.setattr(bundled, "pipeline", lambda name: folder)
    return Segmenter.from_pretrained("bundled-tiny")


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_honoured_however_the_model_is_loaded(
    name: str, saved: dict[str, Path], stating: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = Backbone(load(saved[name])).blocks
    first, last = blocks[0], blocks[-1]
    chosen = {"size": 96, "timestep": 222, "reference": last, "refine": [first, last], "order": 3, "grid": 24}
    chosen |= {"evidence_blocks": [last], "origin": "chosen by hand"}
    folder = stating(
        name, **WORDS, settings={**chosen, "options": {"max_sequence_length": 12} if name != "sd15" else {}}
    )
    segmenters = {
        "bundled-tiny": partial(by_name, monkeypatch=monkeypatch),
        str(folder): Segmenter.from_pretrained,
        str(folder) + "/": lambda folder: Segmenter.from_pipeline(loaded(folder)),
    }
    for called, make in segmenters.items():
        model = make(folder)
        plan = model.plan.to_json()
        assert {key: plan[key] for key in chosen if key not in ("origin", "timestep")} == {
            key: value for key, value in chosen.items() if key not in ("origin", "timestep")
        }
        assert (plan["timestep"], plan["settings"]) == ([222], "chosen by hand")
        assert plan["background_classes"] == WORDS["stuff"]
        if name != "sd15":
            assert model.backbone.session().prompt("cat").length == 12
        result = model(np.zeros((40, 56, 3), np.uint8), ["cats"])
        assert result.labels.shape == (40, 56)
        with pytest.raises(GocaError) as error:
            model(np.zeros((40, 56, 3), np.uint8), ["zebra"])
        assert str(error.value).startswith(f'{called.rstrip("/")} does not know "zebra"; it knows cat, dog, grass, sky')


@pytest.mark.parametrize("name", NAMES)
def test_words_alone_leave_the_settings_to_the_family(name: str, saved: dict[str, Path], stating: Make) -> None:
    without, stated = Backbone(load(saved[name])).settings, Backbone(load(stating(name, **WORDS))).settings
    assert (without.nouns, without.background_classes) == ((), BACKGROUND_NOUNS)
    assert (stated.nouns, stated.background_classes) == (("cat", "dog", "grass", "sky"), ("grass", "sky"))
    for key in ("size", "reference", "refine", "order", "timestep", "origin"):
        assert getattr(stated, key) == getattr(without, key)


def test_stuff_alone_is_a_background_and_no_vocabulary(stating: Make) -> None:
    settings = Backbone(load(stating("sd15", stuff=["rock"], settings={"order": 1}))).settings
    assert (settings.nouns, settings.background_classes) == ((), ("rock",))
    assert settings.order == 1
    assert bundled.FACTS in settings.origin


def generated(pipeline: Any, **options: Any) -> Image.Image:
    *_, last = generate(pipeline, GenerationOptions(prompt="a cat", steps=2, **options), [3])
    assert isinstance(last, Generated)
    return last.image


@pytest.mark.parametrize(
    ("name", "guidance"),
    [
        ("sd15", {"guidance_scale": 3.0, "negative_prompt": "sky"}),
        ("pixart_sigma", {"guidance_scale": 3.0, "use_resolution_binning": False}),
        ("flux_schnell", {"true_cfg_scale": 3.0, "negative_prompt": "sky"}),
    ],
)
def test_images_are_generated_as_the_folder_says(name: str, guidance: dict[str, Any], stating: Make) -> None:
    pipeline = load(stating(name, settings={"size": 32, "options": guidance}))
    pipeline.set_progress_bar_config(disable=True)
    plain = {"height": 32, "width": 32, "num_inference_steps": 2, "prompt": "a cat"}

    def wanted(**others: Any) -> bytes:
        generator = torch.Generator().manual_seed(3)
        return pipeline(**{**plain, **guidance, **others}, generator=generator).images[0].tobytes()

    assert generated(pipeline).tobytes() == wanted()
    assert generated(pipeline, size=64).tobytes() == wanted(height=64, width=64)
    (scale,) = (key for key in guidance if key.endswith("scale"))
    assert generated(pipeline, scale=5.0).tobytes() == wanted(**{scale: 5.0})
    (batch,) = generate_batch(pipeline, ["a cat"], [3], GenerationOptions(prompt="", steps=2))
    assert batch.tobytes() == wanted()


@pytest.mark.parametrize("name", NAMES)
def test_how_images_are_sampled_changes_no_segmentation(name: str, saved: dict[str, Path], stating: Make) -> None:
    scale = "true_cfg_scale" if name == "flux_schnell" else "guidance_scale"
    options = {scale: 7.0, "negative_prompt": "sky", "num_inference_steps": 50}
    image = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    folders = saved[name], stating(name, settings={"options": options})
    results = [Segmenter.from_pretrained(folder, size=64)(image, ["cat", "grass"]) for folder in folders]
    np.testing.assert_array_equal(*(result.scores.grid for result in results))


@pytest.mark.parametrize(
    ("facts", "key"),
    [
        ({"nouns": ["cat"]}, "nouns"),
        ({"things": "cat"}, "things"),
        ({"things": [1]}, "things"),
        ({"things": ["cat, dog"]}, "things"),
        ({"things": ["-"]}, "things"),
        ({"things": ["cat", "Cat"]}, "things"),
        ({"things": ["cat"], "stuff": ["cat"]}, "stuff"),
        ({"words": {"cat": "kitten"}}, "words"),
        ({"settings": []}, "settings"),
        ({"settings": {"side": 64}}, "settings.side"),
        ({"settings": {"size": "64"}}, "settings.size"),
        ({"settings": {"size": 0}}, "settings.size"),
        ({"settings": {"size": True}}, "settings.size"),
        ({"settings": {"timestep": 1000}}, "settings.timestep"),
        ({"settings": {"timestep": 0.5}}, "settings.timestep"),
        ({"settings": {"reference": None}}, "settings.reference"),
        ({"settings": {"reference": "a.block"}}, "settings.reference"),
        ({"settings": {"refine": "a.block"}}, "settings.refine"),
        ({"settings": {"refine": []}}, "settings.refine"),
        ({"settings": {"refine": ["a.block"]}}, "settings.refine"),
        ({"settings": {"evidence_blocks": ["a.block"]}}, "settings.evidence_blocks"),
        ({"settings": {"order": -1}}, "settings.order"),
        ({"settings": {"grid": 0}}, "settings.grid"),
        ({"settings": {"origin": ""}}, "settings.origin"),
        ({"settings": {"options": ["height"]}}, "settings.options"),
        ({"settings": {"options": {"height": 64}}}, "settings.options"),
        ({"settings": {"options": {"colour": "red"}}}, "settings.options"),
    ],
)
def test_what_cannot_be_used_is_named(facts: dict[str, Any], key: str, stating: Make) -> None:
    folder = stating("sd15", **facts)
    pipeline = load(folder)
    with pytest.raises(GocaError) as error:
        Backbone(pipeline)
    told = str(error.value)
    assert told.startswith(f'{folder / bundled.FACTS} has a wrong entry "{key}": ')
    assert "\n" not in told


@pytest.mark.parametrize(("text", "told"), [("{", "is not JSON"), ("[]", "is not a JSON object")])
def test_what_is_no_object_is_refused(text: str, told: str, stating: Make) -> None:
    folder = stating("sd15")
    (folder / bundled.FACTS).write_text(text)
    with pytest.raises(GocaError, match=told):
        facts_of(folder)


@pytest.mark.parametrize("name", ["bundled-flux", "Bundled", "bundled-", "nonsense"])
def test_a_name_that_is_not_there_lists_those_that_are(name: str) -> None:
    with pytest.raises(GocaError) as error:
        load(name)
    assert str(error.value).startswith(f'no model "{name}": give {", ".join(bundled.names())}, a diffusers folder')


def test_every_bundled_model_is_listed(goca: Any) -> None:
    assert bundled.DEFAULT in bundled.names()
    listed = {model["name"]: model for model in json.loads(goca("models", "--json").out)["models"]}
    overview = [line.split() for line in goca("models").out.splitlines()]
    for name in bundled.names():
        assert listed[name]["nouns"] == list(bundled.vocabulary(name))
        assert any(name in words for words in overview)


def test_a_folder_s_words_are_checked_before_anything_is_loaded(goca: Any, stating: Make, tmp_path: Path) -> None:
    folder, image = stating("sd15", **WORDS), tmp_path / "image.png"
    Image.new("RGB", (32, 32)).save(image)
    for child in folder.iterdir():
        if child.is_dir():
            child.unlink()
    out = ("--out", tmp_path / "out")
    for command in (("segment", image, "--classes", "zebra"), ("prototypes", "--classes", "zebra, cat", *out)):
        done = goca(*command, "--model", folder)
        assert done.code == 2
        assert f'{folder} does not know "zebra"' in done.err
