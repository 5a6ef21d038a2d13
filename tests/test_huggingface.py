"""goca as a zero-shot pipeline of transformers, and as a Space."""

import base64
import http.server
import io
import runpy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from goca import GocaError, Segmenter
from goca.integrations.huggingface import ZeroShotImageSegmentation, pipeline

ROOT = Path(__file__).parent.parent
CAT = ROOT / "examples" / "cat.png"
LABELS = ["cat", "sky", "water", "dog"]
APP = ROOT / "integrations" / "huggingface" / "space" / "app.py"


@pytest.fixture(scope="module")
def segment() -> ZeroShotImageSegmentation:
    return pipeline(model="bundled", device=-1, batch=2)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the examples."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(CAT.parent))

        def log_message(self, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def as_arrays(masks: list[dict[str, Any]]) -> list[tuple[str, float, bytes]]:
    return [(item["label"], item["score"], item["mask"].tobytes()) for item in masks]


def test_masks_are_those_of_the_segmenter(segment: ZeroShotImageSegmentation) -> None:
    masks = segment(str(CAT), candidate_labels=LABELS)
    result = Segmenter.from_pretrained("bundled")(CAT, LABELS)
    assert {item["label"] for item in masks} == {"cat", "sky", "water"}
    for item in masks:
        assert isinstance(item["mask"], Image.Image)
        assert item["mask"].mode == "L"
        assert item["score"] == result.present[item["label"]].evidence
        np.testing.assert_array_equal(np.asarray(item["mask"]) == 255, result[item["label"]])
        assert set(np.unique(item["mask"])) <= {0, 255}


def test_whatever_transformers_takes(segment: ZeroShotImageSegmentation, url: str) -> None:
    content = base64.b64encode(CAT.read_bytes()).decode()
    expected = as_arrays(segment(CAT, LABELS))
    for image in (
        str(CAT),
        Image.open(CAT),
        f"{url}/cat.png",
        f"HTTP{url[4:]}/cat.png",
        f"data:image/png;base64,{content}",
        content,
    ):
        assert as_arrays(segment(image, candidate_labels="cat, sky,water ,dog")) == expected
    assert as_arrays(segment({"image": CAT, "candidate_labels": LABELS})) == expected
    assert as_arrays(segment(io.BytesIO(CAT.read_bytes()), LABELS)) == expected


def test_several_images(segment: ZeroShotImageSegmentation) -> None:
    alone = [segment(CAT, LABELS), segment(CAT, ["sky", "water"])]
    several = segment([str(CAT), Image.open(CAT), CAT], [LABELS, ["sky", "water"], LABELS])
    assert list(map(as_arrays, several)) == [as_arrays(alone[index]) for index in (0, 1, 0)]
    lazy = segment(iter([CAT, {"image": CAT, "candidate_labels": ["sky", "water"]}]), LABELS)
    assert isinstance(lazy, Iterator)
    assert [[item["label"] for item in masks] for masks in lazy] == [
        [item["label"] for item in masks] for masks in alone
    ]


def test_labels_are_any_list_of_names(segment: ZeroShotImageSegmentation) -> None:
    expected = as_arrays(segment(CAT, LABELS))
    for labels in (np.array(LABELS), tuple(LABELS), iter(LABELS), dict.fromkeys(LABELS).keys()):
        assert as_arrays(segment(CAT, labels)) == expected
    both = segment([CAT, CAT], np.array([["cat", "sky"], ["sky", "water"]]))
    assert [{item["label"] for item in masks} for masks in both] == [{"cat", "sky"}, {"sky", "water"}]
    lazy = segment(iter([CAT, CAT]), iter(LABELS))
    assert [as_arrays(masks) for masks in lazy] == [expected] * 2


def test_a_data_set_is_read_lazily(segment: ZeroShotImageSegmentation) -> None:
    class Rows:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"image": [CAT, "nowhere.png"][index]}

    masks = segment(Rows(), LABELS)
    assert isinstance(masks, Iterator)
    with pytest.raises(GocaError, match=r"nowhere\.png"):
        list(masks)


