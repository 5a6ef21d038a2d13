"""A folder of images as one job: what is found, where results go, what is refused, and who does the work."""

import errno
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from PIL import Image

from goca.errors import GocaError
from goca.exports import DEFAULT_FORMATS, EXPORTERS
from goca.folders import (
    FolderProgress,
    ImageOutcome,
    ModelOptions,
    index_lines,
    plan_outputs,
    segment_images,
    stored_path,
)
from goca.imaging import images
from goca.parallel import Executor
from goca.request import SegmentationRequest
from goca.segmentation import Segmentation
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


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (("img.jpg", "img.png"), ("img.jpg", "img.png")),
        (("img.jpg", "img.png", "other.png"), ("img.jpg", "img.png", "other")),
        (("IMG.jpg", "img.png"), ("IMG.jpg", "img.png")),
        # Composed and decomposed accents are one name to some file systems.
        (("caf\u00e9.jpg", "cafe\u0301.png"), ("caf\u00e9.jpg", "cafe\u0301.png")),
        # The whole name of the first is the stem of the third.
        (("a.jpg", "a.jpg.png", "a.png"), ("a.jpg-?", "a.jpg.png", "a.png")),
        (("IMG.png", "img.png"), ("IMG.png-?", "img.png-?")),
        (("A/x.png", "a/x.png", "a/y.png"), ("A/x.png-?", "a/x.png-?", "a/y")),
        # A folder of images has the name that a result would have.
        (("img.json/x.png", "img.png"), ("img.json/x", "img.png")),
        (("img.labels.png/x.png", "img.png"), ("img.labels.png/x", "img.png")),
        (("one/img.png", "two/img.png"), ("one/img", "two/img")),
    ],
)
def test_only_images_whose_results_would_have_one_name_keep_their_suffix(names, stems):
    touch(*(f"in/{name}" for name in names))
    planned = {image.removeprefix("in/"): stem.removeprefix("out/") for image, stem in places("in").items()}
    assert {name: re.sub("-[0-9a-f]{8}$", "-?", stem) for name, stem in planned.items()} == dict(
        zip(names, stems, strict=True)
    )
    targets = [str(target).lower() for job in plan_outputs([Path("in")], Path("out")) for target in job.targets]
    assert len(set(targets)) == len(targets)


def test_formats_of_two_stems_may_meet_in_one_name():
    touch("in/a.png", "in/a.sam.png")
    jobs = plan_outputs([Path("in")], Path("out"), ["sam", "json"])
    assert [job.stem for job in jobs] == ["a.png", "a.sam.png"]
    assert [job.stem for job in plan_outputs([Path("in")], Path("out"), ["json"])] == ["a", "a.sam"]


