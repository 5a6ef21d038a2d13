"""The command line: exit codes, what goes to stdout and what to stderr, and in which order things are checked."""

import gc
import itertools
import json
import logging
import re
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import GOCA_SCRIPT
from faults import full_disk
from PIL import Image

from goca.batches import ModelOptions
from goca.bundled import vocabulary
from goca.cli import arguments, console, models
from goca.diffusion.families import FAMILIES
from goca.errors import GocaError
from goca.exports import EXPORTERS
from goca.recipe import GOCA_OPEN, VANILLA
from goca.segmenter import Segmenter
from goca.testing.tiny import BUILDERS

NO_IMAGE = (
    "is not an image that can be read as PNG, JPEG, WEBP, AVIF, TIFF, BMP, GIF, JPEG2000 or PPM: is the file complete? "
    "If so, convert it to PNG"
)
ASK = ("--classes", "cat, grass", "--background-classes", "sky")


@pytest.fixture
def loaded(bundled: Segmenter, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The bundled model is loaded once for all tests; returns the arguments that it would have been loaded with."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def from_pretrained(*args: Any, **kwargs: Any) -> Segmenter:
        calls.append((args, kwargs))
        return bundled

    monkeypatch.setattr(Segmenter, "from_pretrained", from_pretrained)
    return calls


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_pretrained(*args: Any, **kwargs: Any) -> Segmenter:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Segmenter, "from_pretrained", from_pretrained)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Callable[..., Image.Image]) -> Path:
    """The working folder: photo.jpg, in/a.png, in/sub/b.png, broken.png, empty/, names.txt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    image(160, 96).save("photo.jpg")
    image(48, 64, 1).save("in/a.png")
    image(72, 40, 2).save("in/sub/b.png")
    Path("broken.png").write_bytes(b"no image")
    Path("names.txt").write_text("cat\n")
    return tmp_path


def written() -> list[str]:
    """The files of results."""
    files = (path for path in Path("goca-out").rglob("*") if path.is_file())
    return sorted(str(path) for path in files if "index.jsonl" not in path.name)


# --- The script itself


@pytest.mark.slow
def test_help_is_quick_and_needs_none_of_the_heavy_libraries():
    code = (
        "import sys; from goca.cli.main import main; main(['--help']); main(['segment', '--help']);"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--classes" in done.stdout
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.5


def test_nothing_is_collected_until_a_model_is_loaded(goca: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    load, stream = ModelOptions.load, Segmenter.stream
    monkeypatch.setattr(ModelOptions, "load", lambda *given: states.append(gc.isenabled()) or load(*given))
    monkeypatch.setattr(Segmenter, "stream", lambda *given: states.append(gc.isenabled()) or stream(*given))
    gc.unfreeze()
    assert goca("segment", "photo.jpg", *ASK).code == 0
    assert states[:2] == [False, True]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_what_a_caller_froze_or_switched_off_stays_so(goca: Any) -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    gc.disable()
    try:
        assert goca("segment", "photo.jpg", *ASK).code == 0
        assert not gc.isenabled()
        assert gc.get_freeze_count() >= frozen > 0
    finally:
        gc.enable()


@pytest.mark.slow
def test_the_installed_script_segments_with_workers_and_prints_json_alone():
    command = [GOCA_SCRIPT, "segment", "in", *ASK, "--json", "--batch", "1", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["image"] for line in lines] == ["in/a.png", "in/sub/b.png"]
    assert [(line["height"], line["width"]) for line in lines] == [(64, 48), (40, 72)]


def test_version(goca):
    done = goca("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("goca ")
    assert done.out.count("\n") == 1


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("segment", "--help"), ("models", "-h")])
def test_help(goca, arguments):
    done = goca(*arguments)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: goca")


# --- The user's mistakes


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nonsense",), "nonsense"),
        (("--nonsense",), "--nonsense"),
        (("segment",), "IMAGE"),
        (("segment", "photo.jpg", "--nonsense"), "--nonsense"),
        (("segment", "photo.jpg", "--classes"), "--classes"),
        (("segment", "photo.jpg", "--seeds", "many"), "--seeds"),
        (("segment", "photo.jpg", "--seeds", "0"), "--seeds"),
        (("segment", "photo.jpg", "--batch", "0"), "--batch"),
        (("segment", "photo.jpg", "--size", "-64"), "--size"),
        (("segment", "photo.jpg", "--workers", "0"), "--workers"),
        (("segment", "photo.jpg", "--seed", "-1"), "--seed"),
        (("models", "photo.jpg"), "photo.jpg"),
    ],
)
def test_usage_errors_are_one_line(goca, arguments, told):
    assert told in goca(*arguments).mistake()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("photo.jpg",), "--classes"),
        (("photo.jpg", "--classes", " , "), "no classes"),
        (("photo.jpg", "--classes", "cat", "--classes-file", "names.txt"), "give one of them"),
        (("photo.jpg", "--classes-file", "nowhere.txt"), "nowhere.txt"),
        (("photo.jpg", "--classes-file", "in"), "in is a folder: name a file (--classes-file)"),
        (("photo.jpg", "--classes-file", "photo.jpg"), "not text in UTF-8: save it as UTF-8 (--classes-file)"),
        (("photo.jpg", "--classes", "cat, Cat"), "twice"),
        (("photo.jpg", "--classes", "cat", "--background-classes", "cat"), "twice"),
        (("photo.jpg", *ASK, "--background-classes-file", "names.txt"), "give one of them"),
        (
            ("photo.jpg", "--classes", "cat", "--background-classes-file", "nowhere.txt"),
            "nowhere.txt (--background-classes-file)",
        ),
        (("nowhere.jpg", *ASK), "nowhere.jpg"),
        (("photo.jpg", "nowhere", *ASK), "nowhere"),
        (("empty", *ASK), "no images in empty"),
        (("photo.jpg", "photo.jpg", *ASK), "photo.jpg and photo.jpg"),
        (("photo.jpg", *ASK, "--out", "names.txt"), "cannot write to names.txt"),
        (("photo.jpg", *ASK, "--out", "names.txt/below/it"), "cannot write to names.txt/below/it"),
        (("photo.jpg", *ASK, "--recipe", "soup"), "goca, vanilla"),
        (("photo.jpg", *ASK, "--background", "sky"), "auto, none"),
        (("photo.jpg", *ASK, "--background", "1.5"), "from 0 to 1"),
        (("photo.jpg", *ASK, "--background", "nan"), "from 0 to 1"),
        (("photo.jpg", *ASK, "--ray", "nowhere"), "(--ray)"),
        (("photo.jpg", *ASK, "--timestep", "loud"), "100,50"),
        (("photo.jpg", *ASK, "--timestep", "100,-5"), "100,50"),
        (("photo.jpg", *ASK, "--timestep", ","), "100,50"),
        (("photo.jpg", *ASK, "--timestep", "100,1000"), "from 0 to 999"),
        (("photo.jpg", "--classes", "cat, unicorn, yeti"), 'does not know "unicorn", "yeti"; it knows cat, dog'),
        (("photo.jpg", *ASK, "--background-classes", "unicorn, wall"), 'does not know "unicorn", "wall"'),
        (("broken.png", "in", "--classes", "unicorn"), "unicorn"),
        (("photo.jpg", "--classes", "cat", "--background", "none"), 'be labelled "cat"'),
        (("photo.jpg", *ASK, "--caption", " "), "the caption is empty"),
        (("photo.jpg", *ASK, "--caption", "a dog"), '"cat", "grass" are not in the caption "a dog": add them (--cap'),
        (("photo.jpg", *ASK, "--caption", "cats"), '"grass" is not in the caption "cats": add it'),
        (("photo.jpg", *ASK, "--format", "labels,gif,bmp"), 'no format "bmp", "gif"'),
        (("photo.jpg", *ASK, "--model", "nonsense"), 'no model "nonsense"'),
        (("photo.jpg", *ASK, "--model", "in"), "model_index.json"),
        (("photo.jpg", *ASK, "--device", "toaster"), "cpu, cuda"),
        (("photo.jpg", *ASK, "--dtype", "float17"), "float32"),
        (("nowhere.jpg", "photo.jpg", "never.jpg", *ASK), "nowhere.jpg, never.jpg"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(goca, unloadable, folder, arguments, told):
    before = sorted(folder.rglob("*"))
    assert told in goca("segment", *arguments).mistake()
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--model", "nonsense"), "nonsense"),
        (("--model", "in"), "model_index.json"),
        (("--model", "no/such/" + "x" * 3000), "Hub id"),
        (("--device", "toaster"), "cpu, cuda"),
        (("--dtype", "float17"), "float32"),
    ],
)
def test_models_that_cannot_be_loaded(goca, arguments, told):
    assert told in goca("segment", "photo.jpg", *ASK, *arguments).mistake()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("broken.png", *ASK), "broken.png is not an image"),
        (("names.txt", *ASK), "names.txt is not an image"),
    ],
)
def test_mistakes_that_only_the_model_or_the_image_shows(goca, loaded, arguments, told):
    assert told in goca("segment", *arguments).mistake()
    assert written() == []


REFUSALS = [
    (("segment", "photo.jpg", "--classes", "unicorn, yeti"), '"unicorn", "yeti"'),
    (("segment", "photo.jpg", *ASK, "--recipe", "soup"), "goca, vanilla"),
    (("segment", "photo.jpg", *ASK, "--format", "gif"), 'no format "gif"'),
    (("segment", "photo.jpg", *ASK, "--caption", ""), "the caption is empty"),
    (("segment", "photo.jpg", *ASK, "--out", "names.txt"), "cannot write to names.txt"),
    (("segment", "photo.jpg", *ASK, "--ray", "nowhere"), "not a Ray address"),
    (("generate", ""), "the prompt is empty"),
    (("generate", "cat", "--scale", "nan"), "scale nan"),
    (("generate", "cat", "--recipe", "soup"), "goca, vanilla"),
    (("generate", "cat", "--model", "nonsense"), 'no model "nonsense"'),
    (("generate", "cat", "--out", "names.txt"), "cannot write to names.txt"),
    (("evaluate", "imagenet"), 'no data set "imagenet"'),
    (("evaluate", "voc"), "no tagger"),
    (("evaluate", "scenes", "--tagger", "magic"), 'no tagger "magic"'),
    (("evaluate", "scenes", "--tagger", "given:"), "there are no nouns"),
    (("evaluate", "scenes", "--tagger", "clip:nowhere"), 'no model "nowhere"'),
    (("segment", "names.txt", "--classes", "cat", "--tagger", "magic"), 'no tagger "magic"'),
    (("evaluate", "scenes", "--tagger", "captions:nowhere"), "nowhere"),
    (("evaluate", "scenes", "--recipe", "soup"), "goca, vanilla"),
    (("evaluate", "scenes", "--dtype", "float17"), "float32"),
    (("evaluate", "scenes", "--out", "names.txt"), "cannot write to names.txt"),
    (("ablate", "voc"), 'cannot ablate on "voc"'),
    (("ablate", "scenes", "--model", "nonsense"), 'no model "nonsense"'),
    (("compare", "in"), "a single run"),
    (("scaling", "nonsense"), 'no model "nonsense"'),
    (("scaling", "bundled", "--recipes", "vanilla,soup"), "goca, vanilla"),
    (("scaling", "bundled", "--dataset", "imagenet"), 'no data set "imagenet"'),
    (("scaling", "bundled", "bundled"), "two models have the label"),
    (("scaling", "bundled", "--out", "names.txt"), "cannot write to names.txt"),
    (("models", "--probe", "in"), "model_index.json"),
]


@pytest.mark.slow
def test_torch_is_not_loaded_for_a_refusal():
    """Importing it takes longer than all that is checked without it; each is one line, with nothing on stdout."""
    code = (
        "import json, sys; from goca.cli.main import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    code = main(arguments)\n"
        "    print(json.dumps([code, 'torch' in sys.modules]))"
    )
    commands = json.dumps([arguments for arguments, _ in REFUSALS])
    done = subprocess.run([sys.executable, "-c", code, commands], capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[2, False]] * len(REFUSALS)
    lines = done.stderr.splitlines()
    assert len(lines) == len(REFUSALS)
    assert [told for (_, told), line in zip(REFUSALS, lines, strict=True) if told not in line] == []


@pytest.mark.parametrize(
    ("command", "error", "line"),
    [
        ("segment", GocaError("too small", hint="dtype"), "too small (--dtype)"),
        ("segment", GocaError("too many", hint="background_classes"), "too many (--background-classes)"),
        ("segment", GocaError("no option of this command", hint="root"), "no option of this command"),
        ("segment", GocaError("an argument", hint="images"), "an argument"),
        ("segment", GocaError("no hint"), "no hint"),
        ("evaluate", GocaError("void", hint="switches"), "void (--set)"),
        ("evaluate", GocaError("where", hint="root"), "where (--root)"),
    ],
)
def test_a_hint_names_the_option_of_the_running_command(goca, monkeypatch, command, error, line):
    def refuse(*args: Any, **kwargs: Any) -> Segmenter:
        raise error

    monkeypatch.setattr(Segmenter, "from_pretrained", refuse)
    arguments = ("photo.jpg", *ASK) if command == "segment" else ("scenes",)
    assert goca(command, *arguments).mistake() == f"goca: {line}\n"


def test_a_hint_without_a_command_is_left_out():
    assert console.described(GocaError("too small", hint="dtype")) == "too small"


# --- What a run leaves


def test_one_image(goca, loaded):
    done = goca("segment", "photo.jpg", *ASK, "--background", "none")
    assert (done.code, done.err) == (0, "")
    assert written() == ["goca-out/photo.json", "goca-out/photo.labels.png", "goca-out/photo.overlay.png"]
    with Image.open("goca-out/photo.labels.png") as labels:
        values = np.asarray(labels)
    assert values.shape == (96, 160)
    assert set(np.unique(values)) <= {1, 2}
    facts = json.loads(Path("goca-out/photo.json").read_text())
    assert [one["name"] for one in facts["classes"]] == ["cat", "grass"]
    for expected in ("photo.jpg\n", "cat", "grass", "share of pixels", "evidence", *written()):
        assert expected in done.out
    assert f"{facts['classes'][0]['share']:.1%}" in done.out
    assert "(background)" not in done.out


def test_the_table_shows_the_background_and_the_notes(goca, loaded):
    done = goca("segment", "photo.jpg", "--classes", "cat")
    assert "(background)" in done.out
    assert "note: background classes added: grass" in done.out


def test_a_pipe_gets_everything(goca, loaded):
    """Nothing is wrapped, cut or coloured where no terminal is."""
    deep = Path("deep" * 40, "deeper" * 30)
    done = goca("segment", "in/a.png", *ASK, "--out", deep)
    assert f"\n{deep / 'a.overlay.png'}\n" in done.out
    assert "…" not in done.out
    assert "\x1b" not in done.out


def test_names_are_printed_as_they_are(goca, loaded):
    Path("photo.jpg").rename("[red]:cat:.jpg")
    assert goca("segment", "[red]:cat:.jpg", *ASK).out.startswith("[red]:cat:.jpg\n")


def test_a_folder_prints_a_summary(goca, loaded):
    done = goca("segment", "in", "photo.jpg", *ASK)
    assert (done.code, done.err) == (0, "")
    *_, last = done.out.splitlines()
    assert last == "3 images segmented; results in goca-out, listed in goca-out/index.jsonl"
    facts = [json.loads(path.read_text()) for path in Path("goca-out").rglob("*.json")]
    shares = {name: [one["classes"][i]["share"] for one in facts] for i, name in enumerate(("cat", "grass"))}
    shares["(background)"] = [1 - sum(one["share"] for one in image["classes"]) for image in facts]
    rows = [
        [name, str(sum(share > 1e-9 for share in of_class)), f"{sum(of_class) / 3:.1%}"]
        for name, of_class in sorted(shares.items(), key=lambda item: -sum(item[1]))
    ]
    table = [line.split() for line in done.out.splitlines()[:-1]]
    assert ["class", "images", "mean", "share"] in table
    assert [row for row in table if len(row) == 3] == rows
    assert "photo" not in done.out


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_background_in_the_list_takes_no_label_and_that_is_said(goca, loaded, options):
    done = goca("segment", "photo.jpg", "--classes", "Background, cat, grass", *options)
    assert done.code == 0
    assert done.err == 'goca: not a class: "Background"; pixels without a class get label 0\n'
    assert [entry["name"] for entry in json.loads(Path("goca-out/photo.json").read_text())["classes"]] == [
        "cat",
        "grass",
    ]
    # With a number, a list says so itself; and a mistake has one line.
    Path("names.txt").write_text("0 background\n1 cat\n2 grass\n")
    assert goca("segment", "photo.jpg", "--classes-file", "names.txt", *options).err == ""
    assert "zebra" in goca("segment", "photo.jpg", "--classes", "background, zebra").mistake()


def test_a_note_is_printed_once_in_a_run(goca, loaded):
    done = goca("segment", "in", "photo.jpg", "--classes", "cat")
    added = "grass, sand, water, sky, snow, brick, wood, road"
    assert f"note: background classes added: {added} (3 of 3 images)\n" in done.out
    assert done.out.count("note: ") == 1


@pytest.mark.parametrize("inputs", [("in",), ("photo.jpg",)])
def test_of_many_classes_only_those_with_pixels_have_a_row(goca, loaded, inputs):
    """The bundled model knows 32 nouns, more than so small images can show."""
    for path in ("in/a.png", "in/sub/b.png"):
        Image.new("RGB", (16, 16), "green").save(path)
    names = vocabulary()
    done = goca("segment", *inputs, "--classes", ", ".join(names))
    facts = [json.loads(path.read_text()) for path in Path("goca-out").rglob("*.json")]
    shown = {one["name"] for image in facts for one in image["classes"] if one["share"]}
    assert {line.split()[0] for line in done.out.splitlines() if line.strip()} & set(names) == shown
    assert 0 < len(shown) < 32
    assert f"\n{32 - len(shown)} more classes have no pixels\n" in done.out


def test_reasons_that_are_the_same_are_said_once(goca, loaded):
    for number in range(5):
        Path(f"in/broken{number}.png").write_bytes(b"no image")
    Path("in/gone.png").symlink_to("nowhere.png")
    done = goca("segment", "in", *ASK)
    assert done.code == 1
    assert done.err.splitlines() == [
        f"goca: left out: in/broken0.png, in/broken1.png, in/broken2.png and 2 more: each {NO_IMAGE}",
        "goca: left out: in/gone.png is a link to nowhere.png, which does not exist",
    ]
    assert done.out.endswith("2 images segmented, 6 left out; results in goca-out, listed in goca-out/index.jsonl\n")


def test_at_most_ten_reasons_are_said(goca, loaded):
    for number in range(14):
        Path(f"in/gone{number:02}.png").symlink_to(f"nowhere{number}.png")
    done = goca("segment", "in", *ASK)
    assert len(done.err.splitlines()) == 11
    assert done.err.splitlines()[9] == "goca: left out: in/gone09.png is a link to nowhere9.png, which does not exist"
    assert done.err.splitlines()[10] == "goca: and 4 more: see goca-out/index.jsonl"
    reasons = [json.loads(line).get("error") for line in Path("goca-out/index.jsonl").read_text().splitlines()]
    assert sum(reason is not None for reason in reasons) == 14


def test_json_is_one_line_an_image_and_the_file_that_was_written(goca, loaded):
    done = goca("segment", "in", *ASK, "--json")
    assert (done.code, done.err) == (0, "")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line.pop("image") for line in lines] == ["in/a.png", "in/sub/b.png"]
    files = [line.pop("files") for line in lines]
    assert sorted(name for names in files for name in names) == written()
    assert files[1] == [f"goca-out/sub/b{suffix}" for suffix in (".labels.png", ".overlay.png", ".json")]
    assert lines == [json.loads(Path(names[-1]).read_text()) for names in files]
    assert lines[0]["plan"]["captions"] == ["cat, grass, sky"]


def test_a_second_run_does_not_take_results_for_images(goca, loaded):
    Path("broken.png").unlink()
    for _ in range(2):
        done = goca("segment", ".", *ASK, "--json")
        images = [json.loads(line)["image"] for line in done.out.splitlines()]
        assert images == ["in/a.png", "in/sub/b.png", "photo.jpg"]


def test_synonyms_from_a_file(goca, loaded):
    Path("names.txt").write_text("cat: dog\ngrass\n")
    done = goca("segment", "photo.jpg", "--classes-file", "names.txt", "--background-classes", "", "--json")
    facts = json.loads(done.out)
    assert [one["name"] for one in facts["classes"]] == ["cat", "grass"]
    assert facts["plan"]["captions"] == ["cat, dog, grass"]


def test_background_classes_are_the_model_s_or_the_user_s(goca, loaded):
    Path("names.txt").write_text("sky\nwater\n")
    captions = {
        (): "cat, grass, sand, water, sky, snow, brick, wood, road",
        ("--background-classes", ""): "cat, grass",
        ("--background-classes-file", "names.txt"): "cat, grass, sky, water",
    }
    for options, caption in captions.items():
        facts = json.loads(goca("segment", "photo.jpg", "--classes", "cat, grass", *options, "--json").out)
        assert facts["plan"]["captions"] == [caption]
        assert facts["plan"]["background_classes"] == caption.split(", ")[2:]
        assert facts["request"]["background_classes"] == (caption.split(", ")[2:] if options else None)


def test_a_caption(goca, loaded):
    done = goca("segment", "photo.jpg", "--classes", "cat", "--caption", "cat on grass", "--json")
    assert json.loads(done.out)["plan"]["captions"] == ["cat on grass"]


def test_options_reach_the_library(goca, loaded):
    assert goca("segment", "photo.jpg", *ASK).code == 0
    options = "--model an/m --recipe vanilla --device cpu --dtype bf16 --batch 3 --timestep 100,50 --size 32 --seed 5"
    further = "--seeds 2 --flip --window --refine-edges --floor 0.25"
    assert goca("segment", "photo.jpg", *ASK, *options.split(), *further.split()).code == 0
    plain = {
        "timestep": None,
        "size": None,
        "seed": 0,
        "seeds": 1,
        "flip": False,
        "window": False,
        "refine_edges": False,
        "floor": None,
    }
    chosen = {
        "timestep": (100, 50),
        "size": 32,
        "seed": 5,
        "seeds": 2,
        "flip": True,
        "window": True,
        "refine_edges": True,
        "floor": 0.25,
    }
    assert loaded == [
        (("bundled", GOCA_OPEN), {"device": None, "dtype": None, "batch": 4, **plain}),
        (("an/m", VANILLA), {"device": "cpu", "dtype": "bf16", "batch": 3, **chosen}),
    ]


# --- Bad days


@pytest.mark.parametrize("quietly", [(), ("--json",)])
def test_one_broken_image_among_many(goca, loaded, quietly):
    done = goca("segment", "in", "broken.png", "photo.jpg", *ASK, *quietly)
    assert done.code == 1
    assert "left out: broken.png is not an image" in done.err
    summary = "3 images segmented, 1 left out; results in goca-out, listed in goca-out/index.jsonl"
    if quietly:
        assert done.err.splitlines()[1:] == [f"goca: {summary}"]
        lines = [json.loads(line) for line in done.out.splitlines()]
        assert [line["image"] for line in lines] == ["in/a.png", "in/sub/b.png", "broken.png", "photo.jpg"]
        assert [line for line in lines if "error" in line] == [
            {
                "image": "broken.png",
                "error": f"broken.png {NO_IMAGE}",
            }
        ]
    else:
        assert len(done.err.splitlines()) == 1
        assert done.out.splitlines()[-1] == summary
    assert len(written()) == 9


def test_a_report_always_names_the_image(goca, loaded):
    """The library's own message need not: here, the image is too long to be seen."""
    Image.new("RGB", (32000, 16)).save("long.png")
    done = goca("segment", "in/a.png", "long.png", *ASK)
    assert done.code == 1
    assert "long.png: " in done.err
    assert "32000 x 16 px is too long" in done.err


