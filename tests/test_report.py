"""`goca report`: what a page shows of a run, worst first, whatever names are in it and whatever is missing."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Outcome
from PIL import Image

from goca.errors import GocaError
from goca.evaluation.datasets import open_dataset
from goca.evaluation.protocol import honest
from goca.evaluation.records import ImageRecord
from goca.evaluation.run_folder import image_lines
from goca.imaging.draw import overlay
from goca.report import page, write_report
from goca.storage.json_lines import JsonLines

Goca = Callable[..., Outcome]
HOSTILE = "<script>alert('1')</script>\"><img src=http://evil.example onerror=x> \u202eegami " + "long" * 500


class Page(HTMLParser):
    """What a browser would make of a page: tags, the attributes that load or run, and the text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags, self.loaded, self.titles, self.text = set[str](), list[str](), list[str](), ""
        self.in_title = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag == "h3":
            self.titles.append("")
        self.in_title = tag == "h3" or (self.in_title and tag == "bdi")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_title:
            self.titles[-1] += data
            self.in_title = False


def harmless(file: Path) -> Page:
    read = Page(file)
    assert not read.tags & {"script", "iframe", "object", "link", "form", "base"}
    assert all(address.startswith("data:image/jpeg;base64,") for address in read.loaded)
    assert "default-src 'none'" in file.read_text()
    assert "\u202e" not in read.text
    return read


@pytest.fixture
def segmented(tmp_path: Path, image: Callable[..., Image.Image]) -> Path:
    """Three images with results, the surest first, and one that was left out; made elsewhere as "out"."""
    folder, lines = tmp_path / "moved", []
    for number, (name, evidence) in enumerate((("sure", 0.9), ("doubtful", 0.2), (HOSTILE, 0.5))):
        stem = f"sub/{number}"
        (folder / stem).parent.mkdir(parents=True, exist_ok=True)
        labels = np.zeros((60, 80), np.uint16)
        labels[:20] = 1
        overlay(image(80, 60, number), labels, ["cat", "dog"]).save(folder / f"{stem}.overlay.png")
        classes = [
            {"id": 1, "name": HOSTILE, "share": 1 / 3, "evidence": evidence},
            {"id": 2, "name": "dog", "share": 0.0, "evidence": 0.01},
        ]
        plan = {"recipe": "goca", "model": "bundled", "size": 64, "timestep": [100], "notes": [f"note {number}"]}
        plan |= {"captions": [], "evidence_blocks": "", "prototypes": None}
        facts = {"height": 60, "width": 80, "classes": classes, "plan": plan}
        (folder / f"{stem}.json").write_text(json.dumps(facts))
        lines.append({"image": name, "outputs": [f"out/{stem}.overlay.png", f"out/{stem}.json"]})
    lines.append({"image": "broken.png", "error": "broken.png is not an image"})
    (folder / "index.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_a_folder_s_worst_images_come_first_and_no_name_does_harm(goca: Goca, segmented: Path) -> None:
    told = goca("report", segmented, "--json")
    assert (told.code, told.err) == (0, "")
    file = segmented / "report.html"
    assert json.loads(told.out) == {"file": str(file), "kind": "segment", "images": 4, "shown": 4}
    read = harmless(file)
    assert [title[:8] for title in read.titles] == ["broken.p", "doubtful", HOSTILE[:8], "sure"]
    assert len(read.loaded) == 3
    assert "broken.png is not an image" in read.text
    assert "note 1 (1 image)" in read.text
    assert "timestep: 100" in read.text
    assert not {"captions", "evidence_blocks", "prototypes"} & set(re.findall(r"\w+(?=: )", read.text))
    assert "<script>alert('1')</script>" in read.text  # as letters
    assert "long" * 200 not in read.text
    assert goca("report", segmented, "--limit", "2", "--out", segmented / "two.html").out.startswith("2 of 4 images")
    assert harmless(segmented / "two.html").titles == ["broken.png", "doubtful"]
    assert "53.3%" in read.text  # the mean evidence of all, whatever the limit


def test_the_overlay_is_shown_without_its_legend(goca: Goca, segmented: Path) -> None:
    goca("report", segmented, "--limit", "2")
    content = harmless(segmented / "report.html").loaded[0].partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(content))) as shown:
        assert shown.size == (320, 240)