@pytest.mark.parametrize("letter", ["x", "\N{CJK UNIFIED IDEOGRAPH-732B}"])
def test_names_that_leave_no_room_for_an_ending_are_shortened(letter):
    names = [letter * (250 // len(letter.encode())) + end for end in (".png", "y.png")]
    jobs = plan_outputs(touch(*names, "a.png"), Path("out"))
    assert jobs[2].stem == "a"
    targets = [target for job in jobs for target in job.targets]
    assert len(set(targets)) == 9
    assert all(len(os.fsencode(target.name)) <= 255 for target in targets)
    assert all(job.stem.startswith(letter * 70) for job in jobs[:2])
    again = plan_outputs([Path(name) for name in names], Path("out"))
    assert [job.stem for job in again] == [job.stem for job in jobs[:2]]


@pytest.mark.parametrize("twice", [("a.png", "a.png"), ("a.png", "./in/../a.png"), (".", "a.png")])
def test_the_same_file_twice(twice):
    touch("a.png", "in/b.png")
    assert "the same file" in refusal(*twice)


def test_results_never_overwrite_an_input():
    touch("a.png", "a.labels.png")
    assert "a.png would overwrite a.labels.png" in refusal("a.png", "a.labels.png", out=".")


def test_a_link_to_the_folder_of_an_input_does_not_hide_it():
    touch("in/a.png", "in/a.labels.png")
    Path("out").symlink_to("in")
    assert "in/a.png would overwrite in/a.labels.png" in refusal("in/a.png", "in/a.labels.png", out="out")


def test_links_to_folders_are_followed_and_each_real_folder_is_read_once():
    touch("in/sub/b.png", "else/deep/c.png")
    Path("in/a").symlink_to("sub")
    Path("in/link").symlink_to("../else")
    Path("in/other").symlink_to("../else/deep")
    Path("in/sub/loop").symlink_to("..")
    Path("else/back").symlink_to("../in")
    # The real folder goes before a link to it, and the link that comes first by name before others.
    assert places("in") == {"in/sub/b.png": "out/sub/b", "in/link/deep/c.png": "out/link/deep/c"}


def test_the_output_folder_is_not_read_again():
    touch("in/a.png", "in/out/painted.png", "in/out/deep/b.png")
    Path("in/way-out").symlink_to("out")
    Path("in/deep-out").symlink_to("out/deep")
    assert places("in", out="in/out") == {"in/a.png": "in/out/a"}
    # Unless it is what the user named.
    assert places("in/out", out="in/out") == {
        "in/out/deep/b.png": "in/out/deep/b",
        "in/out/painted.png": "in/out/painted",
    }


def problems(*inputs: str) -> dict[str, str]:
    jobs = plan_outputs([Path(name) for name in inputs], Path("out"))
    return {str(job.image): job.problem for job in jobs if job.problem is not None}


def dangling(path: Path) -> None:
    path.symlink_to("nowhere.png")


def circular(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("b.png", dangling, "in/b.png is a link to nowhere.png, which does not exist"),
        ("holidays", dangling, "in/holidays is a link to nowhere.png, which does not exist"),
        ("b.png", circular, "in/b.png cannot be opened: Too many levels of symbolic links"),
        ("b.png", os.mkfifo, "in/b.png is a pipe, a socket or a device, not an image file"),
        ("notes.txt", dangling, None),
        ("pipe", os.mkfifo, None),
        (".b.png", dangling, None),
    ],
)
def test_what_cannot_be_opened_is_named(name, make, reason):
    touch("in/a.png", "in/c.png")
    make(Path("in", name))
    assert problems("in") == ({f"in/{name}": reason} if reason else {})
    assert [job.stem for job in plan_outputs([Path("in")], Path("out")) if job.problem is None] == ["a", "c"]


def test_a_folder_that_cannot_be_searched_is_named(monkeypatch):
    touch("in/a.png", "in/locked/b.png", "in/open/c.png")
    list_folder = os.listdir

    def refuse(path: Path) -> list[str]:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied")
        return list_folder(path)

    monkeypatch.setattr(os, "listdir", refuse)
    assert problems("in") == {"in/locked": "in/locked is a folder that cannot be read: Permission denied"}
    assert "in/locked is a folder that cannot be read" in refusal("in/locked")


@pytest.mark.parametrize(
    ("make", "reason"),
    [(os.mkfifo, "b.png is not a regular file"), (dangling, "no image or folder b.png (a dangling link)")],
)
def test_an_input_that_cannot_be_opened_is_refused(make, reason):
    touch("a.png")
    make(Path("b.png"))
    assert reason in refusal("a.png", "b.png")


def test_all_inputs_that_are_not_there_are_named():
    touch("a.png")
    assert "no image or folder b.png, c: check" in refusal("b.png", "a.png", "c")


def test_names_that_are_not_text_are_stored_and_stay_different():
    names = [
        os.fsdecode(name) for name in (b"\xff.png", b"\xfe.png", b"\\xff.png", "\N{REPLACEMENT CHARACTER}.png".encode())
    ]
    stored = [stored_path(Path(name)) for name in names]
    assert len(set(stored)) == 4
    assert stored[2:] == names[2:]
    assert all(name.encode() for name in stored)
    assert [unquote_to_bytes(name).rpartition(b"/")[2] for name in stored[:2]] == [b"\xff.png", b"\xfe.png"]


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


def run(
    out: str, executor: Executor, batch: int = 1, formats: Sequence[str] = DEFAULT_FORMATS, **options: Any
) -> tuple[list[FolderProgress], list[ImageOutcome]]:
    jobs = plan_outputs([Path("in")], Path(out), formats)
    request = SegmentationRequest("", ["cat", "grass"], ["sky"])
    events = list(segment_images(jobs, request, ModelOptions(batch=batch), out=Path(out), executor=executor, **options))
    outcomes = [event for event in events if isinstance(event, ImageOutcome)]
    assert [outcome.job for outcome in outcomes] == list(jobs)
    return [event for event in events if isinstance(event, FolderProgress)], outcomes


def results(outcomes: list[ImageOutcome]) -> list[Any]:
    return [str(item.result) if isinstance(item.result, GocaError) else item.result for item in outcomes]


def content(out: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(out).iterdir()) if "index" not in path.name}


