"""What people do to the files of data sets, captions and runs: every reader gives the right value or a GocaError.

A list that is broken is refused when a set is opened; anything else costs the image that it is of.
"""

import json
import math
import os
import random
import shutil
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import dataset_folders as folders
import numpy as np
import pytest
from damage import ODD, damaged, places, rewrite, scrambled
from PIL import Image
from pycocotools import mask as rle
from scipy.io import savemat

from goca import GocaError
from goca.evaluation.compare import load_run
from goca.evaluation.datasets import open_dataset
from goca.evaluation.datasets.base import VOID, Dataset
from goca.evaluation.datasets.coco_json import decode_mask
from goca.evaluation.records import ImageRecord
from goca.evaluation.run_folder import image_lines, read_facts
from goca.storage.json_lines import JsonLines
from goca.tagging.captions import CaptionEntry, CaptionStore, read_captions

inputs = pytest.mark.parametrize("inputs", [60, pytest.param(2000, marks=pytest.mark.slow)])
"""How many damaged files a reader is given."""
VOC, VOC_LIST = "VOCdevkit/VOC2012", "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
CONTEXT_LIST = "VOC2010/ImageSets/Main/val.txt"
INSTANCES, PANOPTIC = "annotations/instances_val2017.json", "annotations/panoptic_val2017.json"
Truths = dict[str, np.ndarray]

# Of each layout: what builds it, its name, a file that lists images or classes, an image and its ground truth.
LAYOUTS: dict[str, tuple[Callable[[Path], folders.Truths], str, str | None, str, str]] = {
    "voc": (
        folders.make_voc,
        "voc",
        VOC_LIST,
        f"{VOC}/JPEGImages/2007_000033.jpg",
        f"{VOC}/SegmentationClass/2007_000033.png",
    ),
    "context": (
        folders.make_context_mat,
        "context",
        CONTEXT_LIST,
        "VOC2010/JPEGImages/2008_000008.jpg",
        "trainval/2008_000008.mat",
    ),
    "context's names": (
        folders.make_context_mat,
        "context",
        "labels.txt",
        "VOC2010/JPEGImages/2008_000008.jpg",
        "trainval/2008_000008.mat",
    ),
    "coco-object": (folders.make_coco_object, "coco-object", INSTANCES, "val2017/000000000139.jpg", INSTANCES),
    "panoptic": (
        folders.make_coco_panoptic,
        "coco-stuff-27",
        PANOPTIC,
        "val2017/000000000139.jpg",
        "annotations/panoptic_val2017/000000000139.png",
    ),
    "stuff": (
        folders.make_coco_stuff,
        "coco-stuff-171",
        None,
        "val2017/000000000139.jpg",
        "stuffthingmaps/val2017/000000000139.png",
    ),
    "cityscapes": (
        folders.make_cityscapes,
        "cityscapes",
        None,
        "leftImg8bit/val/lindau/lindau_000000_000294_leftImg8bit.png",
        "gtFine/val/lindau/lindau_000000_000294_gtFine_labelIds.png",
    ),
    "ade20k": (
        folders.make_ade20k,
        "ade20k",
        None,
        "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg",
        "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png",
    ),
    "folder": (folders.make_folder, "folder", "classes.txt", "one.jpg", "one.png"),
    "labelme": (folders.make_folder, "folder", "classes.txt", "more/three.jpeg", "more/three.json"),
}
LISTED = [layout for layout in LAYOUTS if LAYOUTS[layout][2]]


