"""The page of `goca serve` without a browser: what its controls mean, and what it answers to whom. `make check-web`."""

import asyncio
import http.client
import io
import json
import re
import struct
import threading
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from goca.errors import GocaError
from goca.exports import EXPORTERS
from goca.segmenter import Segmenter
from goca.web import guard, legend
from goca.web.controls import classes_of, numbers, whole
from goca.web.downloads import download
from goca.web.guard import Guard
from goca.web.messages import alert
from goca.web.page import application
from goca.web.results import Results, pixels
from goca.web.segment import choices_of

CAT = Path("examples/cat.png").read_bytes()


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained("bundled")


@pytest.fixture(scope="module")
def result(segmenter):
    return segmenter(CAT, ["cat", "grass", "sky"])


class TestControls:
    @pytest.mark.parametrize(
        ("tags", "classes"),
        [
            (["cat", "grass"], {"cat": (), "grass": ()}),
            (["cat, grass", " sky "], {"cat": (), "grass": (), "sky": ()}),
            (["cat: kitty, puss", "dog"], {"cat": ("kitty", "puss"), "dog": ()}),
        ],
    )
    def test_tags_are_classes(self, tags, classes):
        assert classes_of(tags) == classes

    @pytest.mark.parametrize("tags", [None, [], "cat", [" ", ","], ["cat", "cat"], [{"a": 1}] * 300, [None, ["x"], 7]])
    def test_tags_that_are_none(self, tags):
        with pytest.raises(GocaError) as caught:
            classes_of(tags)
        assert caught.value.hint == "classes"

    @pytest.mark.parametrize("text", ["x", "nan", "inf", "-1", "1000", "1,2,3", "1e99", [1, 2], "9" * 10_000])
    def test_numbers_that_are_none(self, text):
        with pytest.raises(GocaError, match="give a number from 0 to 999") as caught:
            numbers(text, "timestep", "timestep", 0, 999, 2)
        assert caught.value.hint == "timestep"

    def test_numbers(self):
        assert numbers(" 100, 50.5 ", "timestep", "timestep", 0, 999, 2) == (100.0, 50.5)
        assert numbers(None, "timestep", "timestep", 0, 999) == ()
        assert whole("7", "seed", "seed", 0, 9) == 7
        with pytest.raises(GocaError, match="not a whole number"):
            whole("7.5", "seed", "seed", 0, 9)

    def test_more(self):
        choices = choices_of("goca", "100 50", 3, True, "yes", "0.25")
        assert vars(choices) == {
            "recipe": "goca",
            "timestep": (100, 50),
            "seeds": 3,
            "flip": True,
            "refine_edges": False,
            "floor": 0.25,
        }
        with pytest.raises(GocaError, match="not a whole number"):
            choices_of("goca", "0.5", 1, False, False, "")

    def test_a_mistake_names_the_control_that_mends_it_and_is_text(self):
        assert "1 &lt;b&gt; 2 (Floor)" in alert(GocaError("1 <b>\n2", "floor"), {"floor": "Floor"})
        assert "unexpected KeyError" in alert(KeyError("x"), {})


class TestLegend:
    @pytest.mark.parametrize("name", ["<script>", "${1}", "{{x}}", '"onload="'])
    def test_names_are_text(self, segmenter, name):
        table = legend._row(name, 0.5, 0.25, legend.Style(True, "#ff0000"))
        assert name not in table
        assert "25.0%" in table

    @pytest.mark.parametrize(
        "value", [None, 1, {}, {"colour": "red", "shown": True}, {"colour": "#ff00001"}, {"colour": ["#ff0000"]}]
    )
    def test_a_style_that_is_none_hides_the_class(self, value):
        assert not legend.Style.of(value).shown

    @pytest.mark.parametrize("opacity", [None, -1, 2, float("nan"), "1", {}])
    def test_an_opacity_that_is_none_is_a_half(self, opacity):
        style = legend.Style.of({"colour": "#ff0000", "opacity": opacity, "shown": True})
        assert style == legend.Style(True, "#ff0000", 0.5)

    def test_styles_are_as_many_as_classes(self):
        one = {"colour": "#102030", "opacity": 1, "shown": True}
        assert [style.colour for style in legend.styles_of([one], 2)] == ["#102030", legend.default_styles(2)[1].colour]
        assert len(legend.styles_of([one] * 9, 2)) == 2
        assert legend.styles_of("x", 2) == legend.default_styles(2)

    def test_masks_are_drawn_as_chosen_without_segmenting_again(self, result):
        hidden = [legend.Style(False, "#0000ff", 1.0)] * 3
        image, same = legend.pair(result, hidden)
        np.testing.assert_array_equal(np.asarray(same), np.asarray(image))
        _, painted = legend.pair(result, [legend.Style(True, "#0000ff", 1.0), *hidden[1:]])
        cat = np.asarray(Image.fromarray(result.mask("cat")).resize(image.size, Image.Resampling.NEAREST))
        assert (np.asarray(painted)[cat] == [0, 0, 255]).all()
        np.testing.assert_array_equal(np.asarray(painted)[~cat], np.asarray(image)[~cat])


