"""The backend for Label Studio: what it is sent and what it answers. tests/test_export.py reads its run lengths."""

import base64
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from formats import brush_mask

pytest.importorskip("starlette")

from starlette.testclient import TestClient

from goca.errors import GocaError
from goca.exports.objects import ObjectOptions
from goca.integrations import label_studio
from goca.integrations.label_studio import Backend, ImageSource, application
from goca.request import SegmentationRequest
from goca.segmenter import Segmenter

CAT = Path("examples/cat.png").read_bytes()


def uri(content):
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


CAT_URI = uri(CAT)
CONFIG = """
<View>
  <Image name="photo" value="$picture"/>
  <RectangleLabels name="box" toName="photo"><Label value="dog"/></RectangleLabels>
  <BrushLabels name="brush" toName="photo">
    <Label value=" sky"/><Label value="Pet" predicted_values="cat"/><Label value="Background"/><Label value="water"/>
  </BrushLabels>
</View>
"""
JSON = {"Content-Type": "application/json"}
BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;">]><View>&c;</View>'


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained("bundled", recipe="goca-open")


@pytest.fixture
def backend(segmenter):
    """backend(...): a client of one, and the lines that it reports."""

    def make(classes=None, objects=None, images=None):
        reports = []
        request = SegmentationRequest("", ())
        made = Backend(
            segmenter, request, classes, objects or ObjectOptions(), images or ImageSource(), "v1", reports.append
        )
        return SimpleNamespace(client=TestClient(application(made)), reports=reports)

    return make


