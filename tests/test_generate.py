"""`goca generate`: images that come from their seeds alone, and what explains them."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import HeunDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline
from PIL import Image

from goca import GocaError, bundled, trace
from goca.cli import generate as generate_module
from goca.diffusion.loading import quiet
from goca.diffusion.model_facts import facts_of
from goca.generation import Generated, GenerationOptions, Progress, explain, generate
from goca.imaging import sheet
from goca.testing.tiny import BUILDERS
from goca.text.nouns import unknown_words
from goca.text.spelling import forms
from training import captions

PROMPT = "cat, bus, grass, sky"
FEW = ("--steps", "3")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_an_image_comes_from_its_seed_alone(goca: Any) -> None:
    plain = goca("generate", PROMPT, *FEW, "--count", "2", "--out", "plain")
    assert (plain.code, plain.err) == (0, "")
    assert plain.out.split() == ["plain/cat-bus-grass-sky-0.png", "plain/cat-bus-grass-sky-1.png"]
    assert sorted(path.name for path in Path("plain").iterdir()) == [
        "cat-bus-grass-sky-0.png",
        "cat-bus-grass-sky-1.png",
    ]
    explained = goca("generate", PROMPT, *FEW, "--seed", "1", "--explain", "--out", "explained")
    assert explained.code == 0
    alone = pixels("explained/cat-bus-grass-sky-1.png")
    np.testing.assert_array_equal(alone, pixels("plain/cat-bus-grass-sky-1.png"))
    assert not np.array_equal(alone, pixels("plain/cat-bus-grass-sky-0.png"))
    assert alone.shape == (64, 64, 3)


def test_what_explains_an_image(goca: Any) -> None:
    done = goca("generate", PROMPT, *FEW, "--count", "2", "--explain", "--json")
    assert (done.code, done.err) == (0, "")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["seed"] for line in lines] == [0, 1]
    assert [one["name"] for one in lines[0]["masks"]] == ["cat", "bus", "grass", "sky"]
    for line in lines:
        assert all(Path(file).is_file() for file in line["files"])
    stem = "goca-out/cat-bus-grass-sky-0"
    facts = json.loads(Path(f"{stem}.json").read_text())
    assert facts["prompt"] == PROMPT
    assert facts["request"] == {"prompt": PROMPT, "steps": 3, "scale": None, "size": None}
    assert len(facts["steps"]) == 3
    assert facts["left_out"] == []
    labels = pixels(f"{stem}.labels.png")
    assert labels.shape == (64, 64)
    assert set(np.unique(labels)) <= {0, 1, 2, 3, 4}
    assert pixels(f"{stem}.cat.heatmap.png").shape == (64, 64, 3)
    # Two rows, in each the image, its masks and four heat maps.
    height, width, _ = pixels("goca-out/cat-bus-grass-sky-0-1.sheet.png").shape
    assert width > 2.5 * height


def test_another_scale_makes_another_image(goca: Any) -> None:
    for scale in ("1", "9"):
        assert goca("generate", PROMPT, *FEW, "--scale", scale, "--out", scale).code == 0
    assert not np.array_equal(pixels("1/cat-bus-grass-sky-0.png"), pixels("9/cat-bus-grass-sky-0.png"))


def test_a_guided_image_beside_the_plain_one(goca: Any) -> None:
    assert goca("generate", PROMPT, *FEW, "--out", "plain").code == 0
    compared = goca("generate", PROMPT, *FEW, "--guide", "goca", "--compare", "--json")
    assert (compared.code, compared.err) == (0, "")
    told = json.loads(compared.out)
    assert told["effective_scale"] > 0
    stem = "goca-out/cat-bus-grass-sky-0"
    endings = (".png", ".plain.png", ".regions.png", ".sheet.png")
    assert told["files"] == [f"{stem}{ending}" for ending in endings]
    np.testing.assert_array_equal(pixels(f"{stem}.plain.png"), pixels("plain/cat-bus-grass-sky-0.png"))
    assert not np.array_equal(pixels(f"{stem}.png"), pixels(f"{stem}.plain.png"))
    # One row: plain, guided, regions, rates.
    height, width, _ = pixels(f"{stem}.sheet.png").shape
    assert 3 * height < width < 4 * height


def test_guidance_at_rate_1_is_none(goca: Any) -> None:
    assert goca("generate", PROMPT, *FEW, "--out", "plain").code == 0
    told = goca("generate", PROMPT, *FEW, "--guide", "1", "--explain")
    assert told.code == 0
    name = "cat-bus-grass-sky-0.png"
    np.testing.assert_array_equal(pixels(f"goca-out/{name}"), pixels(f"plain/{name}"))
    assert re.search(r"guidance is as strong as plain guidance at scale 7\.50\n", told.out)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("",), "prompt is empty"),
        ((PROMPT, "--model", "nowhere"), 'no model "nowhere"'),
        ((PROMPT, "--recipe", "magic"), 'no recipe "magic"'),
        ((PROMPT, "--explain", "--recipe", "fttm"), "lacks"),
        ((PROMPT, "--size", "63"), "the pipeline does not accept this: .*divisible by 8"),
        ((PROMPT, "--out", "file/below"), "cannot write to file/below"),
        ((PROMPT, "--steps", "0"), "steps"),
        ((PROMPT, "--scale", "nan"), "scale nan"),
        ((PROMPT, "--scale", "-1"), "scale -1"),
        ((PROMPT, "--compare"), "--compare needs --guide"),
        ((PROMPT, "--every", "2"), "--every 2 needs --guide"),
        ((PROMPT, "--guide", "magic"), 'no guidance "magic": give.*--guide'),
        ((PROMPT, "--guide", "0"), 'no guidance "0": give.*--guide'),
        ((PROMPT, "--guide", "goca-open", "--steps", "1"), "goca-open.*choose another"),
        ((PROMPT, "--guide", "goca", "--scale", "1", "--steps", "1"), "guidance_scale"),
    ],
)
def test_a_mistake_takes_one_line(arguments: tuple[str, ...], told: str, goca: Any) -> None:
    Path("file").write_text("")
    done = goca("generate", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert re.search(told, done.err), done.err
    assert not Path("goca-out").exists() or not list(Path("goca-out").iterdir())


def test_an_image_is_kept_where_nothing_explains_it(goca: Any) -> None:
    done = goca("generate", "the, and, a", "--explain", *FEW)
    assert done.code == 2
    assert re.fullmatch(r'goca: "the, and, a" has no word to explain: name some things\n', done.err)
    assert [path.name for path in Path("goca-out").iterdir()] == ["the-and-a-0.png"]


def test_odd_names_have_files_of_their_own(goca: Any) -> None:
    prompt = "Traffic light, traffic-light, cat!, \N{GRINNING FACE}, ca/t, (), dog"
    done = goca("generate", prompt, "--steps", "1", "--explain", "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    names = [one["name"] for one in told["masks"]]
    assert names == ["traffic-light", "cat", "ca/t", "dog"]
    assert sum(file.endswith(".heatmap.png") for file in told["files"]) == len(names)
    assert all(Path(file).is_file() for file in told["files"])


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("zebra", ["zebra"]),
        ("A zebra and three cats on the Grass, zebras", ["zebra", "zebras"]),
        ("traffic-light, cat", ["traffic", "light"]),
        ("caf\u00e9, cat", ["caf\u00e9"]),
        ("2 cats and a kitten with puppies behind the houses, under clouds", []),
        ("a picture of two butterflies in front of the aircraft", []),
        ("the, and, a", []),
    ],
)
def test_words_that_the_bundled_model_does_not_know_are_named(prompt: str, unknown: list[str], goca: Any) -> None:
    done = goca("generate", prompt, "--steps", "1")
    assert done.code == 0
    assert len(list(Path("goca-out").glob("*.png"))) == 1
    if unknown:
        names = ", ".join(f'"{word}"' for word in unknown)
        assert done.line().startswith(f"goca: bundled does not know {names} and generates something else")
        assert done.line().endswith(f"it knows {', '.join(bundled.vocabulary())}\n")
    else:
        assert done.err == ""


def test_models_of_another_folder_may_know_any_word(goca: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(bundled.pipeline(), tmp_path / "copy")
    assert f"goca: {folder} does not know" in goca("generate", "zebra", "--steps", "1", "--model", folder).err
    (folder / bundled.FACTS).unlink()
    done = goca("generate", "zebra", "--steps", "1", "--model", folder)
    assert (done.code, done.err) == (0, "")


def test_the_words_are_those_that_the_bundled_models_were_trained_on() -> None:
    trained = {word for phrase in captions.words() for word in phrase.split() if word.isalpha()}
    for name in bundled.names():
        facts = facts_of(name)
        assert unknown_words(" ".join(trained), facts.nouns + facts.words) == ()
        assert {word for word in facts.nouns + facts.words if not forms(word) & trained} == set()


def test_file_names_are_short_and_differ() -> None:
    assert generate_module.slugs(["c++", "c#", "c", "?"]) == {"c++": "c", "c#": "c-2", "c": "c-3", "?": "name"}
    long = ["\N{CJK UNIFIED IDEOGRAPH-732B}" * 90 + end for end in ("", "x")]
    cut = [generate_module.slug(text) for text in long]
    assert cut[0] != cut[1]
    assert all(len(one.encode()) < 100 for one in cut)


def images_of(pipeline: Any, prompt: str, seeds: Any = (0,), explain: bool = False, **options: Any) -> list[Generated]:
    with quiet():
        events = [*generate(pipeline, GenerationOptions(prompt=prompt, **options), seeds, explain)]
    return [event for event in events if isinstance(event, Generated)]


@pytest.mark.parametrize("name", ["flux", "flux_schnell", "qwen_image", "sd3", "pixart_sigma", "wan"])
def test_every_pipeline_heeds_the_scale(name: str) -> None:
    pipeline = BUILDERS[name]()
    images = [images_of(pipeline, "a cat", steps=2, scale=scale, size=64)[0].image for scale in (1.0, 9.0)]
    assert not np.array_equal(*images)


def test_a_progress_bar_of_the_user_s_own_is_given_back() -> None:
    pipeline = BUILDERS["sd15"]()
    pipeline.set_progress_bar_config(desc="mine")
    images_of(pipeline, "a cat", steps=1, size=32)
    assert pipeline._progress_bar_config == {"desc": "mine"}
    assert "step" not in vars(pipeline.scheduler)


def test_ctrl_c_leaves_whole_images(goca: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = sheet.contact_sheet

    def stop(rows: list[Any]) -> Image.Image:
        if len(rows) == 3:
            raise KeyboardInterrupt
        return draw(rows)

    monkeypatch.setattr(sheet, "contact_sheet", stop)
    done = goca("generate", PROMPT, *FEW, "--count", "5", "--explain")
    assert done.code == 130
    assert done.err == "goca: stopped; 2 of 5 images are done and complete\n"
    assert len(pixels("goca-out/cat-bus-grass-sky-0-4.sheet.png")) > 400


def test_a_long_run_has_several_sheets(goca: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "ROWS", 2)
    assert goca("generate", "cat, sky", "--steps", "1", "--count", "3", "--seed", "7", "--explain").code == 0
    sheets = sorted(path.name for path in Path("goca-out").glob("*.sheet.png"))
    assert sheets == ["cat-sky-7-8.sheet.png", "cat-sky-9.sheet.png"]


@pytest.mark.parametrize(
    ("name", "scheduler", "explain"),
    [
        ("sd15", None, False),
        ("sd15", None, True),
        ("sd15", HeunDiscreteScheduler, False),
        ("sd15", PNDMScheduler, False),
        ("pixart_sigma", None, False),  # takes no callback at the end of a step
        ("flux", None, False),
        ("z_image", None, False),
        ("wan", None, True),
    ],
)
def test_progress_step_by_step(name: str, scheduler: Any, explain: bool) -> None:
    pipeline = BUILDERS[name]()
    if scheduler is not None:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    options = GenerationOptions(prompt="a cat", steps=3, size=64)
    with quiet():
        events = [*generate(pipeline, options, [0, 7], explain)]
    steps = [(event.seed, event.step, event.steps) for event in events if isinstance(event, Progress)]
    assert steps == [(seed, step, 3) for seed in (0, 7) for step in (1, 2, 3)]
    assert [type(event) for event in events] == [*[Progress] * 3, Generated] * 2


def test_an_abandoned_generation_ends_and_gives_the_pipeline_back() -> None:
    pipeline = BUILDERS["sd15"]()
    options = GenerationOptions(prompt="a cat", steps=200, size=32)
    with quiet():
        events = generate(pipeline, options, [0])
        assert next(events) == Progress(1, 200, 0)
        events.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "goca-generate"]
        assert images_of(pipeline, "a cat", steps=1, size=32, explain=True)[0].traced is not None


@pytest.mark.parametrize("explain", [False, True])
def test_a_pipeline_that_is_traced_meanwhile_is_refused(explain: bool) -> None:
    pipeline = BUILDERS["sd15"]()
    twin = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    # Its own thread would wait for this one, which waits for it.
    with trace(pipeline), pytest.raises(GocaError, match="shares parts with this one is observed by a `with` block"):
        images_of(twin, "a cat", explain=explain, steps=1, size=32)
    with trace(pipeline), pytest.raises(GocaError, match="is observed by a `with` block"):
        images_of(pipeline, "a cat", steps=1, size=32)


@pytest.mark.parametrize("name", ["pixart_sigma", "flux", "qwen_image", "wan", "z_image"])
def test_every_kind_of_pipeline(name: str) -> None:
    pipeline = BUILDERS[name]()
    (generated,) = images_of(pipeline, "a cat and a dog on grass", [3], explain=True, steps=2, scale=2.0, size=64)
    assert generated.image.size == (64, 64)
    explained = explain(generated)
    # A sentence: its words that name something.
    assert list(explained.heatmaps) == ["cat", "dog", "grass"]
    assert explained.masks.labels.shape == (64, 64)
    with pytest.raises(GocaError, match='keep="steps"'):
        explain(generated, step=0)


def test_a_word_behind_the_tokenizer_s_limit_is_left_out() -> None:
    prompt = ", ".join(["cat", *(f"thing {number}" for number in range(30)), "zebra"])
    (generated,) = images_of(BUILDERS["sd15"](), prompt, explain=True, steps=1, size=32)
    explained = explain(generated)
    assert "cat" in explained.heatmaps
    assert "zebra" in explained.left_out


def test_an_image_that_was_not_traced_explains_nothing() -> None:
    (generated,) = images_of(BUILDERS["sd15"](), "a cat", steps=1, size=32)
    with pytest.raises(GocaError, match="not traced"):
        explain(generated)


@pytest.mark.slow
def test_the_training_set_of_the_examples_is_made(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "examples" / "training_set.py"
    run = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    from goca.evaluation.datasets import open_dataset

    data = open_dataset("folder", tmp_path / "painted")
    assert [one.name for one in data.categories] == ["cat", "bus", "grass", "sky"]
    allowed = {"cat, grass, sky": {1, 3, 4}, "bus, grass, sky": {2, 3, 4}}
    lines = (tmp_path / "painted" / "prompts.jsonl").read_text().splitlines()
    prompts = {line["image"]: line["prompt"] for line in map(json.loads, lines)}
    assert sorted(prompts.values()) == sorted(allowed)
    for sample in data.samples:
        assert set(sample.truth().flat) <= allowed[prompts[sample.id]]
    assert len(json.loads((tmp_path / "painted.coco.json").read_text())["images"]) == 2
    assert len((tmp_path / "painted.hf" / "train" / "metadata.jsonl").read_text().splitlines()) == 2