def index(out: str) -> list[dict[str, Any]]:
    return index_lines(Path(out)).read()


def test_progress_and_outcomes_are_values(photos: None) -> None:
    progress, outcomes = run("out", Executor())
    assert progress[0] == FolderProgress(total=4)
    assert progress[-1] == FolderProgress(total=4, done=3, left_out=1)
    assert [event.done + event.left_out for event in progress] == [0, 1, 2, 3, 4]
    assert [isinstance(outcome.result, GocaError) for outcome in outcomes] == [False, False, True, False]
    suffixes = [EXPORTERS[name].suffix for name in DEFAULT_FORMATS]
    assert sorted(content("out")) == sorted(f"{stem}{suffix}" for stem in "abd" for suffix in suffixes)


def test_two_workers_agree_with_one_and_resume_it(photos: None) -> None:
    _, alone = run("alone", Executor(), batch=2)
    progress, shared = run("shared", Executor(workers=2), batch=2)
    assert progress[-1] == FolderProgress(total=4, done=3, left_out=1)
    assert results(shared) == results(alone)
    assert content("shared") == content("alone")
    assert index("alone")[2] == {"image": "in/c.png", "error": results(alone)[2]}
    assert index("alone")[3] == {
        "image": "in/d.png",
        "outputs": ["alone/d.labels.png", "alone/d.overlay.png", "alone/d.json"],
    }
    assert index("shared") == json.loads(json.dumps(index("alone")).replace('"alone/', '"shared/'))
    complete = index("shared")

    Path("shared/d.json").unlink()
    progress, resumed = run("shared", Executor(workers=2), batch=2, resume=True)
    assert progress[0] == FolderProgress(total=4, done=2, kept=2)
    assert progress[-1] == FolderProgress(total=4, done=3, kept=2, left_out=1)
    assert [outcome.kept for outcome in resumed] == [True, True, False, False]
    assert index("shared") == complete
    assert content("shared") == content("alone")


def test_a_batch_is_the_same_whatever_is_left_of_it(photos: None, image: Callable[..., Image.Image]) -> None:
    """Sums over a batch of other images differ in their last digits, which the scores show."""
    formats = ["npz", "json"]
    for seed, name in enumerate("abd"):  # of one size, so that they go through the model together
        image(64, 48, seed).save(f"in/{name}.png")
    run("whole", Executor(), batch=4, formats=formats)
    run("torn", Executor(), batch=4, formats=formats)
    Path("torn/d.json").unlink()
    Path("torn/d.npz").write_bytes(b"half")
    before = Path("torn/a.json").stat().st_mtime_ns
    _, outcomes = run("torn", Executor(), batch=4, formats=formats, resume=True)
    assert content("torn") == content("whole")
    assert [outcome.kept for outcome in outcomes] == [True, True, False, False]
    assert Path("torn/a.json").stat().st_mtime_ns == before


def test_an_image_that_is_still_broken_costs_no_pass(photos: None, monkeypatch: Any) -> None:
    run("out", Executor(), batch=4)
    monkeypatch.setattr(Segmenter, "label", unloadable)
    progress, _ = run("out", Executor(), batch=4, resume=True)
    assert progress[-1] == FolderProgress(total=4, done=3, kept=3, left_out=1)