def test_ctrl_c_keeps_what_is_done(goca, loaded, monkeypatch):
    stream, seen = Segmenter.stream, []

    def stop_at_the_second(self: Segmenter, requests: Any, *arguments: Any) -> Any:
        seen.extend(requests)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)
        return stream(self, requests, *arguments)

    monkeypatch.setattr(Segmenter, "stream", stop_at_the_second)
    done = goca("segment", "in", "photo.jpg", *ASK, "--batch", "1")
    assert done.code == 130
    assert done.line() == "goca: stopped; 1 of 3 images are done and complete\n"
    assert written() == [f"goca-out/in/a{suffix}" for suffix in (".json", ".labels.png", ".overlay.png")]


def test_a_full_disk_stops_the_run_in_one_line(goca, loaded):
    with full_disk():
        done = goca("segment", "photo.jpg", *ASK)
    assert "free some space" in done.mistake()


@pytest.fixture
def boom(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: Any, **kwargs: Any) -> Segmenter:
        raise RuntimeError("boom\nand more")

    monkeypatch.setattr(Segmenter, "from_pretrained", explode)


def test_the_unexpected_is_one_line(goca, boom):
    done = goca("segment", "photo.jpg", *ASK)
    assert (done.code, done.out) == (1, "")
    assert done.line() == "goca: unexpected RuntimeError: boom and more; run again with -v for the traceback\n"


