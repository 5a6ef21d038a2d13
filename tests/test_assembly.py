"""Data sets of a whole run: what is in them whatever the images are called and show, and whenever a run is killed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import deaths
from PIL import Image

from goca.assembly import assemble
from goca.errors import GocaError
from goca.exports import dataset_formats
from goca.exports.labels_png import labels_png
from goca.folders import ModelOptions, plan_datasets, plan_outputs, segment_images
from goca.image_jobs import ImageJob, dataset_names
from goca.request import SegmentationRequest
from goca.segmenter import Segmenter
from goca.storage.atomic import sweep

DATASETS = tuple(dataset_formats(["coco", "yolo", "voc", "hf", "masks", "cutout"]))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pictures(image: Callable[..., Image.Image]) -> Callable[..., None]:
    def make(*names: str) -> None:
        for seed, name in enumerate(names):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            image(48 + 8 * seed, 40, seed).save(name)

    return make


def files(folder: str | Path) -> dict[str, bytes]:
    """All but the index, which names the folder."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file() and "index.jsonl" not in path.name)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def coco() -> dict[str, Any]:
    return json.loads(Path("out/dataset.coco.json").read_text())


def segmented(*formats: str, **options: Any) -> None:
    jobs = plan_outputs([Path("in")], Path("out"), formats)
    request = SegmentationRequest("", ["cat", "grass"], ["sky"])
    datasets = plan_datasets(jobs, Path("out"), formats)
    list(segment_images(jobs, request, ModelOptions(), out=Path("out"), datasets=datasets, **options))


def labelled(job: ImageJob, classes: tuple[str, ...], *rows: list[int]) -> tuple[ImageJob, tuple[str, ...]]:
    """The job, its label image written as a run would."""
    job.folder.mkdir(parents=True, exist_ok=True)
    labels = np.kron(np.array(rows, np.uint16), np.ones((20, 24), np.uint16))
    (job.folder / f"{job.stem}.labels.png").write_bytes(labels_png(labels, classes))
    return job, classes


@pytest.fixture
def finished(pictures: Callable[..., None]) -> dict[ImageJob, tuple[str, ...]]:
    """Images of different class lists; of the third, nothing is shown."""
    pictures("in/a.png", "in/sub/a.png", "in/z.png")
    for name in ("in/a.png", "in/sub/a.png", "in/z.png"):
        Image.new("RGB", (48, 40), "red").save(name)
    jobs = plan_outputs([Path("in")], Path("out"), DATASETS)
    return dict(
        (
            labelled(jobs[0], ("cat", "sky"), [1, 0], [2, 2]),
            labelled(jobs[1], ("grass", "cat"), [1, 1], [2, 0]),
            labelled(jobs[2], ("cat",), [0, 0], [0, 0]),
        )
    )


def test_classes_have_one_number_in_all_images(finished: dict[ImageJob, tuple[str, ...]]) -> None:
    list(assemble(finished, plan_datasets(list(finished), Path("out"), DATASETS)))
    names = {entry["id"]: entry["name"] for entry in coco()["categories"]}
    assert names == {1: "cat", 2: "sky", 3: "grass"}
    shown = [(entry["image_id"], names[entry["category_id"]], entry["bbox"]) for entry in coco()["annotations"]]
    assert shown == [
        (1, "cat", [0, 0, 24, 20]),
        (1, "sky", [0, 20, 48, 20]),
        (2, "cat", [0, 20, 24, 20]),
        (2, "grass", [0, 0, 48, 20]),
    ]
    assert [entry["file_name"] for entry in coco()["images"]] == ["a.png", "sub/a.png", "z.png"]
    assert Path("out/dataset.yolo/labels/sub__a.txt").read_text().splitlines() == [
        "0 0 0.5 0.5 0.5 0.5 1 0 1",
        "2 0 0 1 0 1 0.5 0 0.5",
    ]
    assert Path("out/dataset.yolo/labels/z.txt").read_bytes() == b""
    with Image.open("out/dataset.voc/SegmentationClass/sub__a.png") as mask:
        np.testing.assert_array_equal(np.array(mask)[::20, ::24], [[3, 3], [1, 0]])
    assert sorted(path.parent.name for path in Path("out/dataset.masks").rglob("*.png")) == [
        "cat",
        "cat",
        "grass",
        "sky",
    ]