def test_absent_classes_of_many_images_share_a_note(goca: Goca, segmented: Path) -> None:
    for number, names in enumerate(("dog", "dog, cat")):
        file = segmented / f"sub/{number}.json"
        facts = json.loads(file.read_text())
        facts["plan"]["notes"] = [f"too little evidence for {names}: no pixels"]
        file.write_text(json.dumps(facts))
    goca("report", segmented)
    read = harmless(segmented / "report.html")
    assert "too little evidence for some classes: no pixels (2 images)" in read.text
    assert read.text.count("too little evidence for dog") == 2  # in the images' own cards


@pytest.mark.parametrize("formats", [("labels.png", "json"), ("labels.png",)])
def test_labels_are_drawn_where_there_is_no_overlay(
    goca: Goca, segmented: Path, monkeypatch: pytest.MonkeyPatch, formats: tuple[str, ...]
) -> None:
    # As after --resume with other formats: the index names neither overlays nor what else an earlier run wrote.
    monkeypatch.chdir(segmented.parent)
    Image.new("RGB", (80, 60), "white").save("photo.png")
    labels = np.zeros((60, 80), np.uint8)
    labels[:20] = 1
    Image.fromarray(labels).save(segmented / "sub/1.labels.png")
    line = {"image": "photo.png", "outputs": [f"out/sub/1.{suffix}" for suffix in formats]}
    (segmented / "index.jsonl").write_text(json.dumps(line))
    assert goca("report", segmented).code == 0
    read = harmless(segmented / "report.html")
    assert "Regions" in read.text
    (content,) = read.loaded
    with Image.open(io.BytesIO(base64.b64decode(content.partition(",")[2]))) as shown:
        assert shown.size == (80, 60)
        drawn = np.asarray(shown.convert("RGB"), np.int16)
    assert drawn[3:15, 5:75].min() < 200  # coloured, in at least one channel
    assert drawn[30:55, 5:75].min() > 240  # background stays as it is