@pytest.fixture(autouse=True)
def not_for_ever() -> Iterator[None]:
    """A reader that waits for a pipe fails."""

    def fail(*_: object) -> None:
        pytest.fail("it still waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def made(layout: str, root: Path) -> Truths:
    """The layout in a folder, and the labels of its default split."""
    return next(iter(LAYOUTS[layout][0](root).values()))


def opened(layout: str, root: Path) -> Dataset:
    return open_dataset(LAYOUTS[layout][1], root)


def outcome(read: Callable[[], Any]) -> Any:
    """What is read, or the GocaError, which is one short line; any other exception fails."""
    try:
        return read()
    except GocaError as raised:
        error = raised
    assert 0 < len(str(error)) < 1000
    return error


def read_all(layout: str, root: Path) -> dict[str, np.ndarray | GocaError] | GocaError:
    """What every image of a set has for labels, or why it has none; or why the set is refused."""
    dataset = outcome(lambda: opened(layout, root))
    if isinstance(dataset, GocaError):
        return dataset
    labels = {sample.id: outcome(sample.truth) for sample in dataset.samples}
    for truth in labels.values():
        if not isinstance(truth, GocaError):
            assert truth.dtype == np.uint16
            assert ((truth <= len(dataset.categories)) | (truth == VOID)).all()
    return labels


def check(result: dict[str, np.ndarray | GocaError] | GocaError, truths: Truths, left_out: str = "") -> None:
    """All images have their labels, but for the one that is left out."""
    assert isinstance(result, dict), result
    assert {name for name, labels in result.items() if isinstance(labels, GocaError)} == ({left_out} - {""})
    assert result.keys() == truths.keys()
    for name, labels in result.items():
        if name != left_out:
            np.testing.assert_array_equal(labels, truths[name])


# ---- Text as editors save it

ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32")


def endings(text: str) -> dict[str, str]:
    lines = text.split("\n")
    return {name: end.join(lines) for name, end in {"CRLF": "\r\n", "CR": "\r", "spaces": " \t\n"}.items()}


@pytest.mark.parametrize("layout", [*LISTED, "labels of labelme"])
def test_lists_and_annotations_are_read_however_an_editor_saved_them(layout: str, tmp_path: Path) -> None:
    layout, listed = ("labelme", "more/three.json") if layout == "labels of labelme" else (layout, LAYOUTS[layout][2])
    truths = made(layout, tmp_path)
    path = tmp_path / str(listed)
    text = path.read_text(encoding="utf-8")
    for encoding in ENCODINGS:
        path.write_text(text, encoding=encoding)
        check(read_all(layout, tmp_path), truths)
    for changed in endings(text).values():
        path.write_bytes(changed.encode())
        check(read_all(layout, tmp_path), truths)
    path.write_text(text.replace("\n", "\x85"), encoding="utf-8")
    check(read_all(layout, tmp_path), truths)
    for content in (b"", b"\n", b"caf\xe9\n", b"\xff\xfe\x00"):
        path.write_bytes(content)
        result = read_all(layout, tmp_path)
        if listed == "more/three.json":
            check(result, truths, "more/three.jpeg")
        else:
            assert isinstance(result, GocaError)
            assert str(path) in str(result)


CAPTIONS = [CaptionEntry("a", "cat, caf\u00e9"), CaptionEntry("b", "dog")]
CAPTION_FILES = {
    "a.jsonl": "".join(
        json.dumps({"id": one.id, "caption": one.caption}, ensure_ascii=False) + "\n" for one in CAPTIONS
    ),
    "a.json": json.dumps({one.id: one.caption for one in CAPTIONS}, ensure_ascii=False),
    "list.JSON": json.dumps([{"id": one.id, "caption": one.caption} for one in CAPTIONS]),
    "a.tsv": "".join(f"{one.id}\t{one.caption}\n" for one in CAPTIONS),
}


@pytest.mark.parametrize("name", CAPTION_FILES)
def test_captions_are_read_however_an_editor_saved_them(name: str, tmp_path: Path) -> None:
    path, text = tmp_path / name, CAPTION_FILES[name]
    for encoding in ("utf-8", *ENCODINGS):
        path.write_text(text, encoding=encoding)
        assert read_captions(path) == CAPTIONS
    for changed in endings(text).values():
        path.write_bytes(changed.encode())
        assert read_captions(path) == CAPTIONS


def test_lines_are_not_added_to_a_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    content = '{"id": "a", "caption": "cat", "tagger": "someone"}\n'.encode("utf-16")
    path.write_bytes(content)
    store = CaptionStore(path, "someone")
    with pytest.raises(GocaError, match=r"a\.jsonl is not in UTF-8.*: save it as UTF-8"), store:
        pass
    assert path.read_bytes() == content


# ---- Pipes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pipe_costs_its_image_or_is_refused(layout: str, tmp_path: Path) -> None:
    _, _, listed, image, truth = LAYOUTS[layout]
    for name in {image, truth, listed} - {None}:
        root = tmp_path / str(abs(hash(name)))
        root.mkdir()
        truths = made(layout, root)
        (root / str(name)).unlink()
        os.mkfifo(root / str(name))
        result = read_all(layout, root)
        if name == listed:
            assert isinstance(result, GocaError)
            continue
        left_out = next(name for name in truths if name.split("/")[-1].split(".")[0] in image)
        check(result, truths, left_out)
        assert isinstance(result, dict)
        assert "is not a regular file" in str(result[left_out])
        with pytest.raises(GocaError, match="is not a regular file"):
            read_captions(_pipe(root / "captions.jsonl"))


def _pipe(path: Path) -> Path:
    if not path.exists():
        os.mkfifo(path)
    return path


def test_nothing_is_appended_to_a_pipe(tmp_path: Path) -> None:
    lines = JsonLines(_pipe(tmp_path / "a.jsonl"), dict, dict, "a line")
    with pytest.raises(GocaError, match="is not a regular file"):
        lines.append({"a": 1})


# ---- Names that lead elsewhere

ELSEWHERE = ("../../../secret", "/etc/secret", "a/../../secret", "..\\..\\secret", "C:\\secret")


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("layout", ["voc", "context", "coco-object", "panoptic"])
def test_a_name_that_leads_out_of_the_folder_is_refused(layout: str, name: str, tmp_path: Path) -> None:
    made(layout, tmp_path)
    path = tmp_path / str(LAYOUTS[layout][2])
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        content["images"][0]["file_name"] = name + ".jpg"
        path.write_text(json.dumps(content))
    else:
        path.write_text(path.read_text() + name + "\n")
    with pytest.raises(GocaError, match="is not the name of a file in the folder") as caught:
        opened(layout, tmp_path)
    assert repr(name)[1:-1] in str(caught.value)


def test_links_and_pictures_that_cannot_be_read_are_not_passed_over(tmp_path: Path) -> None:
    """A folder's linked subfolders are searched, once each; a dangling link is an image that is left out."""
    root = tmp_path / "data"
    truths = made("folder", root)
    shutil.move(root / "more", tmp_path / "elsewhere")
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    shutil.copy(root / "one.png", root / "lost.png")
    check(read_all("folder", root), truths | {"lost.jpg": truths["one.jpg"]}, "lost.jpg")


# ---- Two images of one name


def test_images_of_one_id_are_refused(tmp_path: Path) -> None:
    folders.make_coco_object(tmp_path)
    path = tmp_path / INSTANCES
    whole = json.loads(path.read_text(encoding="utf-8"))
    for change, reason in (
        ({"id": 139}, "two images have the id 139"),
        ({"file_name": "000000000139.jpg"}, 'two images have the id "000000000139"'),
    ):
        content = deepcopy(whole)
        content["images"][0] |= change
        path.write_text(json.dumps(content))
        with pytest.raises(GocaError, match=reason):
            open_dataset("coco-object", tmp_path)


def test_file_names_that_are_no_text_stay_apart(tmp_path: Path) -> None:
    folders.write_lines(tmp_path / "classes.txt", ["cat"])
    names = [os.fsdecode(b"caf\xe8"), os.fsdecode(b"caf\xe9"), "caf\u00e9"]
    for value, name in enumerate(names):
        folders.image(tmp_path / f"{name}.jpg", (16, 16))
        folders.grey(tmp_path / f"{name}.png", np.full((16, 16), value % 2, np.uint8))
    dataset = open_dataset("folder", tmp_path)
    labels = {sample.id.encode().decode(): sample.truth()[0, 0] for sample in dataset.samples}
    assert labels == {"caf\\udce8.jpg": 0, "caf\\udce9.jpg": 1, "caf\u00e9.jpg": 0}


# ---- Damage of every kind


@inputs
@pytest.mark.parametrize("layout", ["coco-object", "panoptic"])
def test_damaged_annotations(layout: str, tmp_path: Path, inputs: int) -> None:
    truths = made(layout, tmp_path)
    path = tmp_path / str(LAYOUTS[layout][2])
    whole = json.loads(path.read_text(encoding="utf-8"))
    chance, everywhere = random.Random(0), list(places(whole))
    ids = {image["id"]: image["file_name"].split(".")[0] for image in whole["images"]}
    for _ in range(inputs):
        place = chance.choice(everywhere)
        rewrite(path, json.dumps(damaged(whole, place, chance)))
        result = read_all(layout, tmp_path)
        if place[:1] == ("annotations",) and len(place) > 2 and place[2] != "image_id":
            touched = ids[whole["annotations"][place[1]]["image_id"]]
            assert isinstance(result, dict)
            check({**result, touched: truths[touched]}, truths)
        elif isinstance(result, dict):
            assert result.keys() <= truths.keys()


@inputs
def test_damaged_shapes(tmp_path: Path, inputs: int) -> None:
    truths, path = made("labelme", tmp_path), tmp_path / "more/three.json"
    whole, chance = json.loads(path.read_text(encoding="utf-8")), random.Random(0)
    everywhere, (sample, *_) = list(places(whole)), opened("labelme", tmp_path).samples
    used = ("shapes", "imageHeight", "imageWidth")
    for _ in range(inputs):
        place = chance.choice(everywhere)
        value = damaged(whole, place, chance)
        rewrite(path, json.dumps(value))
        labels = outcome(sample.truth)
        if isinstance(labels, GocaError):
            assert str(path) in str(labels)
        elif value and place[0] not in used:
            np.testing.assert_array_equal(labels, truths[sample.id])


@inputs
@pytest.mark.parametrize("layout", LAYOUTS)
def test_damaged_lists(layout: str, tmp_path: Path, inputs: int) -> None:
    if LAYOUTS[layout][2] is None or layout == "labelme":
        return
    made(layout, tmp_path)
    path = tmp_path / str(LAYOUTS[layout][2])
    whole, chance = path.read_bytes(), random.Random(1)
    for _ in range(inputs):
        rewrite(path, scrambled(whole, chance))
        dataset = outcome(lambda: opened(layout, tmp_path))
        if not isinstance(dataset, GocaError) and dataset.samples:
            outcome(dataset.samples[0].truth)


@inputs
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout not in ("coco-object", "context's names")])
def test_damaged_label_files_cost_their_image(layout: str, tmp_path: Path, inputs: int) -> None:
    truths = made(layout, tmp_path)
    *_, image, truth = LAYOUTS[layout]
    path, chance = tmp_path / truth, random.Random(2)
    whole = path.read_bytes()
    dataset = opened(layout, tmp_path)
    (sample,) = (sample for sample in dataset.samples if sample.image == tmp_path / image)
    for _ in range(inputs):
        rewrite(path, scrambled(whole, chance))
        labels = outcome(sample.truth)
        assert isinstance(labels, GocaError) or labels.shape == truths[sample.id].shape
    path.write_bytes(whole)
    check(read_all(layout, tmp_path), truths)


