"""A training set is what the bench's folder data set reads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from goca import GocaError, Segmentation, Segmenter, TrainingSet
from goca.evaluation.datasets import open_dataset


@pytest.fixture
def found(bundled: Segmenter, image: Any) -> Segmentation:
    """Of two classes, a mask of three bands: background, sky, cat."""
    one = bundled(image(64, 48), ["sky", "cat"])
    labels = np.repeat(np.array([0, 1, 2], np.uint16), 16)[:, None] * np.ones((1, 64), np.uint16)
    return replace(one, labels=labels)


def test_it_is_a_folder_data_set(found: Segmentation, tmp_path: Path) -> None:
    made = TrainingSet(tmp_path / "made", ("cat", "grass", "sky"))
    assert made.add(found, "a cat\u00e9") == tmp_path / "made" / "0.png"
    # A second session goes on, with an image of other classes.
    TrainingSet(str(tmp_path / "made"), ["cat", "grass", "sky"]).add(replace(found, classes=("grass", "cat")))
    data = open_dataset("folder", tmp_path / "made")
    assert [one.name for one in data.categories] == ["cat", "grass", "sky"]
    assert [sample.id for sample in data.samples] == ["0.png", "1.png"]
    assert [sample.truth()[::16, 0].tolist() for sample in data.samples] == [[0, 3, 1], [0, 2, 1]]
    with Image.open(tmp_path / "made" / "0.png") as kept:
        assert np.array_equal(np.asarray(kept), np.asarray(found.image))
    lines = (tmp_path / "made" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"image": "0.png", "prompt": "a cat\u00e9"},
        {"image": "1.png", "prompt": ""},
    ]


def test_it_is_written_as_other_data_sets(found: Segmentation, tmp_path: Path) -> None:
    made = TrainingSet(tmp_path / "made", ("cat", "grass", "sky"))
    with pytest.raises(GocaError, match="has no image"):
        made.export("coco", tmp_path / "made.json")
    made.add(found)
    made.add(replace(found, classes=("grass", "cat")))
    assert made.export("coco", tmp_path / "made.json") == tmp_path / "made.json"
    coco = json.loads((tmp_path / "made.json").read_text())
    assert [entry["file_name"] for entry in coco["images"]] == ["0.png", "1.png"]
    # Bands of 16 rows from the top: background, then the first class, then the second.
    boxes = {(entry["image_id"], entry["category_id"]): entry["bbox"] for entry in coco["annotations"]}
    lower, lowest = [0, 16, 64, 16], [0, 32, 64, 16]
    assert boxes == {(1, 3): lower, (1, 1): lowest, (2, 2): lower, (2, 1): lowest}
    for _ in range(2):  # an earlier one is replaced
        made.export("hf", tmp_path / "made.hf")
    rows = [json.loads(line) for line in (tmp_path / "made.hf/train/metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["images/0.png", "images/1.png"]
    with Image.open(tmp_path / "made.hf/train" / rows[1]["mask_file_name"]) as mask:
        assert np.asarray(mask)[::16, 0].tolist() == [0, 2, 1]
    with pytest.raises(GocaError, match='"labels" is not a data set: choose from coco'):
        made.export("labels", tmp_path / "labels")
    with pytest.raises(GocaError, match="is not a data set of goca's"):
        made.export("yolo", tmp_path / "made")


def test_what_cannot_be_added_or_begun(found: Segmentation, tmp_path: Path) -> None:
    made = TrainingSet(tmp_path / "made", ("cat", "grass"))
    with pytest.raises(GocaError, match=r'"sky" is not a class of .*made: there are cat, grass'):
        made.add(found)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["classes.txt"]
    with pytest.raises(GocaError, match=r"classes\.txt lists other classes, or another order"):
        TrainingSet(tmp_path / "made", ("grass", "cat"))
    with pytest.raises(GocaError, match="no classes"):
        TrainingSet(tmp_path / "other", ())
    for name in ("Void", "background", "sky: blue", "cat # 1"):
        with pytest.raises(GocaError, match="cannot be a class of a folder"):
            TrainingSet(tmp_path / "other", ("grass", name))
    assert not (tmp_path / "other").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(GocaError, match=r"cannot (read|write) .*file"):
        TrainingSet(tmp_path / "file" / "inside", ("cat",))


def test_a_list_that_an_editor_saved_is_the_same(found: Segmentation, tmp_path: Path) -> None:
    TrainingSet(tmp_path, ("cat", "2 wheeler", "sky"))
    path = tmp_path / "classes.txt"
    assert path.read_text() == "1: cat\n2: 2 wheeler\n3: sky\n"
    path.write_text("# mine\r\ncat\r\n2: 2 wheeler\r\nsky\r\n", encoding="utf-16")
    content = path.read_bytes()
    TrainingSet(tmp_path, ("cat", "2 wheeler", "sky")).add(found, "a cat \udce9")
    assert path.read_bytes() == content
    assert open_dataset("folder", tmp_path).samples[0].truth()[::16, 0].tolist() == [0, 3, 1]
    assert json.loads((tmp_path / "prompts.jsonl").read_bytes()) == {"image": "0.png", "prompt": "a cat \udce9"}
    path.write_bytes(b"\xff")
    with pytest.raises(GocaError, match="is not text in UTF-8"):
        TrainingSet(tmp_path, ("cat", "sky"))