def test_what_is_missing_or_damaged_is_said_in_its_place(
    goca: Goca, segmented: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (segmented / "sub/0.overlay.png").unlink()
    (segmented / "sub/1.json").write_text('{"classes": 3}')
    shutil.copy(segmented / "sub/2.json", segmented.parent / "outside.json")
    lines = [json.loads(line) for line in (segmented / "index.jsonl").read_text().splitlines()]
    lines[2]["outputs"] = ["../outside.json"]
    (segmented / "index.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert goca("report", segmented).code == 0
    read = harmless(segmented / "report.html")
    assert "no such file: sure" in read.text
    assert "1.json is damaged: it has values of another kind" in read.text
    assert "all of its results are missing" in read.text
    assert "90.0%" in read.text  # the mean evidence: the file outside of the folder is not read
    assert "Segmented1Left out1Damaged or missing2" in read.text
    assert read.titles[-1] == "sure"  # behind the failures, whatever its evidence
    (segmented / "sub/1.json").write_text("{}")
    (segmented / "sub/0.json").write_text("{")
    goca("report", segmented)
    read = harmless(segmented / "report.html")
    assert "1.json is damaged: it lacks 'classes'" in read.text
    assert "0.json is not JSON" in read.text
    (segmented / "sub/0.json").unlink()
    (segmented / "sub/0.overlay.png").touch()
    goca("report", segmented)
    assert "0.json is missing" in harmless(segmented / "report.html").text
    monkeypatch.setattr(page, "MOST_BYTES", 100)
    goca("report", segmented)
    read = harmless(segmented / "report.html")
    assert read.loaded == []
    assert "not shown: a page has" in read.text


@pytest.mark.parametrize("subfolder", ["a", "s1"])
@pytest.mark.parametrize("parent", ["", "runs", "/elsewhere"])
def test_no_image_is_shown_the_result_of_another_one(goca: Goca, segmented: Path, subfolder: str, parent: str) -> None:
    facts = json.loads((segmented / "sub/0.json").read_text())
    shutil.rmtree(segmented / "sub")
    (segmented / subfolder).mkdir()
    lines = []
    for number, stem in enumerate(("cat", f"{subfolder}/cat", f"{subfolder}/dog")):
        facts["classes"] = [{"id": 1, "name": f"of {stem}", "share": 0.5, "evidence": 0.1 * (1 + number)}]
        (segmented / f"{stem}.json").write_text(json.dumps(facts))
        lines.append({"image": f"imgs/{stem}.png", "outputs": [str(Path(parent, "s1", f"{stem}.json"))]})
    (segmented / "index.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    goca("report", segmented)
    read = harmless(segmented / "report.html")
    assert read.titles == [line["image"] for line in lines]
    shown = re.findall(r"of ([a-z0-9/]*(?:cat|dog))", read.text)
    assert shown == 2 * ["cat", f"{subfolder}/cat", f"{subfolder}/dog"]  # in the table of all, and in the cards
    (segmented / subfolder / "cat.json").unlink()
    goca("report", segmented)
    read = harmless(segmented / "report.html")
    assert read.titles[0] == f"imgs/{subfolder}/cat.png"
    assert f"of {subfolder}/cat" not in read.text
    assert "all of its results are missing" in read.text


def test_only_the_json_of_goca_s_own_is_read(goca: Goca, segmented: Path) -> None:
    for name in ("0", "0.labelme"):
        shutil.copy(segmented / "sub/1.json", segmented / f"sub/{name}.labelme.json")
    (segmented / "sub/0.json").unlink()
    shutil.copy(segmented / "sub/1.json", segmented / "sub/1.sam.json")
    lines = [
        {"image": "0.png", "outputs": ["out/sub/0.overlay.png", "out/sub/0.labelme.json"]},
        {"image": "0.labelme.png", "outputs": ["out/sub/0.labelme.labelme.json", "out/sub/0.labelme.json"]},
        {"image": "1.png", "outputs": ["out/sub/1.json", "out/sub/1.sam.json"]},
    ]
    (segmented / "index.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    goca("report", segmented)
    read = harmless(segmented / "report.html")
    assert "Segmented3Left out0Damaged or missing0" in read.text
    assert read.text.count("no numbers") == 1
    assert read.titles[-1] == "0.png"


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """Scenes, of which two were counted, the second worse, and one was left out, in the end."""
    dataset = open_dataset("scenes", None)
    protocol = honest(dataset, "oracle")
    plan = {"recipe": "goca", "model": "bundled"}
    names = dataset.class_names
    settings = {
        "dataset": {"name": "scenes", "split": "all", "categories": names, "images": 3},
        "protocol": protocol.to_json(),
        "model": {"name": "bundled"},
        "plan": plan,
    }
    metrics = {"miou": 0.5, "ci95": [0.4, 0.6], "pixel_accuracy": 0.7, "frequency_weighted_iou": 0.6, "labels": 2}
    metrics |= {"per_class": {names[0]: 0.25, names[1]: 0.75}, "images": 2, "left_out": 1, "threshold": "none"}
    size = {"shares": [0.1, 0.3], "regions": 3, "labels": 2, "miou": 0.55, "ci95": [0.5, 0.65], "recall": 0.75}
    metrics["by_size"] = [size]
    facts = {"state": "finished", "settings": settings, "sessions": [], "root": None, "metrics": metrics}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    records = (
        ImageRecord("001", left_out="tried again"),
        ImageRecord("000", "a caption", (names[0],), counts={"none": ((1, 1, 90), (2, 1, 10))}),
        ImageRecord("002", left_out=f"no answer {HOSTILE}"),
        ImageRecord("001", "a caption", (names[0],), (), (HOSTILE,), {"none": ((1, 1, 50), (1, 2, 50))}),
    )
    with image_lines(tmp_path) as lines:
        lines.append(*records)
    return tmp_path


def test_an_evaluation_s_worst_images_come_first(goca: Goca, evaluated: Path) -> None:
    told = goca("report", evaluated)
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines() == ["3 of 3 images, the worst first", str(evaluated / "report.html")]
    read = harmless(evaluated / "report.html")
    assert read.titles == ["002", "001", "000"]
    assert "IoU 25.0%" in read.text  # of (50 / 100, 0 / 50)
    assert "IoU 45.0%" in read.text  # of (90 / 100, 0 / 10)
    assert "50.0% of the pixels are airplane, predicted apple" in read.text
    assert "tried again" not in read.text
    assert "50.0% [40.0%, 60.0%]" in read.text
    assert re.search(r"10 to 30 %\s*3\s*55\.0 \[50\.0, 65\.0\]\s*75\.0%", read.text)
    assert "void: ignored" in read.text
    assert len(read.loaded) == 6  # an image and its ground truth each
    assert "confusion.png" in read.text  # which is not there


def test_an_evaluation_that_knew_no_sizes_is_shown_without(goca: Goca, evaluated: Path) -> None:
    facts = json.loads((evaluated / "run.json").read_text())
    del facts["metrics"]["by_size"]
    (evaluated / "run.json").write_text(json.dumps(facts))
    assert goca("report", evaluated).code == 0
    text = harmless(evaluated / "report.html").text
    assert "50.0% [40.0%, 60.0%]" in text
    assert "10 to 30 %" not in text


def test_images_that_lie_elsewhere_now_are_missed_in_a_line(goca: Goca, evaluated: Path) -> None:
    facts = json.loads((evaluated / "run.json").read_text())
    facts["settings"]["protocol"]["dataset"] = "voc"
    for root, told in ((str(evaluated / "gone"), "The images have been moved"), (..., "does not record where")):
        facts["root"] = root
        if root is ...:
            del facts["root"]
        (evaluated / "run.json").write_text(json.dumps(facts))
        assert goca("report", evaluated).code == 0
        read = harmless(evaluated / "report.html")
        assert read.loaded == []
        assert told in read.text
        assert len(read.titles) == 3


def test_what_is_no_run_is_refused(goca: Goca, evaluated: Path, segmented: Path, tmp_path: Path) -> None:
    def change(**changes: Any) -> None:
        facts = json.loads((evaluated / "run.json").read_text()) | changes
        (evaluated / "run.json").write_text(json.dumps(facts))

    (tmp_path / "empty").mkdir()
    assert "no folder" in goca("report", tmp_path / "nowhere").mistake()
    assert "has neither index.jsonl nor run.json" in goca("report", tmp_path / "empty").mistake()
    assert "is a folder: name a file (--out)" in goca("report", segmented, "--out", tmp_path).mistake()
    assert "name it index.html (--out)" in goca("report", segmented, "--out", segmented / "index.jsonl").mistake()
    assert "2000" in goca("report", segmented, "--limit", "3000").mistake()
    assert "is a file: name the folder" in goca("report", segmented / "index.jsonl").mistake()
    with pytest.raises(GocaError, match="1 image or more") as caught:
        write_report(segmented, segmented / "report.html", limit=0)
    assert caught.value.hint == "limit"
    (segmented / "index.jsonl").write_text("")
    assert "has no images yet" in goca("report", segmented).mistake()
    (segmented / "index.jsonl").write_text("nonsense\n")
    assert "line 1 is not an image and its results" in goca("report", segmented).mistake()
    whole = (evaluated / "run.json").read_text()
    with image_lines(evaluated) as lines:
        lines.append(ImageRecord("003", counts={"none": ((1, 99, 1),)}))
    assert "has lines of another run" in goca("report", evaluated).mistake()
    for changes, told in (
        ({"state": "running"}, "is not finished"),
        ({"settings": {"prompts": {}}}, "has generated images"),
        ({"settings": {"dataset": {}}}, "lacks part of a run"),
        ({"metrics": {}}, "lacks part of a run"),
    ):
        change(**changes)
        assert told in goca("report", evaluated).mistake()
        (evaluated / "run.json").write_text(whole)
    for damaged in ("[]", "{"):
        (evaluated / "run.json").write_text(damaged)
        told = goca("report", evaluated).mistake()
        assert "run.json is not" in told
        assert "--out" not in told
        assert "?;" not in told
    assert not (evaluated / "report.html").exists()


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\r\n\r\n{"a": 2}',
        b'{"a": 1}\r{"a": 2}\n{"a',
        b"",
        '{"a": 1}\n'.encode("utf-16"),
    ],
)
def test_lines_are_streamed_as_they_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lines.jsonl").write_bytes(content)
    lines = JsonLines[Any](tmp_path / "lines.jsonl", dict, dict, "a record")
    assert list(lines.stream()) == lines.read()