def test_the_unexpected_has_a_traceback_with_v(goca, boom):
    done = goca("segment", "photo.jpg", *ASK, "-v")
    assert (done.code, done.out) == (1, "")
    assert "Traceback" in done.err
    assert "explode" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("streams", "code", "error"),
    [
        ("models | true; exit ${PIPESTATUS[0]}", 1, b""),
        ("--help | true; exit ${PIPESTATUS[0]}", (0, 1), b""),
        ("models > /dev/full", 1, b"goca: cannot print the results (No space left on device): redirect them"),
        ("models --json >&-", 1, b"goca: cannot print the results (Bad file descriptor): redirect them"),
        ("segment in/a.png --classes cat > /dev/full", 1, b"goca: cannot print the results (No space left"),
        ("nonsense >&-", 2, b"goca: No such command 'nonsense'"),
        ("nonsense 2>&-", 2, b""),
        ("nonsense 2> /dev/full", 2, b""),
        ("nonsense <&- >&- 2>&-", 2, b""),
        ("models --json <&- 2>&- > out && head -c 9 out | grep -q models", 0, b""),
    ],
)
def test_streams_that_are_closed_or_full(streams, code, error):
    done = subprocess.run(["bash", "-c", f"'{GOCA_SCRIPT}' {streams}"], capture_output=True, check=False)
    assert done.returncode in (code if isinstance(code, tuple) else (code,))
    assert done.stdout == b""
    assert done.stderr.startswith(error)
    assert done.stderr.count(b"\n") == bool(error)