class TestResults:
    def test_the_oldest_run_is_given_up(self, result):
        results = Results("segment again", pixels, 2 * result.labels.size)
        tokens = [results.put({"cat": result}) for _ in range(3)]
        with pytest.raises(GocaError, match="segment again"):
            results.get(tokens[0])
        assert results.get(tokens[2]) == {"cat": result}

    @pytest.mark.parametrize("token", [None, "", "x"])
    def test_no_run_is_found_by_guessing(self, token):
        with pytest.raises(GocaError, match="segment again"):
            Results("segment again", pixels, 1).get(token)

    @pytest.mark.parametrize("form", EXPORTERS)
    def test_every_format_is_a_file(self, result, tmp_path, form):
        alone = download({"cat": result}, form, tmp_path)
        assert alone.name == f"cat{EXPORTERS[form].suffix}" + (".zip" if alone.suffix == ".zip" else "")
        both = download({"cat": result, "Katze": result}, form, tmp_path)
        assert both.suffix == ".zip" or form == "coco"
        if both.suffix == ".zip":
            with zipfile.ZipFile(both) as archive:
                assert archive.testzip() is None
                assert form == "label-studio" or any("Katze" in name for name in archive.namelist())
        # Nothing else stays, or the folder would fill up.
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == {alone, both}

    def test_there_is_no_such_format(self, result, tmp_path):
        with pytest.raises(GocaError) as caught:
            download({"cat": result}, "../x", tmp_path)
        assert caught.value.hint == "formats"


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse((await request.body())[:80] or b"page")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "uploads").mkdir()
    return tmp_path / "uploads"


@pytest.fixture
def client(folder):
    answering = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "POST", "PUT", "DELETE"])])
    return TestClient(Guard(answering, folder, frozenset({"127.0.0.1"})), base_url="http://127.0.0.1:9090")


JOIN = "/gradio_api/queue/join"


def refused(response, status):
    assert response.status_code == status
    (message,) = response.json().values()
    assert "\n" not in message
    return message