def test_base64_of_any_length_is_told_from_a_path(
    segment: ZeroShotImageSegmentation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Image.open(CAT) as image:
        small = image.convert("RGB").resize((32, 32))
    for kind in ("PNG", "JPEG"):
        file = io.BytesIO()
        small.save(file, kind)
        text = base64.b64encode(file.getvalue()).decode()
        assert len(text) < 4096
        expected = as_arrays(segment(file.getvalue(), LABELS))
        lines = base64.encodebytes(file.getvalue()).decode()
        for given in (text, lines, f"DATA:image/{kind.lower()};base64,{text}"):
            assert as_arrays(segment(given, LABELS)) == expected
    monkeypatch.chdir(tmp_path)
    small.save("aGVsbG8h", "PNG")  # a name that is base64, of no image
    assert as_arrays(segment("aGVsbG8h", LABELS)) == as_arrays(segment(small, LABELS))


def test_threshold_and_top_k(segment: ZeroShotImageSegmentation) -> None:
    masks = segment(CAT, LABELS)
    scores = sorted((item["score"] for item in masks), reverse=True)
    kept = {item["label"] for item in segment(CAT, LABELS, threshold=scores[1])}
    assert kept == {item["label"] for item in masks if item["score"] >= scores[1]} != set()
    assert [item["score"] for item in segment(CAT, LABELS, top_k=2)] == scores[:2]


def test_mistakes_are_one_line(segment: ZeroShotImageSegmentation, url: str) -> None:
    for image, labels, message in (
        (CAT, None, "no labels"),
        (CAT, " , ", "no labels"),
        (CAT, np.array([]), "no labels"),
        (CAT, 5, "5 is not a list of labels"),
        (CAT, b"cat", "is not a list of labels"),
        (CAT, [5], "5 is not the name of a label"),
        (CAT, [["cat"]], "a list of such lists needs a list of images"),
        ({"image": CAT, "candidate_labels": 5}, None, "5 is not a list of labels"),
        ({"candidate_labels": LABELS}, None, "the image is missing"),
        ("nowhere.png", LABELS, "nowhere.png"),
        (base64.b64encode(bytes(9999)).decode(), LABELS, "neither a path nor a complete base64 image"),
        (f"{url}/nowhere.png", LABELS, "cannot fetch the image at http://"),
        ("http://[", LABELS, "cannot fetch the image at http://"),
        ([CAT, CAT], [["cat"]], "1 lists of labels were given for 2 images"),
    ):
        with pytest.raises(GocaError, match=message) as raised:
            segment(image, labels)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("threshold", [None, "a", 2, -0.1, float("nan")]),
        ("top_k", [0, "2", 1.5]),
        ("timeout", ["a", 0, -1]),
        ("batch_size", [8]),
        ("num_workers", [1]),
    ],
)
def test_arguments_of_a_call_are_checked(segment: ZeroShotImageSegmentation, argument: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(GocaError, match=argument):
            segment(CAT, LABELS, **{argument: value})


def test_the_factory_is_called_as_transformers_is(segment: ZeroShotImageSegmentation) -> None:
    other = pipeline("zero-shot-image-segmentation", model="bundled", device="cpu", torch_dtype="float32", batch_size=3)
    assert other.segmenter.batch == 3
    assert other.segmenter.plan.dtype == "float32"
    assert as_arrays(other(CAT, LABELS)) == as_arrays(segment(CAT, LABELS))
    assert pipeline("bundled", dtype="auto").segmenter.plan == segment.segmenter.plan


def test_options_that_cannot_be_honoured_are_refused(sd15: Any) -> None:
    for given, options, message in (
        ((sd15,), {"device": "cuda:7"}, "keeps its own device"),
        ((sd15,), {"device": -1}, "keeps its own device"),
        ((sd15,), {"torch_dtype": "float16"}, "keeps its own dtype"),
        (("bundled",), {"tokenizer": None}, "no option tokenizer: choose from recipe, "),
        (("bundled",), {"batch": 2, "batch_size": 3}, "batch_size and batch are the same"),
        (("image-to-text", "bundled"), {}, 'the task "image-to-text" is not supported'),
    ):
        with pytest.raises(GocaError, match=message):
            pipeline(*given, **options)


def test_a_loaded_pipeline(sd15: Any) -> None:
    segment = pipeline(sd15, size=32, recipe="vanilla")
    masks = segment(Image.open(CAT), ["cat", "sky"], background="none")
    result = Segmenter.from_pipeline(sd15, size=32, recipe="vanilla")(CAT, ["cat", "sky"], background="none")
    assert as_arrays(masks) == as_arrays(result.to_transformers())


def test_the_spaces_function() -> None:
    image, annotations = runpy.run_path(str(APP))["segment"](CAT.read_bytes(), LABELS)
    masks = pipeline()(CAT, LABELS)
    assert image.size == masks[0]["mask"].size
    assert {label.split()[0] for _, label in annotations} == {item["label"] for item in masks}
    for opacity, label in annotations:
        (mask,) = (item["mask"] for item in masks if item["label"] == label.split()[0])
        np.testing.assert_array_equal(opacity > 0, np.asarray(mask) > 0)


def test_the_space_answers_and_says_what_is_wrong() -> None:
    gradio = pytest.importorskip("gradio")
    blocks = runpy.run_path(str(APP))["page"]()
    (answer,) = (function.fn for function in blocks.fns.values() if function.api_name == "segment")
    image, annotations = answer(str(CAT), LABELS)
    shown = gradio.AnnotatedImage().postprocess((image, annotations))
    assert [annotation.label.split()[0] for annotation in shown.annotations] == ["cat", "sky", "water"]
    for path, names in ((None, LABELS), (str(CAT), []), (str(CAT), ["zebra"]), (str(APP), LABELS)):
        with pytest.raises(gradio.Error) as raised:
            answer(path, names)
        assert "\n" not in raised.value.message