@pytest.mark.parametrize(
    "content", ["float", "bool", "complex", "cell", "struct", "text", "cube", "nothing", "nan", "far"]
)
def test_matlab_files_of_another_kind(content: str, tmp_path: Path) -> None:
    truths = made("context", tmp_path)
    (labels,) = truths.values()
    values: dict[str, Any] = {
        "float": np.full(labels.shape, 2.0),
        "bool": np.ones(labels.shape, bool),
        "complex": np.full(labels.shape, 1j),
        "cell": np.array([[1, "a"]], object),
        "struct": {"a": 1},
        "text": "LabelMap",
        "cube": np.zeros((*labels.shape, 2), np.uint16),
        "nothing": np.zeros((0, 0)),
        "nan": np.full(labels.shape, np.nan),
        "far": np.full(labels.shape, 1e300),
    }
    savemat(tmp_path / "trainval/2008_000008.mat", {"LabelMap": values[content]})
    result = read_all("context", tmp_path)
    if content in ("float", "bool"):  # stored as MATLAB does; aeroplane is 2, accordion 1
        check(result, {"2008_000008": np.full(labels.shape, 1 if content == "float" else 0, np.uint16)})
    else:
        check(result, truths, "2008_000008")


def test_an_image_of_another_size_takes_no_memory(tmp_path: Path) -> None:
    truths = made("ade20k", tmp_path)
    Image.new("1", (9000, 9000)).save(tmp_path / LAYOUTS["ade20k"][4])
    tracemalloc.start()
    result = read_all("ade20k", tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    check(result, truths, "ADE_val_00000001")
    assert isinstance(result, dict)
    assert "is 9000 x 9000 px and" in str(result["ADE_val_00000001"])
    assert peak < 10_000_000


# ---- Masks of COCO, before C code sees them

SIZE = (19, 23)


def plain_runs(counts: str) -> list[int]:
    """COCO's compressed runs by their definition, of characters that are right."""
    runs: list[int] = []
    digits: list[int] = []
    for character in counts:
        digits.append(ord(character) - 48)
        if digits[-1] < 32:
            value = sum((digit & 31) << 5 * place for place, digit in enumerate(digits))
            value -= (digits[-1] & 16) and 1 << 5 * len(digits)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            digits = []
    return [] if digits else runs


@inputs
def test_compressed_runs_of_any_characters(inputs: int) -> None:
    chance, drawn = random.Random(3), 0
    mask = np.zeros(SIZE, np.uint8)
    mask[3:9, 2:11] = mask[12, 5] = 1
    whole = rle.encode(np.asfortranarray(mask))["counts"].decode()
    for _ in range(inputs):
        counts = list(whole)
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(counts))
            counts[at : at + chance.randrange(3)] = chance.choices(
                [chr(code) for code in range(44, 116)], k=chance.randrange(3)
            )
        text = "".join(counts)
        try:
            read = decode_mask({"size": [*SIZE], "counts": text}, *SIZE)
        except ValueError:
            continue
        runs = plain_runs(text)
        assert min(runs) >= 0
        assert sum(runs) == SIZE[0] * SIZE[1]
        np.testing.assert_array_equal(read, rle.decode(rle.frPyObjects({"size": [*SIZE], "counts": runs}, *SIZE)))
        drawn += 1
    assert 0 < drawn < inputs


