"""A folder of images as one job: what is found, where results go, what is refused, and who does the work."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from goca.errors import GocaError
from goca.exports import DEFAULT_FORMATS, EXPORTERS
from goca.folders import FolderProgress, ImageOutcome, ModelOptions, plan_outputs, segment_images
from goca.parallel import Executor
from goca.request import SegmentationRequest
from goca.segmenter import Segmenter


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> list[Path]:
    for path in map(Path, names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return [Path(name) for name in names]


def places(*inputs: str, out: str = "out") -> dict[str, str]:
    return {
        str(job.image): str(job.folder / job.stem) for job in plan_outputs([Path(name) for name in inputs], Path(out))
    }


def refusal(*inputs: str, out: str = "out") -> str:
    with pytest.raises(GocaError) as caught:
        plan_outputs([Path(name) for name in inputs], Path(out))
    assert "--" not in str(caught.value)
    return str(caught.value)


def test_one_file_keeps_just_its_name():
    touch("a/b/photo.jpg")
    assert places("a/b/photo.jpg") == {"a/b/photo.jpg": "out/photo"}


def test_several_files_keep_their_paths_below_their_common_parent():
    touch("a/b/x.jpg", "a/c/d/x.jpg")
    assert places("a/b/x.jpg", "a/c/d/x.jpg") == {"a/b/x.jpg": "out/b/x", "a/c/d/x.jpg": "out/c/d/x"}


def test_a_folder_is_searched_in_order_and_keeps_its_inner_paths():
    touch("in/b.png", "in/sub/deep/c.webp", "in/A.JPG", "in/notes.txt", "in/vector.pdf")
    assert list(places("in").items()) == [
        ("in/A.JPG", "out/A"),
        ("in/b.png", "out/b"),
        ("in/sub/deep/c.webp", "out/sub/deep/c"),
    ]


def test_results_keep_their_place_whatever_else_is_in_the_folder():
    touch("in/sub/a.png")
    alone = places("in")["in/sub/a.png"]
    touch("in/b.png")
    assert places("in")["in/sub/a.png"] == alone == "out/sub/a"


def test_folders_and_files_together():
    touch("in/a.png", "in/sub/b.png", "c.png")
    assert places("in", "c.png") == {"in/a.png": "out/in/a", "in/sub/b.png": "out/in/sub/b", "c.png": "out/c"}


def test_relative_and_absolute_names_meet(here):
    touch("in/a.png", "in/b.png")
    absolute = str(here / "in" / "b.png")
    assert places("in/../in/a.png", absolute) == {"in/../in/a.png": "out/a", absolute: "out/b"}


def test_hidden_files_and_earlier_results_are_not_images():
    touch("in/a.png", "in/._a.png", "in/.cache/b.png", "in/a.labels.png", "in/a.overlay.png")
    assert places("in", out="in") == {"in/a.png": "in/a"}


def test_a_hidden_folder_that_is_named_is_searched():
    touch(".in/a.png")
    assert places(".in") == {".in/a.png": "out/a"}


def test_links_are_images_of_their_own():
    touch("a.png")
    Path("b.png").symlink_to("a.png")
    assert places("a.png", "b.png") == {"a.png": "out/a", "b.png": "out/b"}


@pytest.mark.parametrize("name", ["nowhere.jpg", "x" * 300, "a.png/b.png"])
def test_an_input_that_is_not_there_is_named(name):
    touch("a.png")
    assert f"no image or folder {name}" in refusal("a.png", name)


def test_a_folder_without_images_is_named():
    touch("in/a.png", "other/notes.txt")
    assert "no images in other" in refusal("in", "other")


def test_two_inputs_for_one_result_are_both_named():
    touch("in/a.jpg", "in/a.png")
    message = refusal("in")
    assert "in/a.jpg" in message
    assert "in/a.png" in message


@pytest.mark.parametrize("twice", [("a.png", "a.png"), ("a.png", "./in/../a.png"), (".", "a.png")])
def test_the_same_file_twice(twice):
    touch("a.png", "in/b.png")
    assert "the same file" in refusal(*twice)


def test_results_never_overwrite_an_input():
    touch("a.png", "a.labels.png")
    assert "a.png would overwrite a.labels.png" in refusal("a.png", "a.labels.png", out=".")


@pytest.mark.parametrize("out", ["a.png", "a.png/out", "a.png/out/deeper", "x" * 300, "dangling"])
def test_an_output_folder_that_cannot_be_written_is_refused(out):
    touch("a.png")
    Path("dangling").symlink_to("nowhere/at/all")
    message = refusal("a.png", out=out)
    assert f"cannot write to {out}" in message
    assert "choose another output folder" in message


def test_a_file_in_the_way_of_an_inner_output_folder_is_refused():
    touch("in/a.png", "in/sub/b.png", "out/sub")
    assert "cannot write to out/sub" in refusal("in")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused():
    touch("a.png")
    Path("locked").mkdir(mode=0o555)
    assert "cannot write to locked/out" in refusal("a.png", out="locked/out")


def test_nothing_is_left_behind_by_the_check(here):
    touch("in/a.png", "in/sub/b.png")
    Path("old").mkdir()
    before = sorted(here.rglob("*"))
    places("in", out="new/deep")
    places("in", out="old/deep")
    assert sorted(here.rglob("*")) == before


# --- The work


@pytest.fixture
def photos(image: Callable[..., Image.Image]) -> None:
    """Three images in in/, and one that is broken."""
    Path("in").mkdir()
    for seed, name in enumerate("abd"):
        image(48 + 8 * seed, 40, seed).save(f"in/{name}.png")
    Path("in/c.png").write_bytes(b"not an image")


def run(out: str, executor: Executor, **options: Any) -> tuple[list[FolderProgress], list[ImageOutcome]]:
    jobs = plan_outputs([Path("in")], Path(out))
    request = SegmentationRequest("", ["cat", "grass"], ["sky"])
    events = list(segment_images(jobs, request, ModelOptions(batch=1), executor=executor, **options))
    outcomes = [event for event in events if isinstance(event, ImageOutcome)]
    assert [outcome.job for outcome in outcomes] == list(jobs)
    return [event for event in events if isinstance(event, FolderProgress)], outcomes


def results(outcomes: list[ImageOutcome]) -> list[Any]:
    return [str(item.result) if isinstance(item.result, GocaError) else item.result for item in outcomes]


def content(out: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(out).iterdir())}


def test_progress_and_outcomes_are_values(photos: None) -> None:
    progress, outcomes = run("out", Executor())
    assert progress[0] == FolderProgress(total=4)
    assert progress[-1] == FolderProgress(total=4, done=3, left_out=1)
    assert [event.done + event.left_out for event in progress] == [0, 1, 2, 3, 4]
    assert [isinstance(outcome.result, GocaError) for outcome in outcomes] == [False, False, True, False]
    suffixes = [EXPORTERS[name].suffix for name in DEFAULT_FORMATS]
    assert sorted(content("out")) == sorted(f"{stem}{suffix}" for stem in "abd" for suffix in suffixes)


def test_two_workers_agree_with_one_and_resume_it(photos: None) -> None:
    _, alone = run("alone", Executor())
    progress, shared = run("shared", Executor(workers=2))
    assert progress[-1] == FolderProgress(total=4, done=3, left_out=1)
    assert results(shared) == results(alone)
    assert content("shared") == content("alone")

    Path("shared/d.json").unlink()
    progress, resumed = run("shared", Executor(workers=2), resume=True)
    assert progress[0] == FolderProgress(total=4, done=2, kept=2)
    assert progress[-1] == FolderProgress(total=4, done=3, kept=2, left_out=1)
    assert [outcome.kept for outcome in resumed] == [True, True, False, False]
    assert content("shared") == content("alone")


def test_a_cluster_that_does_not_answer_is_refused_before_the_model_is_loaded(photos: None, monkeypatch: Any) -> None:
    def load(*args: Any, **options: Any) -> Segmenter:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Segmenter, "from_pretrained", load)
    with pytest.raises(GocaError, match="no Ray"):
        run("out", Executor(ray="nowhere"))
