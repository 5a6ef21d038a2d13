"""`goca segment --resume`: after any end of a run, a second one does the rest and nothing else."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import GOCA_SCRIPT, Outcome
from faults import KilledError, full_disk, killed_after
from PIL import Image

from goca.exports import DEFAULT_FORMATS, EXPORTERS
from goca.plan import Options
from goca.segmentation import Segmentation
from goca.segmenter import Segmenter

Goca = Callable[..., Outcome]
ASK = ("--classes", "cat, grass", "--background-classes", "sky")
OUT = Path("goca-out")
WHERE = "in goca-out, listed in goca-out/index.jsonl"
SIZES = [(48, 64), (72, 40), (64, 64), (40, 56), (80, 48), (56, 72)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Callable[..., Image.Image]) -> Path:
    """The working folder: three images in in/, six in many/."""
    monkeypatch.chdir(tmp_path)
    for name, sizes in (("in", SIZES[:3]), ("many", SIZES)):
        Path(name).mkdir()
        for seed, size in enumerate(sizes):
            image(*size, seed).save(f"{name}/{'abcdef'[seed]}.png")
    return tmp_path


@pytest.fixture(autouse=True)
def loaded(bundled: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled model is loaded once, and set up as each command asks."""

    def from_pretrained(name: str, recipe: Any, *, batch: int, **options: Any) -> Segmenter:
        settings = {name: value for name, value in options.items() if name not in ("device", "dtype")}
        return Segmenter(bundled.backbone, recipe, Options(**settings), batch, bundled.prototypes)

    monkeypatch.setattr(Segmenter, "from_pretrained", from_pretrained)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stems of the results that are saved from here on."""
    stems: list[str] = []
    save = Segmentation.save

    def noting(self: Segmentation, folder: Path, stem: str, **options: Any) -> tuple[Path, ...]:
        stems.append(stem)
        return save(self, folder, stem, **options)

    monkeypatch.setattr(Segmentation, "save", noting)
    return stems


def content(folder: Path = OUT) -> dict[str, bytes]:
    """The files of a folder; not the index, which grows in another order when a run is resumed."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "index.jsonl" not in path.name)
    return {str(path): path.read_bytes() for path in files}


def indexed() -> list[str]:
    """The images that the index lists with results."""
    lines = map(json.loads, (OUT / "index.jsonl").read_text().splitlines())
    return [Path(line["image"]).stem for line in lines if all(Path(output).is_file() for output in line["outputs"])]


def test_only_the_rest_is_done_and_everything_is_told(goca: Goca, saved: list[str]) -> None:
    whole = goca("segment", "in", *ASK, "--json")
    before = content()
    (OUT / "b.json").unlink()
    saved.clear()
    again = goca("segment", "in", *ASK, "--json", "--resume")
    assert (again.code, saved) == (0, ["b"])
    assert again.out == whole.out
    assert again.line() == f"goca: 3 images segmented, 2 of them by an earlier run; results {WHERE}\n"
    assert content() == before


def test_nothing_is_left_to_do(goca: Goca, saved: list[str]) -> None:
    whole = goca("segment", "in", *ASK, "--json")
    saved.clear()
    again = goca("segment", "in", *ASK, "--json", "--resume")
    assert (again.code, again.out, saved) == (0, whole.out, [])
    summary = f"3 images segmented, 3 of them by an earlier run; results {WHERE}\n"
    assert goca("segment", "in", *ASK, "--resume").out.endswith(summary)


def test_a_first_run_may_resume_too(goca: Goca, saved: list[str]) -> None:
    done = goca("segment", "in", *ASK, "--resume")
    assert (done.code, saved) == (0, ["a", "b", "c"])
    assert done.out.endswith(f"3 images segmented, 0 of them by an earlier run; results {WHERE}\n")


def without_labels() -> None:
    (OUT / "a.labels.png").unlink()


def without_overlay() -> None:
    (OUT / "a.overlay.png").unlink()


def emptied() -> None:
    """As a machine that loses its power may leave it."""
    (OUT / "a.labels.png").write_bytes(b"")


def garbled() -> None:
    (OUT / "a.json").write_bytes((OUT / "a.json").read_bytes()[:-9])


def of_somebody_else() -> None:
    (OUT / "a.json").write_text('{"name": "holiday"}')


def no_object() -> None:
    (OUT / "a.json").write_text("[1, 2]")