class TestGuard:
    def test_the_page_and_what_was_uploaded_are_there(self, client, folder):
        assert client.get("/").text == "page"
        assert client.get(f"/gradio_api/file={folder}/a.png").text == "page"
        assert client.get("/").headers["x-content-type-options"] == "nosniff"
        body = {"data": [[{"path": f"{folder}/a/b.png", "url": "http://127.0.0.1:9090/x"}], "http://a is text"]}
        assert client.post(JOIN, json=body).text.startswith('{"data":')

    @pytest.mark.parametrize(
        "path",
        [
            *("/config", "/gradio_api/info", "/gradio_api/openapi.json", "/docs", "/login", "/monitoring", "/svelte/x"),
            *("/gradio_api/proxy=http://169.254.169.254/", "/gradio_api/run/predict", "/gradio_api/vibe-code"),
            *("/gradio_api/stream/a/b/c/playlist-file", "/gradio_api/deep_link", "/gradio_api/app_id", "/etc/passwd"),
        ],
    )
    def test_other_routes_are_not(self, client, path):
        refused(client.get(path), 404)
        refused(client.post(path, json={}), 404)

    @pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
    def test_other_methods_are_not(self, client, method):
        refused(client.request(method, "/"), 404)

    @pytest.mark.parametrize(
        "path",
        [
            *(
                "/etc/passwd",
                "file:///etc/passwd",
                "http://169.254.169.254/latest",
                "https://example.org/a.png",
                "~",
                "",
            ),
            *("../x", "{folder}/../x", "{folder}/%2e%2e/x", "{folder}/link/passwd", "{folder}x/a", "a\0b", None, 7, {}),
            *("FILE:///etc/passwd", "//127.0.0.1/share/x", "\\\\127.0.0.1\\x", "data:image/png;base64,AAAA", ["/etc"]),
        ],
    )
    def test_a_file_that_was_not_uploaded_is_refused_wherever_it_stands(self, client, folder, path):
        (folder / "link").symlink_to("/etc")
        path = path.replace("{folder}", str(folder)) if isinstance(path, str) else path
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        for data in ([file], [[file]], [{"deep": [{"er": file}]}]):
            assert "not uploaded" in refused(client.post(JOIN, json={"data": data, "session_hash": "a"}), 403)
        if isinstance(path, str) and "\0" not in path:
            assert "not uploaded" in refused(client.get(f"/gradio_api/file={path}"), 403)

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
    def test_a_body_that_is_not_json(self, client, body):
        refused(client.post(JOIN, content=body), 400)

    def test_names_that_stand_for_this_machine_elsewhere(self, client):
        assert "evil" in refused(client.get("/", headers={"Host": "evil.example"}), 421)
        refused(client.get("/", headers={"Host": "[::"}), 421)
        refused(client.post(JOIN, json={}, headers={"Origin": "http://evil.example"}), 403)
        refused(client.post(JOIN, json={}, headers={"Origin": "null"}), 403)
        assert client.post(JOIN, json={}, headers={"Origin": "http://127.0.0.1:9090"}).status_code == 200

    def test_too_much_at_once(self, client, folder, monkeypatch):
        monkeypatch.setattr(guard, "MAX_BODY", 100)
        monkeypatch.setattr(guard, "MAX_UPLOAD", 1000)
        refused(client.post(JOIN, content=b"1" * 101), 413)
        refused(client.post(guard.UPLOAD, content=b"1" * 1001), 413)
        refused(client.post(guard.UPLOAD, content=iter([b"1"])), 411)
        monkeypatch.setattr(guard, "MAX_STORED", 1500)
        assert client.post(guard.UPLOAD, content=b"1").status_code == 200
        (folder / "a").write_bytes(bytes(501))
        assert "storage is full" in refused(client.post(guard.UPLOAD, content=b"1"), 507)

    def test_a_websocket_is_closed(self, folder):
        sent = []

        async def send(message):
            sent.append(message)

        asyncio.run(Guard(None, folder)({"type": "websocket"}, None, send))
        assert sent == [{"type": "websocket.close"}]