@pytest.mark.parametrize(
    "counts",
    [
        [],
        [437.0],
        [0, 436],
        [0, 438],
        [-1, 438],
        [True, 436],
        ["437"],
        [None],
        [2**63, 437 - 2**63],
        [math.nan],
        {},
        None,
        *("", "P" * 10**6, "\u20ac", "0" * 437, 437),
    ],
)
def test_runs_that_do_not_fit_the_image(counts: Any) -> None:
    with pytest.raises(ValueError, match="run"):
        decode_mask({"size": [*SIZE], "counts": counts}, *SIZE)


@inputs
def test_polygons_of_any_numbers(inputs: int) -> None:
    chance = random.Random(4)
    usual = [0, 1, 5.5, 9, 18, 22, 23, -3, 30]
    drawn = 0
    for _ in range(inputs):
        numbers = usual if chance.random() < 0.7 else [*usual, *ODD]
        polygons: Any = [
            chance.choices(numbers, k=chance.choice([0, 1, 2, 4, 5, 6, 6, 8, 12])) for _ in range(chance.randrange(3))
        ]
        try:
            read = decode_mask(polygons, *SIZE)
        except ValueError:
            continue
        areas = [polygon for polygon in polygons if len(polygon) >= 6]
        expected = rle.decode(rle.merge(rle.frPyObjects(areas, *SIZE))) if areas else np.zeros(SIZE, np.uint8)
        np.testing.assert_array_equal(read, expected)
        drawn += 1
    assert 0 < drawn < inputs