def without_its_question() -> None:
    """As `Segmentation.save` writes it by itself."""
    facts = json.loads((OUT / "a.json").read_text())
    del facts["request"]
    (OUT / "a.json").write_text(json.dumps(facts))


def exchanged() -> None:
    Image.new("RGB", (50, 64)).save("in/a.png")


@pytest.mark.parametrize(
    "spoil",
    [
        without_labels,
        without_overlay,
        emptied,
        garbled,
        of_somebody_else,
        no_object,
        without_its_question,
        exchanged,
    ],
)
def test_what_is_not_whole_is_done_again(goca: Goca, saved: list[str], spoil: Callable[[], None]) -> None:
    goca("segment", "in/a.png", "in/c.png", *ASK)
    spoil()
    saved.clear()
    assert goca("segment", "in/a.png", "in/c.png", *ASK, "--resume").code == 0
    assert saved == ["a"]
    with Image.open("in/a.png") as shown, Image.open(OUT / "a.labels.png") as labels:
        assert labels.size == shown.size


def test_an_image_held_upright_is_still_the_same(goca: Goca, saved: list[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), "red").save("in/b.png", exif=exif)
    goca("segment", "in", *ASK)
    saved.clear()
    assert goca("segment", "in", *ASK, "--resume").code == 0
    assert saved == []


@pytest.mark.parametrize(
    ("arguments", "differs"),
    [
        (("--classes", "cat, dog", "--background-classes", "sky"), "classes"),
        # The labels would change their meaning.
        (("--classes", "grass, cat", "--background-classes", "sky"), "classes"),
        (("--classes", "cat, grass"), "background_classes"),
        (("--classes", "cat, grass", "--background-classes", ""), "background_classes"),
        (("--classes", "cat, grass", "--background-classes", "sky, road"), "background_classes"),
        ((*ASK, "--background", "0.3"), "background"),
        ((*ASK, "--caption", "cat, grass, sky"), "caption"),
        ((*ASK, "--recipe", "vanilla"), "recipe, timestep, heads"),
        ((*ASK, "--timestep", "50"), "timestep"),
        ((*ASK, "--seeds", "2"), "seeds"),
        ((*ASK, "--size", "48"), "size"),
        ((*ASK, "--flip"), "flip"),
    ],
)
def test_another_question_or_recipe_stops_the_run(goca: Goca, arguments: Sequence[str], differs: str) -> None:
    goca("segment", "in/a.png", *ASK)
    before = content()
    message = goca("segment", "in", *arguments, "--resume").mistake()
    assert f"{OUT / 'a.json'} comes from a run with other {differs}: choose another output folder" in message
    assert content() == before


def test_the_model_and_the_synonyms_are_part_of_it(goca: Goca, bundled: Segmenter, monkeypatch: Any) -> None:
    Path("plain.txt").write_text("cat\ngrass\n")
    Path("synonyms.txt").write_text("cat: dog\ngrass\n")
    goca("segment", "in", "--classes-file", "plain.txt")
    # Classes from a file and from the command line are the same.
    assert goca("segment", "in", "--classes", "cat, grass", "--resume").code == 0
    assert "other classes" in goca("segment", "in", "--classes-file", "synonyms.txt", "--resume").mistake()
    # The model's own background classes are not a list of the user's, not even of the same names.
    for listed in ("", "sand, water, sky, snow, brick, wood, road"):
        done = goca("segment", "in", "--classes", "cat, grass", "--background-classes", listed, "--resume")
        assert "other background_classes" in done.mistake()
    monkeypatch.setattr(bundled.backbone, "name", "an/other")
    other = ("--model", "an/other", "--resume")
    assert "other model" in goca("segment", "in", "--classes-file", "plain.txt", *other).mistake()


def test_where_it_ran_is_no_part_of_it(goca: Goca, saved: list[str]) -> None:
    goca("segment", "in/a.png", *ASK)
    facts = json.loads((OUT / "a.json").read_text())
    facts["plan"]["device"] = "cuda:0"
    facts["plan"]["versions"]["torch"] = "2.6.0"
    (OUT / "a.json").write_text(json.dumps(facts))
    saved.clear()
    assert goca("segment", "in/a.png", *ASK, "--resume").code == 0
    assert saved == []