def test_a_cluster_that_does_not_answer_is_refused_before_the_model_is_loaded(photos: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(Segmenter, "from_pretrained", unloadable)
    with pytest.raises(GocaError, match="is not a Ray address"):
        run("out", Executor(ray="nowhere"))


def unloadable(*args: Any, **options: Any) -> Segmenter:
    raise AssertionError("the model was loaded")


def test_a_problem_that_was_known_is_left_out_and_the_others_go_on(photos: None) -> None:
    Path("in/ab.png").symlink_to("nowhere.png")
    progress, outcomes = run("out", Executor())
    assert progress[0] == FolderProgress(total=5, left_out=1)
    assert progress[-1] == FolderProgress(total=5, done=3, left_out=2)
    reason = "in/ab.png is a link to nowhere.png, which does not exist"
    assert results(outcomes)[1] == reason
    assert index("out")[1] == {"image": "in/ab.png", "error": reason}


def test_a_name_that_the_file_system_refuses_fails_alone(photos: None, monkeypatch: Any) -> None:
    replace = Path.replace

    def refuse(path: Path, target: Path) -> Path:
        if target.name.startswith("b."):
            raise OSError(errno.EINVAL, "Invalid argument")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    progress, outcomes = run("out", Executor())
    assert progress[-1] == FolderProgress(total=4, done=2, left_out=2)
    assert "b.labels.png: Invalid argument" in results(outcomes)[1]
    assert sorted({name[0] for name in content("out")}) == ["a", "d"]


def test_a_stopped_run_has_all_that_is_written_in_its_index(photos: None, monkeypatch: Any) -> None:
    """What is segmented is written, though the run is stopped before it is told of."""
    load, save = images.load, Segmentation.save

    def stop_at_d(image: Any) -> Image.Image:
        if image == Path("in/d.png"):
            Path("out/d.labels.png").write_bytes(b"of a worker that was stopped")
            raise KeyboardInterrupt
        return load(image)

    def save_slowly(result: Segmentation, folder: Path, stem: str, **options: Any) -> tuple[Path, ...]:
        time.sleep(0.5 * (stem == "b"))
        return save(result, folder, stem, **options)

    with monkeypatch.context() as patch:
        patch.setattr(images, "load", stop_at_d)
        patch.setattr(Segmentation, "save", save_slowly)
        with pytest.raises(KeyboardInterrupt):
            run("out", Executor())
    assert [line["image"] for line in index("out") if "outputs" in line] == ["in/a.png", "in/b.png"]
    # Another process may go on.
    progress, _ = run("out", Executor(), resume=True)
    assert progress[0] == FolderProgress(total=4, done=2, kept=2)
    assert [line["image"] for line in index("out")] == ["in/a.png", "in/b.png", "in/c.png", "in/d.png"]


def test_nothing_is_loaded_where_nothing_is_left(photos: None, monkeypatch: Any) -> None:
    Path("in/c.png").unlink()
    _, first = run("out", Executor())
    monkeypatch.setattr(Segmenter, "from_pretrained", unloadable)
    Path("out/index.jsonl").unlink()
    Path("in/c.png").symlink_to("nowhere.png")
    progress, again = run("out", Executor(), resume=True)
    assert progress == [FolderProgress(total=4, done=3, kept=3, left_out=1)]
    assert [outcome.result for outcome in again if outcome.kept] == results(first)
    assert [line["image"] for line in index("out")] == ["in/a.png", "in/b.png", "in/c.png", "in/d.png"]
    with pytest.raises(GocaError, match="other classes"):
        list(
            segment_images(
                plan_outputs([Path("in")], Path("out")), SegmentationRequest("", ["cat"]), ModelOptions(), resume=True
            )
        )


@pytest.mark.parametrize("content", [b'{"caption": "mine"}\n', b"not JSON\n", b"[1]\n"])
def test_a_file_that_is_no_index_is_not_overwritten(photos: None, monkeypatch: Any, content: bytes) -> None:
    monkeypatch.setattr(Segmenter, "from_pretrained", unloadable)
    Path("out").mkdir()
    Path("out/index.jsonl").write_bytes(content)
    with pytest.raises(GocaError, match=r"out/index\.jsonl is not an index of results"):
        run("out", Executor())
    assert Path("out/index.jsonl").read_bytes() == content