def test_a_process_may_be_killed_at_any_step(finished: dict[ImageJob, tuple[str, ...]]) -> None:
    formats = ("coco", "yolo", "masks")
    targets = plan_datasets(list(finished), Path("out"), formats)
    list(assemble(finished, targets))
    whole = files("out")

    def begin(steps: int) -> None:
        shutil.rmtree("out/dataset.yolo", ignore_errors=True)

    for _ in deaths(lambda steps: list(assemble(finished, targets)), begin):
        # What is there is whole: the killed process's, or an earlier one's.
        assert all(whole[name] == content for name, content in files("out").items() if "/.goca-" not in f"/{name}")
        sweep(targets.values())
        list(assemble(finished, targets))
        assert files("out") == whole


def test_labels_of_more_classes_than_the_result_has_are_named(finished: dict[ImageJob, tuple[str, ...]]) -> None:
    job = next(iter(finished))
    targets = plan_datasets([job], Path("out"), ["coco"])
    with pytest.raises(GocaError, match=r"out/a\.labels\.png has label 2 but 1 classes: segment the image again"):
        list(assemble({job: ("cat",)}, targets))


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (("a.jpg", "sub/a.jpg", "sub/deep/a.jpg"), ["a", "sub__a", "sub__deep__a"]),
        (("sub/a.png", "sub__a.png"), ["sub__a", "sub__a-?"]),
        (("a.jpg", "a.png"), ["a.jpg", "a.png"]),
        (("Sub/a.png", "sub/A.png"), ["Sub__a.png-?", "sub__A.png-?"]),
        (("\udce9.png", "\ufffd.png"), ["\ufffd", "\ufffd-?"]),
    ],
)
def test_stems_in_a_data_set_are_unique_and_text(names: tuple[str, ...], stems: list[str]) -> None:
    for name in names:
        path = Path("in", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    jobs = plan_outputs([Path("in")], Path("out"), ["coco"])
    named = dataset_names(jobs, Path("out"))
    assert sorted(path for path, _ in named.values()) == sorted(names)
    shown = [stem[:-8] + "?" if stem[-9:-8] == "-" else stem for _, stem in named.values()]
    assert sorted(shown) == sorted(stems)
    assert len({stem.casefold() for _, stem in named.values()}) == len(names)


def test_other_formats_need_no_second_pass(pictures: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    pictures("in/a.png", "in/sub/a.png")
    Path("in/broken.png").write_bytes(b"no image")
    segmented("labels", "json")
    before = files("out")
    Path("in/broken.png").unlink()

    def refuse(*args: Any, **options: Any) -> Segmenter:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(Segmenter, "from_pretrained", refuse)
    segmented("coco", "hf", resume=True)
    after = files("out")
    assert {name: content for name, content in after.items() if not name.startswith("dataset.")} == before
    assert [entry["file_name"] for entry in coco()["images"]] == ["a.png", "sub/a.png"]
    assert len(Path("out/dataset.hf/train/metadata.jsonl").read_text().splitlines()) == 2


def test_images_that_are_left_out_are_in_no_data_set(pictures: Callable[..., None]) -> None:
    pictures("in/a.png", "in/b.png")
    Path("in/broken.png").write_bytes(b"no image")
    segmented("coco")
    assert [entry["file_name"] for entry in coco()["images"]] == ["a.png", "b.png"]
    for name in ("a", "b"):
        Path(f"in/{name}.png").write_bytes(b"no image")
    # And a data set of images that are not there any more does not stay.
    segmented("coco")
    assert not Path("out/dataset.coco.json").exists()


def test_images_of_a_data_set_are_not_segmented_again(pictures: Callable[..., None]) -> None:
    pictures("in/a.png")
    jobs = plan_outputs([Path("in")], Path("in"), ["yolo", "cutout"])
    finished = dict([labelled(jobs[0], ("cat",), [1])])
    Image.new("RGB", (24, 20)).save("in/a.png")
    list(assemble(finished, plan_datasets(jobs, Path("in"), ["yolo", "cutout"])))
    assert Path("in/dataset.cutout/cat/a.png").exists()
    assert [job.image for job in plan_outputs([Path("in")], Path("in"))] == [Path("in/a.png")]


def test_a_data_set_takes_no_other_s_place(pictures: Callable[..., None]) -> None:
    pictures("in/a.png", "in/dataset.yolo/b.png", "in/Dataset.coco.png")
    jobs = plan_outputs([Path("in")], Path("out"), ["yolo", "coco", "hf"])
    for form, image in (("yolo", "in/dataset.yolo/b.png"), ("coco", "in/Dataset.coco.png")):
        with pytest.raises(GocaError, match=f"the results of {image} would be where the data set out/dataset.{form}"):
            plan_datasets(jobs, Path("out"), [form])
    Path("out/dataset.hf").mkdir(parents=True)
    with pytest.raises(GocaError, match=r"out/dataset\.hf is not a data set of goca's, and would be replaced"):
        plan_datasets(jobs, Path("out"), ["hf"])