def test_a_bad_image_among_kept_ones_keeps_its_place(goca: Goca) -> None:
    Path("in/ab.png").write_bytes(b"no image")
    first = goca("segment", "in", *ASK, "--json")
    (OUT / "c.json").unlink()
    again = goca("segment", "in", *ASK, "--json", "--resume")
    assert (again.code, again.out) == (1, first.out)
    assert "left out: in/ab.png is not an image" in again.err
    assert "3 images segmented, 2 of them by an earlier run, 1 left out" in again.err


def test_a_full_disk_leaves_whole_results_and_no_pieces(goca: Goca) -> None:
    goca("segment", "in", *ASK)
    whole = content()
    for path in OUT.iterdir():
        path.unlink()
    # Three files an image: those of the first, and two of the second; before them, the empty index.
    with full_disk(room=6):
        stopped = goca("segment", "in", *ASK)
    assert stopped.code == 2
    assert "b.json: No space left on device; free some space" in stopped.line()
    assert content() == {name: data for name, data in whole.items() if Path(name).name.startswith("a.")}
    assert indexed() == ["a"]
    assert "1 of them by an earlier run" in goca("segment", "in", *ASK, "--resume").out
    assert content() == whole


def test_pieces_of_a_killed_run_are_swept_and_those_of_others_stay(goca: Goca) -> None:
    # Of writes, two are the index's.
    with killed_after(5), pytest.raises(KilledError):
        goca("segment", "in", *ASK)
    assert content()
    assert all(Path(name).name.startswith(".goca-") for name in content())
    other = OUT / ".goca-0123456789abcdef-another"
    other.touch()
    assert goca("segment", "in", *ASK, "--resume").code == 0
    suffixes = [EXPORTERS[name].suffix for name in DEFAULT_FORMATS]
    assert sorted(content()) == sorted(
        [str(other), *(str(OUT / f"{stem}{suffix}") for stem in "abc" for suffix in suffixes)]
    )


def interrupted(how: signal.Signals) -> tuple[int, str]:
    """Start a run and stop it after its first line of JSON; its exit code, and what it said on stderr.

    The pipe holds little more than a line, so that the run cannot end before it is stopped.
    """
    command = [GOCA_SCRIPT, "segment", "many", *ASK, "--batch", "1", "--json", "--resume"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        pipesize=4096,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(how)
    _, err = process.communicate()
    return process.returncode, err.decode()


@pytest.mark.slow
def test_kill_9_then_ctrl_c_then_the_rest(goca: Goca) -> None:
    whole = goca("segment", "many", *ASK, "--batch", "1", "--json")
    files = content()
    OUT.rename("whole")

    code, _ = interrupted(signal.SIGKILL)
    assert code == -signal.SIGKILL
    killed = set(OUT.glob("*.json"))
    assert 0 < len(killed) < len(SIZES)

    code, err = interrupted(signal.SIGINT)
    stopped = set(OUT.glob("*.json"))
    assert code == 130
    assert err == f"goca: stopped; {len(stopped)} of {len(SIZES)} images are done and complete\n"
    assert indexed() == sorted(path.stem for path in stopped)
    assert killed < stopped < {OUT / f"{stem}.json" for stem in "abcdef"}
    assert {Path(name).suffix for name in content()} == {".png", ".json"}
    for path in stopped:
        with Image.open(path.with_suffix(".labels.png")) as labels:
            assert np.asarray(labels).shape == (json.loads(path.read_text())["height"], labels.width)

    rest = goca("segment", "many", *ASK, "--batch", "1", "--json", "--resume")
    assert (rest.code, rest.out) == (0, whole.out)
    assert f"{len(stopped)} of them by an earlier run" in rest.line()
    assert content() == files
    assert indexed() == list("abcdef")


def test_files_of_another_run_are_not_taken_for_the_result_s(goca: Goca) -> None:
    goca("segment", "in/a.png", *ASK)
    before = content()
    # Another run without JSON: its labels are newer than the JSON that would vouch for them.
    goca("segment", "in/a.png", "--classes", "water, road", "--format", "labels")
    assert content() != before
    assert goca("segment", "in/a.png", *ASK, "--resume").code == 0
    assert content() == before


def test_a_file_that_the_last_run_did_not_write_is_made_again(goca: Goca) -> None:
    goca("segment", "in/a.png", "--classes", "water, road")
    stale = content()
    goca("segment", "in/a.png", *ASK, "--format", "labels,json")
    assert goca("segment", "in/a.png", *ASK, "--resume").code == 0
    overlay = next(name for name in stale if name.endswith(".overlay.png"))
    assert content()[overlay] != stale[overlay]