@pytest.mark.parametrize(
    "arguments",
    [
        ("models",),
        ("models", "--json"),
        ("models", "--markdown"),
        ("--version",),
        ("--help",),
        ("segment", "photo.jpg", *ASK),
        ("segment", "in", *ASK, "--json"),
        ("evaluate", "scenes", "--limit", "1"),
    ],
)
def test_what_cannot_be_printed_is_one_line(goca, loaded, monkeypatch, arguments):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        done = goca(*arguments)
    assert (done.code, done.out) == (1, "")
    assert done.line().startswith("goca: cannot print the results (No space left on device): redirect")


# --- Texts that would steer a terminal

EVIL = "\x1b[31m\u202e\x9b\x07evil"
SHOWN = "\\x1b[31m\\u202e\\x9b\\x07evil"


def test_file_names_do_not_steer_a_terminal(goca, loaded):
    for name in ("one", "two"):
        Path(f"{name}{EVIL}\ngoca.jpg").write_bytes(Path("photo.jpg").read_bytes())
    alone, folder, left_out = (
        goca("segment", f"one{EVIL}\ngoca.jpg", *ASK),
        goca("segment", f"one{EVIL}\ngoca.jpg", f"two{EVIL}\ngoca.jpg", *ASK, "--out", f"out{EVIL}"),
        goca("segment", f"nowhere{EVIL}.jpg", *ASK),
    )
    assert alone.out.startswith(f"one{SHOWN}\\ngoca.jpg\n")
    assert f"results in out{SHOWN}" in folder.out
    assert f"nowhere{SHOWN}.jpg" in left_out.mistake()
    line = goca("segment", f"one{EVIL}\ngoca.jpg", *ASK, "--json").out
    assert line.isascii()
    assert json.loads(line)["image"] == f"one{EVIL}\ngoca.jpg"
    for done in (alone, folder, left_out):
        assert not set("\x1b\x9b\x07\u202e") & set(done.out + done.err)