def test_an_outline_without_end_is_not_drawn() -> None:
    with pytest.raises(ValueError, match="its outline is too long"):
        decode_mask([[0, 0, 22, 18] * 10_000], *SIZE)


def test_many_large_annotations_of_one_image_take_the_memory_of_one(tmp_path: Path) -> None:
    truths = made("coco-object", tmp_path)
    content = json.loads((tmp_path / INSTANCES).read_text(encoding="utf-8"))
    crowd = folders.entry(9, 632, 1, {"size": [17, 31], "counts": [0, 17 * 31]}, crowd=1)
    content["annotations"] += [crowd] * 2000
    (tmp_path / INSTANCES).write_text(json.dumps(content))
    truths["000000000632"] = np.ones((17, 31), np.uint16)
    dataset = opened("coco-object", tmp_path)
    tracemalloc.start()
    check({sample.id: sample.truth() for sample in dataset.samples}, truths)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2000 * 17 * 31


def test_another_data_set_in_coco_s_format_is_not_read_as_coco(tmp_path: Path) -> None:
    made("coco-object", tmp_path)
    path = tmp_path / INSTANCES
    path.write_text(path.read_text(encoding="utf-8").replace('"name": "person"', '"name": "cat"'), encoding="utf-8")
    with pytest.raises(GocaError, match="category 1 is 'cat', in COCO it is \"person\""):
        open_dataset("coco-object", tmp_path)


