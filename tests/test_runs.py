"""Runs killed and taken up again, refused, with images left out, by several processes: the figures stay the same."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count as count_up
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import GOCA_SCRIPT
from damage import damaged, places, rewrite
from PIL import Image

from goca import GocaError, Segmenter, bundled
from goca.evaluation.compare import load_run
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.datasets.base import Dataset, Sample
from goca.evaluation.evaluator import batches
from goca.evaluation.fingerprint import fingerprint
from goca.evaluation.records import ImageRecord
from goca.evaluation.run_folder import RunFolder, image_lines
from goca.evaluation.runner import Finished, ImagesDone, ImagesTagged, ProgressEvent, Stage, evaluate, run
from goca.parallel import Executor
from goca.testing.tiny import UNET_BUILDERS

STUFF = ("brick", "grass", "road", "sand", "sky", "snow", "water", "wood")
SCENES = EvaluationConfig(dataset="scenes", limit=5, batch=2, as_background=STUFF)


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def events(config: EvaluationConfig, folder: Path | None = None) -> list[ProgressEvent]:
    return list(run(config, folder))


def images_done(told: list[ProgressEvent]) -> int:
    return sum(len(event.images) for event in told if isinstance(event, ImagesDone))


def names_in(folder: Path) -> set[str]:
    """Without the lock, which stays."""
    return {path.name for path in folder.iterdir()} - {".images.jsonl.lock"}


def lines(folder: Path) -> list[str]:
    return (folder / "images.jsonl").read_text().splitlines()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    list(run(SCENES, folder, command=["evaluate", "scenes"]))
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_a_run_says_all_of_itself(whole: Path) -> None:
    told = facts(whole)
    assert told["state"] == "finished"
    assert told["started"] <= told["finished"]
    assert told["sessions"] == [{"executor": "1 process", "command": ["evaluate", "scenes"]}]
    assert set(told["settings"]) == {"dataset", "protocol", "model", "plan", "batch", "threads"}
    assert told["settings"]["plan"]["versions"].keys() >= {"goca", "torch", "diffusers"}
    assert told["settings"]["protocol"]["threshold"] == "fixed"
    assert told["settings"]["protocol"]["as_background"] == list(STUFF)
    metrics = told["metrics"]
    assert metrics["images"] == 5
    assert 0 < metrics["miou"] < 1
    assert metrics["miou"] == pytest.approx(np.mean(list(metrics["per_class"].values())))
    assert metrics["ci95"][0] <= metrics["miou"] <= metrics["ci95"][1]
    assert metrics["fixed_threshold"]["miou"] == metrics["miou"]
    assert metrics["oracle_threshold"]["miou"] == max(one["miou"] for one in metrics["sweep"])
    assert [one["threshold"] for one in metrics["sweep"]] == [-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4]
    assert len({one["miou"] for one in metrics["sweep"]}) > 3
    with Image.open(whole / "confusion.png") as drawn:
        assert drawn.width > 100
    for line in map(json.loads, lines(whole)):
        assert {"id", "caption", "counts"} <= line.keys()
        for counts in line["counts"].values():
            assert sum(pixels for _, _, pixels in counts) == 64 * 64


@pytest.mark.slow
def test_kill_and_resume(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    code = (
        "import sys; from pathlib import Path; from test_runs import SCENES;"
        "from goca.evaluation.runner import evaluate;"
        "evaluate(SCENES, Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", code, folder], env=environment)
    patience = time.monotonic() + 300
    while not (folder / "images.jsonl").exists() or len(lines(folder)) < 2:
        assert process.poll() is None
        assert time.monotonic() < patience
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert facts(folder)["state"] == "running"
    before = lines(folder)
    assert len(evaluate(SCENES, folder).report.images) == 5
    assert facts(folder)["metrics"] == facts(whole)["metrics"]
    assert sorted(set(lines(folder))) == sorted(lines(whole))
    assert lines(folder)[: len(before)] == before


@pytest.mark.parametrize("kept", [0, 1, 3, 4])
def test_killed_at_any_line_and_within_one(whole: Path, copied: Path, kept: int) -> None:
    written = lines(copied)
    torn = written[kept][: 7 + 13 * kept]
    (copied / "images.jsonl").write_text("".join(f"{line}\n" for line in written[:kept]) + torn)
    told = facts(copied)
    for name in ("metrics", "left_out", "finished"):
        del told[name]
    (copied / "run.json").write_text(json.dumps(told | {"state": "running", "sessions": []}))
    # Batches of two, two and one: those that are whole are not done again.
    assert images_done(events(SCENES, copied)) == 5 - kept // 2 * 2
    assert facts(copied)["metrics"] == facts(whole)["metrics"]
    assert set(lines(copied)) == set(written)


class KilledError(BaseException):
    pass


def mortal(patched: pytest.MonkeyPatch, steps: int) -> None:
    """Whatever writes, renames or takes away a file is killed after so many steps, and does nothing more."""
    left = iter(range(steps))

    def after(act: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise KilledError
            return act(*args, **options)

        return step

    for owner, name in ((os, "write"), (os, "replace"), (Path, "write_bytes"), (Path, "unlink")):
        patched.setattr(owner, name, after(getattr(owner, name)))


def kill_at_every_step(work: Callable[[Path], object], folders: Iterator[Path]) -> Iterator[Path]:
    """Work in a fresh folder each time, killed one step later than the time before, until nothing kills it."""
    for steps, folder in enumerate(folders):
        with pytest.MonkeyPatch.context() as patched:
            mortal(patched, steps)
            try:
                work(folder)
                return
            except KilledError:
                pass
        yield folder


def test_killed_at_any_step_of_a_run(tmp_path: Path) -> None:
    """The next run ends as if nothing had happened."""
    done = [ImageRecord(name, counts={"none": ((1, 1, size),)}) for name, size in (("a", 2), ("b", 3))]

    def work(folder: Path) -> None:
        with RunFolder(folder, {"seed": 7}, ["evaluate"]) as run_folder:
            for image in done:
                if image.id not in run_folder.images:
                    run_folder.add([image])
            run_folder.finish({"metrics": {"miou": 0.5}}, {"confusion.png": b"drawn"}, "1 process")

    killed = []
    for folder in kill_at_every_step(work, (tmp_path / str(index) for index in count_up())):
        killed.append(folder)
        # run.json is there before the first line is.
        assert (folder / "run.json").exists() or not (folder / "images.jsonl").read_bytes()
        work(folder)
        assert names_in(folder) == {"run.json", "images.jsonl", "confusion.png"}
        assert (facts(folder)["state"], facts(folder)["metrics"]) == ("finished", {"miou": 0.5})
        assert image_lines(folder).read() == done
    # Two lines, and two files that are each written and renamed, one of them twice.
    assert len(killed) >= 8


def test_killed_while_a_finished_run_is_printed(whole: Path, tmp_path: Path) -> None:
    def copies() -> Iterator[Path]:
        for index in count_up():
            folder = Path(shutil.copytree(whole, tmp_path / str(index)))
            (folder / "confusion.png").write_bytes(b"earlier")
            yield folder

    drawn = (whole / "confusion.png").read_bytes()
    killed, between = [], []
    for folder in kill_at_every_step(lambda folder: evaluate(SCENES, folder), copies()):
        killed.append(folder)
        assert facts(folder) == facts(whole)
        if (folder / "confusion.png").read_bytes() == drawn and list(folder.glob(".goca-*")):
            between.append(folder)
        metrics = evaluate(SCENES, folder).report.metrics()
        assert json.loads(json.dumps(metrics)) == facts(folder)["metrics"] == facts(whole)["metrics"]
        assert (folder / "confusion.png").read_bytes() == drawn
        assert names_in(folder) == names_in(whole)
    assert len(killed) >= 4
    assert between  # the files of a run: one was there anew, the next one was not yet in its place


def test_a_figure_that_is_no_number_is_not_written(copied: Path) -> None:
    before = facts(copied)
    with RunFolder(copied, before["settings"]) as run_folder, pytest.raises(ValueError, match="not JSON compliant"):
        run_folder.finish({"metrics": {"miou": float("nan")}}, {}, None)
    assert facts(copied) == before


def test_a_finished_run_is_only_printed(copied: Path) -> None:
    before = facts(copied)
    told = list(run(SCENES, copied, command=["again"]))
    assert images_done(told) == 0
    (report,) = (event.report for event in told if isinstance(event, Finished))
    assert json.loads(json.dumps(report.metrics())) == before["metrics"]
    assert facts(copied) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"limit": 4}, r"dataset\.images \(4, there 5\)"),
        ({"as_background": ("sky",)}, r"dataset\.categories"),
        ({"switches": ("void=background",)}, r"protocol\.name"),
        ({"recipe": "vanilla"}, r"plan\.recipe \(vanilla, there goca\)"),
        ({"overrides": {"seed": 1}}, r"plan\.seeds"),
        ({"batch": 3}, r"batch \(3, there 2\)"),
        ({"threads": 2}, r"threads \(2, there 1\)"),
    ],
)
def test_a_run_of_something_else_is_refused(copied: Path, change: dict[str, Any], named: str) -> None:
    import torch

    before = (copied / "run.json").read_bytes(), (copied / "images.jsonl").read_bytes()
    try:
        with pytest.raises(GocaError, match=f"differs in .*{named}.*choose another folder"):
            evaluate(replace(SCENES, **change), copied)
    finally:
        torch.set_num_threads(1)
    assert ((copied / "run.json").read_bytes(), (copied / "images.jsonl").read_bytes()) == before


def test_folders_that_are_no_runs(copied: Path, tmp_path: Path) -> None:
    settings = facts(copied)["settings"]
    (copied / "images.jsonl").write_text('{"id": "000"}\n')
    with pytest.raises(GocaError, match=r"images\.jsonl, line 1 is not an image of a run"), RunFolder(copied, settings):
        pass
    (copied / "run.json").write_text("[]")
    with pytest.raises(GocaError, match="not from a run of goca evaluate"), RunFolder(copied, settings):
        pass
    (copied / "run.json").unlink()
    (copied / "images.jsonl").write_text('{"id": "000", "left_out": "it is broken"}\n')
    with pytest.raises(GocaError, match=r"images\.jsonl but no run\.json"), RunFolder(copied, settings):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(GocaError, match="choose another"), RunFolder(tmp_path / "file", settings):
        pass


def test_one_process_at_a_time(copied: Path) -> None:
    settings = facts(copied)["settings"]
    with RunFolder(copied, settings), pytest.raises(GocaError, match="another process writes"):
        RunFolder(copied, settings).__enter__()
    with RunFolder(copied, settings) as run_folder:
        assert len(run_folder.images) == 5


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path) -> None:
    monkeypatch.chdir(tmp_path)
    report = evaluate(SCENES).report
    assert list(tmp_path.iterdir()) == []
    assert json.loads(json.dumps(report.metrics())) == facts(whole)["metrics"]


@pytest.mark.slow
def test_two_processes_agree_with_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "two"
    ended: list[BaseProcess] = []
    monkeypatch.setattr(BaseProcess, "terminate", ended.append)
    evaluate(SCENES, folder, Executor(workers=2))
    # Those that had nothing left to do went by themselves, and in silence.
    assert ended == []
    assert "Traceback" not in capfd.readouterr().err
    assert sorted(lines(folder)) == sorted(lines(whole))
    assert facts(folder)["metrics"] == facts(whole)["metrics"]
    assert facts(folder)["sessions"][0]["executor"] == "2 processes"


# ---- images that cannot be done


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of four scenes with a sky, one class each left, the second image broken."""
    root = tmp_path / "data"
    root.mkdir()
    chosen = [scene for scene in bundled.scenes() if {"sky", "grass"} <= set(scene.classes)][:4]
    (root / "classes.txt").write_text("grass\nsky\n")
    for index, scene in enumerate(chosen):
        scene.image.save(root / f"{index}.jpg")
        labels = np.zeros_like(scene.labels)
        for value, name in enumerate(("grass", "sky"), start=1):
            labels[scene.labels == scene.classes.index(name) + 1] = value
        Image.fromarray(labels).save(root / f"{index}.png")
    shutil.move(root / "1.jpg", tmp_path / "good.jpg")
    content = (tmp_path / "good.jpg").read_bytes()
    # Its size can still be read, its pixels cannot.
    (root / "1.jpg").write_bytes(content[: len(content) // 2])
    return root


def test_a_broken_image_is_left_out_and_tried_again(images: Path, tmp_path: Path) -> None:
    config = EvaluationConfig(dataset="folder", root=images, batch=2)
    report = evaluate(config, tmp_path / "run").report
    assert [image.id for image in report.left_out] == ["1.jpg"]
    told = facts(tmp_path / "run")
    assert told["metrics"]["images"] == 3
    assert told["metrics"]["left_out"] == 1
    assert told["left_out"][0]["id"] == "1.jpg"
    assert "1.jpg cannot be read" in told["left_out"][0]["reason"]
    shutil.copy(tmp_path / "good.jpg", images / "1.jpg")
    again, fresh = evaluate(config, tmp_path / "run").report, evaluate(config).report
    assert again.left_out == ()
    assert again.metrics() == fresh.metrics()
    assert again.images == fresh.images
    assert {image.id for image in image_lines(tmp_path / "run").read()} == {"0.jpg", "1.jpg", "2.jpg", "3.jpg"}


class Slow:
    """A tagger of the tests that had better not be asked twice."""

    name = "vlm slow"

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.asked: list[str] = []

    def prepare(self, samples: Sequence[Sample], dataset: Dataset) -> None:
        self.prepared += [sample.id for sample in samples]

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        self.asked.append(sample.id)
        if sample.id == "001":
            raise GocaError("the server declined")
        return "cat, snow, sand, sky"


def test_a_tagger_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr("goca.evaluation.config.tagger_for", lambda spec, segmenter, **means: slow)
    config = EvaluationConfig(dataset="scenes", limit=3, batch=2, tagger="vlm:slow")
    told = events(config, tmp_path / "run")
    assert slow.prepared == slow.asked == ["000", "001", "002"]
    assert sum(event.count for event in told if isinstance(event, ImagesTagged)) == 3
    (report,) = (event.report for event in told if isinstance(event, Finished))
    assert [(one.id, one.left_out) for one in report.left_out] == [("001", "the server declined")]
    assert report.protocol.tags == "vlm slow"
    evaluate(config, tmp_path / "run")
    assert slow.asked == ["000", "001", "002", "001"]


def test_where_nothing_can_be_evaluated_the_reason_is_said(images: Path) -> None:
    with pytest.raises(GocaError, match=r"no image of folder could be evaluated.*xylophone"):
        evaluate(EvaluationConfig(dataset="folder", root=images, tagger="given:grass, xylophone"))


def test_a_list_that_names_no_class_is_refused_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *unused, **more: pytest.fail("loaded"))
    with pytest.raises(GocaError, match=r'"zebra, spoon" names no class of scenes: choose from .* and 20 more'):
        evaluate(EvaluationConfig(dataset="scenes", tagger="given:zebra, spoon"))


def test_ground_truth_that_is_all_void_has_no_figures(images: Path, tmp_path: Path) -> None:
    for index in range(4):
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(images / f"{index}.png")
    config, folder = EvaluationConfig(dataset="folder", root=images, batch=3), tmp_path / "run"
    for _ in range(2):
        with pytest.raises(GocaError, match=r"^no labelled pixel in 4 images of folder"):
            evaluate(config, folder)
        assert facts(folder)["state"] == "running"
        assert "NaN" not in (folder / "run.json").read_text()
    with pytest.raises(GocaError, match=r"^no labelled pixel in 4 images of folder"):
        evaluate(config)
    background = replace(config, switches=("void=background", "counted=and-background"))
    assert evaluate(background).report.metrics()["per_class"] == {"background": 1}


def test_names_that_are_no_text_do_not_stop_a_run(images: Path, tmp_path: Path) -> None:
    """Undecodable file names, and lone surrogates in captions: the run is finished, and taken up again."""
    shutil.copy(tmp_path / "good.jpg", images / "1.jpg")
    names = [os.fsdecode(b"a\xe8"), os.fsdecode(b"a\xe9"), "2", "3"]
    for number, name in enumerate(names):
        (images / f"{number}.jpg").rename(images / f"{name}.jpg")
        (images / f"{number}.png").rename(images / f"{name}.png")
    ids = ["2.jpg", "3.jpg", "a\\udce8.jpg", "a\\udce9.jpg"]
    captions = tmp_path / os.fsdecode(b"captions \xe9.json")
    captions.write_text(json.dumps(dict.fromkeys(ids, "(grass, caf\udce9), sky")))
    config = EvaluationConfig(dataset="folder", root=images, batch=2, tagger=f"captions:{captions}")
    first = evaluate(config, tmp_path / "run").report
    told = facts(tmp_path / "run")
    assert told["state"] == "finished"
    assert [(image.id, image.left_out, image.caption) for image in first.images] == [
        (name, "", "(grass, caf\ufffd), sky") for name in ids
    ]
    whole = lines(tmp_path / "run")
    (tmp_path / "run" / "images.jsonl").write_text("".join(f"{line}\n" for line in whole[:2]))
    assert evaluate(config, tmp_path / "run").report == first
    assert [json.loads(line)["id"] for line in lines(tmp_path / "run")] == ids
    assert facts(tmp_path / "run")["metrics"] == told["metrics"]


@pytest.mark.parametrize("gone", [shutil.rmtree, lambda folder: folder.rename(folder.with_name("moved"))])
def test_a_folder_that_is_gone_is_not_written_anew(copied: Path, gone: Callable[[Path], object]) -> None:
    settings = facts(copied)["settings"]
    with RunFolder(copied, settings) as run_folder:
        gone(copied)
        for again in (False, True):
            if again:  # somebody else's folder of that name
                copied.mkdir()
                (copied / "images.jsonl").write_text("")
            with pytest.raises(GocaError, match=r"images\.jsonl was deleted, moved or replaced"):
                run_folder.add([ImageRecord("x", left_out="it is broken")])
            with pytest.raises(GocaError, match=r"images\.jsonl was deleted, moved or replaced"):
                run_folder.finish({}, {"confusion.png": b""}, "1 process")
            assert copied.exists() == again
    assert names_in(copied) == {"images.jsonl"}
    assert (copied / "images.jsonl").read_text() == ""


def test_counts_of_labels_that_there_are_not_are_refused(copied: Path) -> None:
    text = (copied / "images.jsonl").read_text()
    line = json.loads(text.splitlines()[0])
    line["counts"] = {name: [[99, 1, 5]] for name in line["counts"]}
    (copied / "images.jsonl").write_text(f"{json.dumps(line)}\n")
    with pytest.raises(GocaError, match="has lines of another run"):
        evaluate(SCENES, copied)


@pytest.mark.parametrize("inputs", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_damaged_run_is_read_or_refused(copied: Path, inputs: int) -> None:
    # Of the counts, which take long to read, one each is enough.
    images = [json.loads(line) for line in (copied / "images.jsonl").read_text().splitlines()]
    short = [{**image, "counts": {name: counts[:1] for name, counts in image["counts"].items()}} for image in images]
    (copied / "images.jsonl").write_text("".join(f"{json.dumps(image)}\n" for image in short))
    whole, chance, good = facts(copied), random.Random(0), load_run(copied)
    everywhere = list(places(whole))
    for _ in range(inputs):
        place = chance.choice(everywhere)
        value = damaged(whole, place, chance)
        rewrite(copied / "run.json", json.dumps(value))
        try:
            run_again = load_run(copied)
        except GocaError as error:
            assert str(copied) in str(error)  # noqa: PT017
            # What is said beside the settings does not matter, unless it is a number that is none.
            assert place[:1] in ((), ("settings",), ("sessions",), ("state",)) or "is not JSON" in str(error)  # noqa: PT017
        else:
            assert run_again.report.images == good.report.images


@pytest.mark.slow
def test_what_a_worker_cannot_do_is_one_error(images: Path) -> None:
    config = EvaluationConfig(dataset="folder", root=images, batch=2)
    for name in ("1.jpg", "2.jpg"):
        (images / name).unlink()
        (images / name.replace("jpg", "png")).unlink()
    told = run(config, executor=Executor(workers=2))
    while next(told) != Stage("segmenting", 2, 0):
        pass
    (images / "classes.txt").unlink()
    with pytest.raises(GocaError, match=r"expected .*classes\.txt"):
        next(told)


# ---- parts


def test_a_fingerprint_is_of_the_weights() -> None:
    import torch

    one, same = UNET_BUILDERS["sd15"](), UNET_BUILDERS["sd15"]()
    before = fingerprint(one)
    assert fingerprint(same) == before
    with torch.no_grad():
        next(same.vae.parameters()).flatten()[0] += 1
    assert fingerprint(same) != before
    assert fingerprint(UNET_BUILDERS["sd2"]()) != before
    one.unet = one.unet.to(torch.float16)
    assert fingerprint(one) != before


def test_a_line_is_read_as_it_was_written() -> None:
    for image in (
        ImageRecord("a/ü.png", "cat, grass", ("cat",), ("grass",), ("a note",), {"none": ((0, 1, 5),)}),
        ImageRecord("b", None, left_out="it is broken\nthere"),
        ImageRecord("c", "", counts={"fixed": (), "-0.4": ()}),
    ):
        assert ImageRecord.from_json(json.loads(json.dumps(image.to_json()))) == image
    for broken in ({}, [], 3, {"id": "x"}, {"id": "x", "counts": {"none": [[1, 2]]}}, {"left_out": "it is broken"}):
        with pytest.raises(ValueError, match=r".+"):
            ImageRecord.from_json(broken)


def test_batches_are_fixed() -> None:
    dataset = EvaluationConfig(dataset="scenes", limit=7).open_dataset()
    assert [batch.indices for batch in batches(dataset, 3)] == [range(3), range(3, 6), range(6, 7)]


@pytest.mark.slow
def test_ctrl_c_leaves_whole_lines(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    ask = [GOCA_SCRIPT, "evaluate", "scenes", "--limit", "90", "--batch", "1", "--out", folder]
    process = subprocess.Popen(ask, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    patience = time.monotonic() + 300
    while not (folder / "images.jsonl").exists() or not lines(folder):
        assert process.poll() is None
        assert time.monotonic() < patience
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    done = len(image_lines(folder).read())
    # One more may be written than was counted when it stopped.
    assert err in {
        f"goca: stopped; {told} images are done; the same command resumes {folder}\n" for told in (done - 1, done)
    }
    assert (folder / "images.jsonl").read_text().endswith("\n")