@pytest.mark.parametrize(
    "arguments",
    [
        (EVIL,),
        ("segment", "photo.jpg", f"--{EVIL}"),
        ("segment", "photo.jpg", "--classes", "cat", "--recipe", EVIL),
        ("segment", "photo.jpg", "--classes", "cat", "--model", EVIL),
        ("segment", "photo.jpg", "--classes-file", EVIL),
        ("evaluate", EVIL),
        ("evaluate", "scenes", "--tagger", EVIL),
        ("compare", EVIL, EVIL),
        ("ablate", EVIL),
        ("generate", "cat", "--recipe", EVIL),
    ],
)
def test_mistakes_do_not_steer_a_terminal(goca, arguments):
    line = goca(*arguments).mistake()
    assert "evil" in line
    assert line.removesuffix("\n").isprintable()


def test_tables_exceptions_and_progress_do_not_steer_a_terminal(goca, monkeypatch, capfd):
    rows = console.table("class")
    rows.add_row(f"cat{EVIL}\nsecond line")
    console.show(rows)
    lines = [line.strip() for line in capfd.readouterr().out.splitlines()]
    assert f"cat{SHOWN}" in lines
    assert "second line" in lines

    def explode(*args: Any, **kwargs: Any) -> Segmenter:
        raise RuntimeError(EVIL)

    monkeypatch.setattr(Segmenter, "from_pretrained", explode)
    assert SHOWN in goca("segment", "photo.jpg", *ASK).line()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    shown = goca("segment", "photo.jpg", *ASK, "--model", EVIL).err
    assert "\x1b[31m" not in shown
    assert "\x9b" not in shown