# ---- Captions and runs


@inputs
@pytest.mark.parametrize("name", CAPTION_FILES)
def test_damaged_captions(name: str, tmp_path: Path, inputs: int) -> None:
    path, chance = tmp_path / name, random.Random(5)
    for _ in range(inputs):
        rewrite(path, scrambled(CAPTION_FILES[name].encode(), chance))
        entries = outcome(lambda: read_captions(path))
        if not isinstance(entries, GocaError):
            for entry in entries:
                assert entry.id
                f"{entry.id}{entry.caption}".encode()


RECORD = ImageRecord("a", "cat, sky", ("cat",), ("sky",), ("a note",), {"fixed": ((0, 1, 5), (1, 1, 7))})


@inputs
@pytest.mark.parametrize("record", [RECORD, ImageRecord("b", left_out="it is broken")], ids=["counted", "left out"])
def test_damaged_records(record: ImageRecord, tmp_path: Path, inputs: int) -> None:
    path, chance = tmp_path / "images.jsonl", random.Random(6)
    whole = record.to_json()
    everywhere = list(places(json.loads(json.dumps(whole))))
    other = ImageRecord("c", left_out="it is broken too")
    for _ in range(inputs):
        value = damaged(json.loads(json.dumps(whole)), chance.choice(everywhere), chance)
        rewrite(path, f"{json.dumps(value)}\n{json.dumps(other.to_json())}\n")
        records = outcome(lambda: image_lines(tmp_path).read())
        if isinstance(records, GocaError):
            assert "images.jsonl, line 1 is not an image of a run" in str(records)
        else:
            assert [ImageRecord.from_json(json.loads(json.dumps(read.to_json()))) for read in records] == records
            assert records[-1] == other
            texts = [
                records[0].id,
                records[0].caption or "",
                *records[0].classes,
                *records[0].notes,
                records[0].left_out,
            ]
            assert all(isinstance(text, str) for text in texts)
    path.write_text(json.dumps(whole))
    assert image_lines(tmp_path).read() == [record]


@inputs
def test_damaged_lines(tmp_path: Path, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda number: None)  # a crash of the system is not the matter here
    path, chance = tmp_path / "images.jsonl", random.Random(7)
    whole = "".join(f"{json.dumps(RECORD.to_json())}\n" for _ in range(3)).encode()
    for _ in range(inputs):
        rewrite(path, scrambled(whole, chance))
        before = outcome(lambda: image_lines(tmp_path).read())
        if not isinstance(before, GocaError):
            with image_lines(tmp_path) as lines:
                lines.append(RECORD)
            assert image_lines(tmp_path).read() == [*before, RECORD]


RUN = {
    "state": "finished",
    "settings": {"dataset": {"categories": ["cat"], "images": 1, "listing": "x"}, "protocol": {}, "plan": {}},
    "sessions": [{"executor": "1 process", "command": []}],
    "started": "2026-11-28",
    "finished": "2026-11-28",
}


@inputs
def test_damaged_run_files(tmp_path: Path, inputs: int) -> None:
    path, chance = tmp_path / "run.json", random.Random(8)
    with image_lines(tmp_path) as lines:
        lines.append(RECORD)
    everywhere = list(places(RUN))
    for _ in range(inputs):
        text = json.dumps(damaged(RUN, chance.choice(everywhere), chance)).encode()
        rewrite(path, text if chance.random() < 0.5 else scrambled(text, chance))
        facts = outcome(lambda: read_facts(tmp_path))
        if not isinstance(facts, GocaError):
            assert isinstance(facts["settings"], dict)
            assert isinstance(facts["sessions"], list)
        assert isinstance(outcome(lambda: load_run(tmp_path)), GocaError)  # its protocol is none
    for encoding in ENCODINGS:
        path.write_text(json.dumps(RUN), encoding=encoding)
        assert read_facts(tmp_path) == RUN