@pytest.fixture
def studio():
    """A Label Studio that serves the cat where tasks have it, and what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            status = {"/data/upload/3/cat.png": 200, "/data/upload/moved": 302}.get(self.path, 404)
            self.send_response(status)
            self.send_header("Location", "/data/upload/3/cat.png")
            self.send_header("Content-Length", str(len(CAT) if status == 200 else 0))
            self.end_headers()
            if status == 200:
                self.wfile.write(CAT)

        def log_message(self, *unused):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", asked=asked)
        server.shutdown()


def request_of(*addresses, config=CONFIG):
    tasks = [{"id": 11 + index, "data": {"picture": address}} for index, address in enumerate(addresses)]
    return {"tasks": tasks, "label_config": config, "project": "1.2", "params": {"context": None}}


def refused(response, status):
    assert response.status_code == status
    (message,) = response.json().values()
    assert list(response.json()) == ["error"]
    assert message
    assert "\n" not in message
    assert len(message) <= 500
    return message


def test_predictions_are_the_masks_for_the_labels_of_the_project(backend, segmenter):
    response = backend().client.post("/predict", json=request_of(CAT_URI, CAT_URI))
    assert response.status_code == 200
    result = segmenter("examples/cat.png", {"sky": [], "Pet": ["cat"], "water": []})
    first, second = response.json()["results"]
    assert first == second
    assert first["model_version"] == "v1"
    strokes = {stroke["value"]["brushlabels"][0]: stroke for stroke in first["result"]}
    assert list(strokes) == [" sky", "Pet", "water"]  # as the project has them, spaces and all
    for label, stroke in strokes.items():
        assert (stroke["from_name"], stroke["to_name"], stroke["type"]) == ("brush", "photo", "brushlabels")
        assert stroke["score"] == pytest.approx(result.present[label.strip()].evidence)
        mask = brush_mask(stroke["value"]["rle"], (stroke["original_height"], stroke["original_width"]))
        np.testing.assert_array_equal(mask, result[label.strip()])


def test_instances_are_strokes_of_their_own(backend, segmenter):
    answer = backend(objects=ObjectOptions(instances=True, min_area=4)).client.post(
        "/predict", json=request_of(CAT_URI)
    )
    regions = segmenter("examples/cat.png", {"sky": [], "Pet": ["cat"], "water": []}).instances(min_area=4)
    (made,) = answer.json()["results"]
    assert len(made["result"]) == len(regions)


def test_only_some_labels_may_be_looked_for(backend):
    looking = backend(classes={"Pet": ["cat"], "rock": []}).client
    (made,) = looking.post("/predict", json=request_of(CAT_URI)).json()["results"]
    assert {stroke["value"]["brushlabels"][0] for stroke in made["result"]} == {"Pet"}
    none = backend(classes={"rock": []}).client.post("/setup", json={"schema": CONFIG})
    assert "none of the labels rock" in refused(none, 400)


def test_a_project_is_connected(backend):
    client = backend().client
    assert client.get("/health").json()["status"] == "UP"
    sent = {"project": "1.2", "schema": CONFIG, "hostname": "http://localhost:8080", "access_token": "secret"}
    assert client.post("/setup", json=sent).json() == {"model_version": "v1"}


def test_files_come_from_label_studio_with_its_token(backend, studio):
    source = ImageSource(f"{studio.url}/", "secret")
    for address in ("/data/upload/3/cat.png", f"{studio.url}/data/upload/3/cat.png"):
        assert source.read(address) == CAT
    assert source.read(CAT_URI) == CAT
    assert studio.asked == [("/data/upload/3/cat.png", "Token secret")] * 2
    ImageSource(studio.url, "a.b.c").read("/data/upload/3/cat.png")
    assert studio.asked[-1][1] == "Bearer a.b.c"
    with pytest.raises(GocaError, match="HTTP 404 for the image"):
        source.read("/data/local-files/?d=photos/a%20b.jpg")
    assert studio.asked[-1][0] == "/data/local-files/?d=photos/a%20b.jpg"
    with pytest.raises(GocaError, match="HTTP 302"):
        source.read("/data/upload/moved")
    assert studio.asked[-1][0] == "/data/upload/moved"
    answer = backend(images=source).client.post("/predict", json=request_of("/data/upload/3/cat.png"))
    assert answer.json()["results"][0]["result"]


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "etc/passwd",
        "C:\\cat.png",
        "/data/../api/users",
        "/data/%2e%2e/api/users",
        "//127.0.0.1:1/data/cat.png",
        "http://127.0.0.1:1/data/cat.png",
        "http://localhost/data/cat.png",
        "https://{studio}/data/upload/3/cat.png",
        "http://user@{studio}/data/upload/3/cat.png",
        "http://{studio}@127.0.0.1:1/data/cat.png",
        "http://{studio}\\@127.0.0.1:1/data/cat.png",
        "http://[::1/data/cat.png",
        "http://127.0.0.1:99999999/data/cat.png",
        "s3://bucket/cat.png",
        "",
        "\ud800",
    ],
)
def test_nothing_else_is_asked_for(backend, studio, address):
    body = json.dumps(request_of(address.format(studio=studio.url.removeprefix("http://"))))
    for images in (ImageSource(studio.url, "secret"), ImageSource()):
        served = backend(images=images)
        response = served.client.post("/predict", content=body, headers=JSON)
        assert "secret" not in refused(response, 403)
        assert len(served.reports) == 1
    assert not studio.asked


def config_of(labels="", control="BrushLabels", image='<Image name="photo" value="$picture"/>'):
    return f'<View>{image}<{control} name="a" toName="photo">{labels}</{control}></View>'


def labels_of(count):
    return "".join(f'<Label value="thing {number}"/>' for number in range(count))


CAT_LABEL = '<Label value="cat"/>'


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "column 2 (char 1)): send a JSON object in UTF-8"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b"[]", 400, "not a JSON object"),
        (b"\xff\xfe\x00", 400, "the request is not JSON (it is not text in UTF-8)"),
        (b'{"tasks": 1e999}', 400, "not a number that JSON can hold"),
        (b"{}", 400, "the request has no tasks"),
        ({"tasks": []}, 400, "the request has no tasks"),
        ({"tasks": [7]}, 400, "the request has no tasks"),
        (request_of(CAT_URI, config=None), 400, "the labelling configuration is missing"),
        (request_of(CAT_URI, config="<View>"), 400, "is not XML"),
        (request_of(CAT_URI, config="\0"), 400, "is not XML"),
        (request_of(CAT_URI, config="\ud800"), 400, "is not XML"),
        (request_of(CAT_URI, config=BOMB), 400, "document type"),
        (request_of(CAT_URI, config="<a>" * 99_999), 400, "is not XML"),
        (request_of(CAT_URI, config="<a>" * 99_999 + "</a>" * 99_999), 400, "no <BrushLabels"),
        (request_of(CAT_URI, config=config_of(CAT_LABEL, control="PolygonLabels")), 400, "no <BrushLabels"),
        (request_of(CAT_URI, config=config_of(CAT_LABEL, image="")), 400, "no <BrushLabels"),
        (request_of(CAT_URI, config=config_of()), 400, "no <BrushLabels"),
        (request_of(CAT_URI, config=config_of('<Label value="zebra"/>')), 422, "zebra"),
        (request_of(CAT_URI, config=config_of(labels_of(700))), 422, "thing 1"),
        (request_of(CAT_URI, config=config_of(labels_of(1001))), 400, "use at most 1000"),
        (request_of(CAT_URI, config=config_of('<Label value="-"/>')), 422, "is not a name"),
        (request_of(None), 400, "the task has no image"),
        ({"tasks": [{"id": 1, "data": 3}], "label_config": CONFIG}, 400, "the task has no image"),
        (request_of("data:image/png;base64,%%%"), 400, "not in base64"),
        (request_of("data:,cat"), 400, "not in base64"),
        (request_of(uri(CAT[: len(CAT) // 2])), 422, "the image"),
        (request_of("data:text/plain;base64,Y2F0"), 422, "the image is not an image that can be read"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(backend, body, status, message):
    served = backend()
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = served.client.post("/predict", content=content, headers=JSON)
    assert message in refused(response, status)
    assert len(served.reports) == 1


def test_requests_are_of_limited_size_and_of_json(backend, monkeypatch):
    monkeypatch.setattr(label_studio, "MAX_BYTES", 1000)
    served = backend()
    assert "larger than" in refused(served.client.post("/predict", json=request_of(CAT_URI)), 413)
    parts = (b"x" * 300 for _ in range(9))
    assert "larger than" in refused(served.client.post("/predict", content=parts, headers=JSON), 413)
    # What a page in a browser may send anywhere.
    assert "application/json" in refused(served.client.post("/predict", content=b"{}"), 415)


def test_an_image_that_is_too_large_is_not_read_to_its_end(studio, monkeypatch):
    monkeypatch.setattr(label_studio, "MAX_BYTES", len(CAT) - 1)
    with pytest.raises(GocaError, match="the image is larger than"):
        ImageSource(studio.url).read("/data/upload/3/cat.png")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/predict", 405), ("POST", "/train", 404)])
def test_other_routes_are_refused_in_one_line(backend, method, path, status):
    assert f"no {method} {path}" in refused(backend().client.request(method, path), status)


def test_a_task_that_fails_costs_none_of_the_others(backend):
    served = backend()
    broken, made = served.client.post("/predict", json=request_of("file:///cat.png", CAT_URI)).json()["results"]
    assert broken["result"] == []
    assert made["result"]
    (line,) = served.reports
    assert line.startswith("left out: task 11: ")


def test_our_own_faults_are_told_and_do_not_end_the_server(backend, monkeypatch):
    served = backend()
    monkeypatch.setattr(Segmenter, "stream", lambda *unused: 1 / 0)
    assert "ZeroDivisionError" in refused(served.client.post("/predict", json=request_of(CAT_URI)), 500)
    monkeypatch.undo()
    assert served.client.post("/predict", json=request_of(CAT_URI)).status_code == 200


@pytest.mark.parametrize(
    "url", ["localhost:8080", "ftp://a", "http://", "http://a:b", "http://me@a", "http://a?b", "http://[a"]
)
def test_an_address_of_label_studio_is_checked(url):
    with pytest.raises(GocaError, match="is not the address of a Label Studio") as caught:
        ImageSource(url)
    assert caught.value.hint == "label_studio_url"


class TestCommand:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--classes", "cat"), "--classes only applies to --label-studio"),
            (("--label-studio", "--label-studio-url", "x"), "(--label-studio-url)"),
            (("--label-studio", "--host", "300.1.2.3"), "(--host)"),
            (("--label-studio", "--classes", ","), "has no classes"),
        ],
    )
    def test_mistakes_are_told_before_a_model_is_loaded(self, goca, options, message):
        assert message in goca("serve", *options, "--model", "bundled").mistake()

    @pytest.mark.parametrize(
        ("package", "options", "extra"), [("gradio", (), "web"), ("starlette", ("--label-studio",), "serve")]
    )
    def test_what_is_missing_is_named(self, goca, monkeypatch, package, options, extra):
        monkeypatch.setitem(sys.modules, package, None)
        assert f'pip install "goca[{extra}]"' in goca("serve", *options).mistake()

    def test_a_port_that_is_taken(self, goca, studio):
        port = studio.url.rpartition(":")[2]
        assert "(--port)" in goca("serve", "--label-studio", "--port", port).mistake()

    @pytest.mark.slow
    def test_it_answers_until_ctrl_c(self):
        command = [sys.executable, "-c", "from goca.cli.main import main; raise SystemExit(main())", "serve"]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(
            [*command, "--label-studio", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            try:
                url = re.search(r"http://\S+:\d+", process.stdout.readline())[0]
                sent = urllib.request.Request(f"{url}/predict", json.dumps(request_of(CAT_URI)).encode(), JSON)
                with urllib.request.urlopen(sent, timeout=120) as response:
                    assert json.load(response)["results"][0]["result"]
                # Ctrl-C does not wait for what would take minutes.
                long = urllib.request.Request(f"{url}/predict", json.dumps(request_of(*[CAT_URI] * 999)).encode(), JSON)

                def send():
                    with suppress(OSError):
                        urllib.request.urlopen(long)

                waiting = threading.Thread(target=send)
                waiting.start()
                time.sleep(1)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=60)
                waiting.join(timeout=60)
            finally:
                process.kill()
        assert (process.returncode, out, err) == (130, "", "goca: stopped\n")