def test_class_names_that_are_not_text(goca, loaded):
    """As undecodable bytes on the command line, which Python holds as lone surrogates."""
    assert "caf\ufffd" in goca("segment", "photo.jpg", "--classes", "cat, caf\udce9").mistake()
    for _ in range(2):
        done = goca("segment", "photo.jpg", "--classes-file", "names.txt", "--caption", "a cat, caf\udce9", "--resume")
        assert (done.code, done.err) == (0, "")
    assert json.loads(Path("goca-out/photo.json").read_text())["plan"]["captions"] == ["a cat, caf\ufffd"]


def test_a_run_is_finished_and_resumed_whatever_its_command_line_is(goca, monkeypatch):
    ask = ("evaluate", "scenes", "--limit", "1", "--tagger", "given:cat, caf\udce9", "--out", "run")
    monkeypatch.setattr(sys, "argv", ["goca", *ask])
    for _ in range(2):
        assert (goca(*ask).code, goca(*ask).err) == (0, "")
    assert "caf\ufffd" in Path("run/run.json").read_text()


# --- Chatter and progress


@pytest.mark.parametrize("verbose", [False, True])
def test_libraries_are_heard_only_with_v(goca, bundled, monkeypatch, caplog, verbose):
    def chatty(*args: Any, **kwargs: Any) -> Segmenter:
        logging.getLogger("somebody").error("a log line")
        warnings.warn("a warning", UserWarning, stacklevel=1)
        return bundled

    monkeypatch.setattr(Segmenter, "from_pretrained", chatty)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        done = goca("segment", "photo.jpg", *ASK, "--json", *(("-v",) if verbose else ()))
    assert done.code == 0
    assert [record.message for record in caplog.records if record.name == "somebody"] == ["a log line"] * verbose
    assert [str(one.message) for one in seen if "a warning" in str(one.message)] == ["a warning"] * verbose
    assert logging.root.manager.disable == logging.NOTSET