@contextmanager
def served(segmenter):
    """The page on a port of its own, as `goca serve` has it, and its folder."""
    with application(segmenter, frozenset({"127.0.0.1"})) as page:
        server = uvicorn.Server(uvicorn.Config(page, port=0, log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            threading.Event().wait(0.05)
        try:
            yield SimpleNamespace(port=server.servers[0].sockets[0].getsockname()[1], folder=page.folder)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def page(segmenter):
    with served(segmenter) as page:
        yield page


def asked(page, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=60)
    connection.request(method, path, body, headers or {})
    return connection.getresponse()


def uploaded(page, content, name="image.png"):
    body = b'--X\r\nContent-Disposition: form-data; name="files"; filename="%b"\r\n\r\n%b\r\n--X--\r\n' % (
        name.encode(),
        content,
    )
    answer = asked(page, "POST", guard.UPLOAD, body, {"Content-Type": "multipart/form-data; boundary=X"})
    return json.loads(answer.read())[0]


def configuration(page):
    content = asked(page, "GET", "/").read().decode()
    return json.loads(re.search(r"window\.gradio_config = (.*?);</script>", content)[1]), content


def told(page, component, event, data, event_data=None, session="abc"):
    """What is sent to a reader who does something, as text; the last message has the values of the components."""
    config, _ = configuration(page)
    (number,) = (each["id"] for each in config["components"] if each["props"].get("elem_id") == component)
    (function,) = (each["id"] for each in config["dependencies"] if [number, event] in each["targets"])
    body = json.dumps({"data": data, "event_data": event_data, "fn_index": function, "session_hash": session})
    assert asked(page, "POST", JOIN, body, {"Content-Type": "application/json"}).status == 200
    answer = asked(page, "GET", f"/gradio_api/queue/data?session_hash={session}").read().decode()
    assert "process_completed" in answer
    assert "Traceback" not in answer
    return answer


def alert_of(answer):
    """The one mistake that an answer tells of."""
    (line,) = set(re.findall(r'role=\\"alert\\">([^<]*)<', answer))
    assert "\\n" not in line
    return line


def segment(page, *paths, tags=("cat",), more=("goca-open", "", 1, False, False, "")):
    return told(page, "segment-run", "click", [[*map(file, paths)], list(tags), "automatic", *more])


def file(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def inspect(page, path, tags=("cat", "sky"), heads=True):
    return told(page, "inspect-run", "click", [path and file(path), list(tags), heads])


STATE = None  # what a browser sends for what the page itself remembers


def png_header(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def small_image():
    file = io.BytesIO()
    Image.new("RGB", (3, 3)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
class TestServed:
    def test_an_image_is_segmented_and_is_a_file_of_the_page_for_a_while(self, page):
        path = uploaded(page, CAT)
        assert Path(path).is_relative_to(page.folder)
        answer = segment(page, path)
        assert "opacity of cat" in answer
        shown = re.findall(r'"path":"([^"]+)"', answer)
        assert len(shown) >= 2
        assert all(Path(path).is_relative_to(page.folder) for path in shown)
        assert (
            asked(page, "GET", f"/gradio_api/file={shown[-1]}").headers["Content-Security-Policy"].endswith("sandbox")
        )

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is not an image"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n", "is not an image"),
            (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "is not an image"),
            (CAT[:900], "truncated"),
            (png_header(20_000, 20_000), "megapixels"),
            (small_image(), "16 px"),
        ],
        ids=["empty", "eps", "svg", "truncated", "bomb", "small"],
    )
    def test_hostile_images_are_a_line(self, page, content, message):
        path = uploaded(page, content, "a.png")
        for answer in (segment(page, path), inspect(page, path)):
            line = alert_of(answer)
            assert message in line
            assert str(page.folder) not in line

    @pytest.mark.parametrize(
        "name", ["../../../x.png", "/etc/x.png", "a\\b.png", "x" * 300 + ".png", "<b>.svg", ".goca"]
    )
    def test_an_upload_stays_in_the_folder_whatever_its_name(self, page, name):
        assert Path(uploaded(page, CAT, name)).resolve().is_relative_to(page.folder)

    @pytest.mark.parametrize("address", ["/etc/passwd", "http://127.0.0.1:{port}/", "file:///etc/passwd"])
    def test_gradio_itself_never_sees_an_address(self, page, address):
        file = {"path": address.format(port=page.port), "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"data": [[file]], "fn_index": 0, "session_hash": "x"})
        assert asked(page, "POST", JOIN, body, {"Content-Type": "application/json"}).status == 403

    @pytest.mark.parametrize(
        "more",
        [
            ("nonsense", "", 1, False, False, ""),
            ("goca-open", "", 10**9, False, False, ""),
            ("goca-open", {"a": 1}, 1, False, False, ""),
            (["goca"], "", "x", 7, {}, []),
        ],
    )
    def test_controls_that_a_browser_would_not_send_end_nothing(self, page, more):
        segment(page, uploaded(page, CAT), more=more)
        assert "opacity of cat" in segment(page, uploaded(page, CAT))

    def test_what_cannot_be_inspected_is_a_line(self, page):
        assert "drop one" in alert_of(inspect(page, None))
        assert "no classes" in alert_of(inspect(page, uploaded(page, CAT), tags=()))
        assert "twice" in alert_of(inspect(page, uploaded(page, CAT), tags=("cat", "cat")))

    @pytest.mark.parametrize(
        ("component", "event", "data", "event_data", "message"),
        [
            ("inspect-picture", "select", [STATE], {"index": [-5, 0]}, "no pixel (-1, 0)"),
            ("inspect-picture", "select", [STATE], {"index": [0, 10**30]}, "x goes from 0 to 127"),
            ("inspect-picture", "select", [STATE], {"index": ["1", [2]]}, "no pixel was clicked"),
            ("inspect-picture", "select", [STATE], {"index": [1.5, True, 3]}, "no pixel was clicked"),
            ("inspect-picture", "select", [STATE], None, "no pixel was clicked"),
            ("inspect-x", "input", [STATE, 128, 0], None, "give a number from 0 to 127 (x)"),
            ("inspect-y", "input", [STATE, 0, -1], None, "give a number from 0 to 127 (y)"),
            ("inspect-x", "input", [STATE, "nan", 0], None, "give a number from 0 to 127 (x)"),
            ("inspect-y", "input", [STATE, 0, "<b>"], None, "give a number from 0 to 127 (y)"),
            ("inspect-x", "input", [STATE, 0.5, {}], None, "not a whole number"),
            ("inspect-words", "input", [STATE, "raw"], {"word": "dog"}, "there is no class"),
            ("inspect-words", "input", [STATE, "raw"], {"word": {"a": [1]}}, "there is no class"),
            ("inspect-words", "input", [STATE, "raw"], [1, 2], "there is no class"),
        ],
    )
    def test_pixels_and_words_that_are_not_there(self, page, component, event, data, event_data, message):
        assert "layer by layer" in inspect(page, uploaded(page, CAT))
        assert message in alert_of(told(page, component, event, data, event_data))
        # Another reader has inspected nothing yet, and none gets at a result by what a browser may send.
        for state in (STATE, "x", {"path": f"{page.folder}/x"}):
            forged = [state, *data[1:]]
            answer = alert_of(told(page, component, event, forged, event_data, session="another"))
            assert answer == "the result has expired: inspect again"

    @pytest.mark.parametrize("stage", ["nonsense", {"a": 1}, 7])
    def test_a_stage_that_is_none_ends_nothing(self, page, stage):
        inspect(page, uploaded(page, CAT))
        assert "layer by layer" not in told(page, "inspect-stage", "input", [STATE, "cat", stage])
        assert "layer by layer" in told(page, "inspect-stage", "input", [STATE, "cat", "raw"])

    def test_a_body_with_a_number_that_is_none_is_refused(self, page):
        body = '{"data": [null, NaN, 0], "fn_index": 0, "session_hash": "x"}'
        assert asked(page, "POST", JOIN, body, {"Content-Type": "application/json"}).status == 400

    def test_without_heads_and_of_a_background_class(self, page):
        answer = inspect(page, uploaded(page, CAT), heads="yes")
        assert "head 0" not in answer
        assert "all heads" in answer
        answer = told(page, "inspect-words", "input", [STATE, "refined"], {"word": "road"})
        assert "road, shared: brightest is" in answer
        assert '"value":"shared"' in answer

    def test_steps_of_a_generation_that_are_not_there(self, page):
        for state in (STATE, "x"):
            answer = told(page, "generate-step", "input", [state, 1], session="another")
            assert alert_of(answer) == "the result has expired: generate again"
        told(page, "generate-run", "click", ["cat, grass", "0", "none", "2", ""])
        assert "Step 2 of 2" in told(page, "generate-step", "input", [STATE, 2])
        for step in (3, -1, "x", [1], {"a": 1}, 1e300):
            assert "Step 2 of 2" not in told(page, "generate-step", "input", [STATE, step])
        assert "not a whole number" in alert_of(told(page, "generate-step", "input", [STATE, 0.5]))
        animation = told(page, "generate-download", "click", [STATE])
        (path,) = set(re.findall(r'"path":"([^"]+)"', animation))
        with Image.open(path) as image:
            assert (image.format, image.n_frames) == ("GIF", 2)

    def test_nothing_is_an_api_and_nothing_comes_from_elsewhere(self, page):
        config, content = configuration(page)
        assert all(each["api_visibility"] == "private" for each in config["dependencies"])
        loaded = re.findall(r"""<(?:script|img|iframe)[^>]*src=["']([^"']+)|<link[^>]*href=["']([^"']+)""", content)
        assert loaded
        assert not [address for pair in loaded for address in pair if address.startswith(("http", "//"))]
        style = asked(page, "GET", "/theme.css").read().decode()
        assert not re.search(r"@import|url\(.?(https?:)?//", style)
        assert config["analytics_enabled"] is False
        assert config["run_history"] is False


@pytest.mark.slow
def test_files_are_removed_at_the_end(segmenter):
    with served(segmenter) as page:
        uploaded(page, CAT)
        assert any(page.folder.iterdir())
    assert not page.folder.exists()
