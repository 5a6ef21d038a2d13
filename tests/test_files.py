"""Inputs to outputs: which images are found, where their results go, and what is refused before anything runs."""

import os
from pathlib import Path

import pytest

from goca.cli.files import jobs
from goca.errors import GocaError


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
    return {str(job.image): str(job.folder / job.stem) for job in jobs([Path(one) for one in inputs], Path(out))}


def refusal(*inputs: str, out: str = "out") -> str:
    with pytest.raises(GocaError) as caught:
        jobs([Path(one) for one in inputs], Path(out))
    assert "\n" not in str(caught.value)
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
    told = refusal("in")
    assert "in/a.jpg" in told
    assert "in/a.png" in told


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
    told = refusal("a.png", out=out)
    assert f"cannot write to {out}" in told
    assert "choose another --out" in told


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