def test_progress_is_for_terminals(goca, loaded, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    shown = goca("segment", "photo.jpg", *ASK)
    assert "loading bundled" in shown.err
    assert "/?" not in shown.err
    assert "segmenting" in shown.err
    # Nobody is told "0/?".
    assert "?" not in re.sub(r"\x1b\[\?25[lh]", "", shown.err)
    assert "loading" not in shown.out
    assert goca("segment", "photo.jpg", *ASK, "--json").err == ""


# --- goca models


def test_models_as_a_table(goca):
    done = goca("models")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) < 40
    row = next(line for line in lines if "Stable Diffusion XL" in line)
    assert row.split()[-2:] == ["stabilityai/stable-diffusion-xl-base-1.0", "65.6"]
    assert lines[-1].startswith("To start with photographs: --model stable-diffusion-v1-5/stable-diffusion-v1-5")


@pytest.mark.parametrize("option", ["--all", "-v"])
def test_models_with_every_setting(goca, option):
    done = goca("models", option)
    assert (done.code, done.err) == (0, "")
    for expected in ("bundled", "Stable Diffusion XL", "VOC 65.6", "not verified here", "up_blocks.2", "output-share"):
        assert expected in done.out


def test_models_as_json(goca):
    done = goca("models", "--json")
    assert (done.code, done.err) == (0, "")
    listed = {one["name"]: one for one in json.loads(done.out)["models"]}
    assert {"repos", "size", "timestep", "heads", "reference", "refine", "order", "scores"} <= set(listed["bundled"])
    scores = listed["Stable Diffusion 1.5"]["scores"]
    assert scores[0]["dataset"] == "VOC"
    assert scores[0]["miou"] == 60.7
    assert "CVPR 2026" in scores[0]["source"]
    assert {score["note"] for score in scores} == {"not verified here"}
    ruled = {one["family"]: one for one in json.loads(done.out)["by_rule"]}
    assert "stabilityai/stable-diffusion-3.5-large" in ruled["sd3"]["repositories"]
    assert ruled["sd3"]["settings"] == "Flux's settings in proportion to the depth; nobody has reported a score"


def test_a_checkpoint_belongs_to_one_family():
    repos = [repo for family in FAMILIES for repo in family.repos]
    repos += [repo for family in FAMILIES for checkpoint in family.checkpoints for repo in checkpoint.repos]
    assert len(repos) == len(set(repos)) > 20


def test_a_check_of_families(goca, monkeypatch):
    """Of a few: tests/test_families.py segments with all."""
    checked = {name: BUILDERS[name] for name in ("sd15", "pixart_sigma", "flux")}
    monkeypatch.setattr("goca.testing.tiny.BUILDERS", checked)
    done = goca("models", "--check", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("{")
    families = json.loads(done.out)["families"]
    assert [set(one) for one in families] == [{"name", "status", "detail"}] * len(checked)
    assert {one["name"]: one["status"] for one in families} == dict.fromkeys(checked, "ok")


def needs_an_extra() -> Any:
    raise ImportError("T5Tokenizer requires the SentencePiece library but it was not found\nin your environment.")


def needs_something_else() -> Any:
    import a_module_that_nobody_has  # noqa: F401


def test_a_check_tells_missing_extras_from_failures(monkeypatch, goca):
    monkeypatch.setattr("goca.testing.tiny.BUILDERS", {"a": needs_an_extra, "b": needs_something_else})
    done = goca("models", "--check", "--json")
    assert (done.code, done.err) == (1, "")
    first, second = json.loads(done.out)["families"]
    assert (first["name"], first["status"]) == ("a", "needs sentencepiece")
    assert 'install goca with its extra "sentencepiece"' in first["detail"]
    assert (second["name"], second["status"]) == ("b", "failed")
    assert "a_module_that_nobody_has" in second["detail"]
    assert goca("models", "--check").code == 1


def test_a_missing_extra_is_no_failure():
    assert models.report({"a": needs_an_extra}, as_json=False)


# --- Options


def test_a_classes_file():
    Path("names.txt").write_text(
        "# animals\n\n  cat :  kitten , tomcat # ours\n# dog\npotted plant\nc#:\n", encoding="utf-8-sig"
    )
    expected = {"cat": ("kitten", "tomcat"), "potted plant": (), "c#": ()}
    assert arguments.classes(None, Path("names.txt")) == (expected, ())
    assert list(arguments.classes(None, Path("names.txt"))[0]) == list(expected)


@pytest.mark.parametrize(("content", "told"), [("cat\ncat: kitten\n", "line 2"), ("# cat\n", "has no classes")])
def test_a_classes_file_that_is_wrong(content, told):
    Path("names.txt").write_text(content)
    with pytest.raises(GocaError, match=told):
        arguments.classes(None, Path("names.txt"))


def test_background_classes_from_a_file():
    listed = {
        "# indoors\nwall\nfloor: carpet, rug\nBackground\nvoid\n": ("wall", "floor", "carpet", "rug", "Background"),
        "1 sky\n2 ground\n": ("sky", "ground"),
        "wall, sky": ("wall", "sky"),
        "# none\n": (),
    }
    for content, names in listed.items():
        Path("names.txt").write_text(content)
        assert arguments.background_classes(None, Path("names.txt")) == names
    assert arguments.background_classes("", None) == ()
    assert arguments.background_classes(None, None) is None
    Path("names.txt").write_text("- wall\n- floor\n")
    with pytest.raises(GocaError, match="is not a name") as caught:
        arguments.background_classes(None, Path("names.txt"))
    assert caught.value.hint == "background_classes_file"


def test_names_between_commas():
    assert arguments.names(" cat,traffic light ,, grass,") == ("cat", "traffic light", "grass")


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("None", None), ("0.5", 0.5), ("0", 0.0), ("1", 1.0)])
def test_backgrounds(text, value):
    assert arguments.background(text) == value


@pytest.mark.parametrize(("text", "value"), [(None, None), ("100", (100,)), (" 100, 50 ", (100, 50))])
def test_timesteps(text, value):
    assert arguments.timesteps(text) == value


def test_the_document_of_the_families_is_what_the_table_prints(goca: Any) -> None:
    told = goca("models", "--markdown")
    assert told.code == 0
    document = Path(__file__).parent.parent / "docs" / "families.md"
    assert told.out.strip() in document.read_text()


@pytest.mark.parametrize("pair", list(itertools.combinations(["--all", "--markdown", "--json", "--check"], 2)))
def test_models_prints_one_thing(goca, monkeypatch, pair):
    monkeypatch.setattr("goca.testing.tiny.BUILDERS", {})
    if pair == ("--json", "--check"):
        assert json.loads(goca("models", *pair).out) == {"families": []}
    else:
        assert f"{pair[0]} and {pair[1]} cannot be combined" in goca("models", *pair).mistake()


# --- Formats


def test_a_run_writes_the_formats_that_are_asked_for(goca, loaded):
    done = goca("segment", "in", *ASK, "--format", "labelme, labels,coco", "--json")
    assert (done.code, done.err) == (0, "")
    files = [f"{stem}.{ending}" for stem in ("a", "sub/b") for ending in ("labels.png", "labelme.json", "json")]
    assert [name for line in done.out.splitlines() for name in json.loads(line)["files"]] == [
        f"goca-out/{name}" for name in files
    ]
    assert written() == sorted(f"goca-out/{name}" for name in [*files, "dataset.coco.json"])
    # As the folder of the result sees the image.
    assert json.loads(Path("goca-out/sub/b.labelme.json").read_text())["imagePath"] == "../../in/sub/b.png"
    listed = json.loads(Path("goca-out/dataset.coco.json").read_text())["images"]
    assert [entry["file_name"] for entry in listed] == ["a.png", "sub/b.png"]


def test_an_image_alone_gives_a_data_set_of_its_own_name(goca, loaded):
    done = goca("segment", "photo.jpg", *ASK, "--format", "coco,yolo", "--json")
    files = ["photo.labels.png", "photo.json", "photo.coco.json", "photo.yolo"]
    assert json.loads(done.out)["files"] == [f"goca-out/{name}" for name in files]
    assert all(Path("goca-out", name).exists() for name in files)
    assert "goca-out/photo.yolo" in goca("segment", "photo.jpg", *ASK, "--format", "yolo").out.split()


def test_options_of_objects_are_heeded(goca, loaded):
    options = ("in", *ASK, "--format", "coco,sam")
    assert goca("segment", *options, "--instances", "--min-area", "4", "--fill-holes", "--polygons").code == 0
    dataset = json.loads(Path("goca-out/dataset.coco.json").read_text())
    assert all(isinstance(entry["segmentation"], list) and entry["area"] >= 4 for entry in dataset["annotations"])
    # Files of images that were made with other options are made again; a data set always is.
    done = goca("segment", *options, "--instances", "--min-area", "4", "--fill-holes", "--resume")
    assert "2 images segmented, 2 of them by an earlier run" in done.out
    assert "2 images segmented, 0 of them by an earlier run" in goca("segment", *options, "--resume").out
    assert "min_area has no effect on these formats" in goca("segment", "in", *ASK, "--min-area", "2").mistake()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "labels,gif"), 'no format "gif": choose from labels, overlay, labelme, sam, npz, json, coco'),
        (("--format", ","), "no format: choose from labels, overlay, labelme, sam, npz, json, coco"),
        (("--format", "labels", "--resume"), "add the format json (--format)"),
    ],
)
def test_formats_that_cannot_be_written_are_refused_before_a_model_is_loaded(goca, loaded, options, message):
    assert message in goca("segment", "photo.jpg", *ASK, *options).mistake()
    assert not loaded
    assert not written()


def test_a_run_of_other_formats_is_resumed_by_its_json(goca, loaded):
    options = ("in", *ASK, "--format", "json,labels")
    assert goca("segment", *options).code == 0
    Path("goca-out/sub/b.labels.png").unlink()
    assert "2 images segmented, 1 of them by an earlier run" in goca("segment", *options, "--resume").out


def test_only_files_of_the_same_formats_collide(goca, loaded):
    Path("photo.jpg").rename("x.labels.png")
    Path("in/a.png").rename("x.png")
    assert "would overwrite" in goca("segment", "x.png", "x.labels.png", *ASK, "--out", ".").mistake()
    assert goca("segment", "x.png", "x.labels.png", *ASK, "--out", ".", "--format", "json").code == 0


def test_the_help_lists_every_format(goca):
    words = " ".join(goca("segment", "--help").out.split())
    assert all(re.search(rf"Files to write:[^.]*\b{name}\b", words) for name in EXPORTERS)
