"""The tagger that asks a server, against a server of the test's own."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Outcome
from PIL import Image

from goca import GocaError
from goca.evaluation.datasets.base import Category, Dataset, Sample
from goca.tagging import Means, prepare, tagger_named
from goca.tagging.base import Estimate
from goca.tagging.captions import Captions, read
from goca.tagging.endpoint import ATTEMPTS, Declined, Endpoint
from goca.tagging.instruction import instruction
from goca.tagging.vlm import VLM

KEY = "sk-not-for-your-eyes"
Goca = Callable[..., Outcome]
Answer = tuple[int, dict[str, str], bytes]


def said(text: object, **more: object) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text, **more}}]}).encode()


def shown(question: dict[str, Any]) -> Image.Image:
    """The image of a question."""
    url = question["messages"][0]["content"][1]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def failed(status: int, message: str = "no", **headers: str) -> Answer:
    return status, headers, json.dumps({"error": {"message": message}}).encode()


class Server:
    """Answers with `answer(number of the request, the request)`, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.most = self._now = 0
        self.answer: Callable[[int, dict[str, Any]], Answer] = lambda number, question: (200, {}, said("cat, sky"))
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.asked)
                    outer.asked.append(content)
                    outer.headers.append(self.headers)
                    outer.paths.append(self.path)
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                status, headers, body = outer.answer(number, content)
                with outer._lock:
                    outer._now -= 1
                try:
                    self.send_response(status)
                    for name, value in {**headers, "Content-Length": str(len(body))}.items():
                        self.send_header(name.replace("_", "-"), value)
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # whoever asked has lost patience

            def do_GET(self) -> None:
                outer.headers.append(self.headers)
                self.send_error(404)

            def log_message(self, *unused: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


class Hasty(threading.Event):
    """Waits for nothing, and remembers how long it should have."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout or 0)
        return self.is_set()


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    samples = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.full((37 + index, 53, 3), 40 * index, np.uint8)).save(path)
        samples.append(Sample(f"p{index}", path, lambda: np.zeros((37, 53), np.uint16)))
    return Dataset("toy", "val", (Category("Cat"), Category("sky")), tuple(samples), True, np.zeros((3, 3), np.uint8))


@pytest.fixture
def vlm(server: Server, tmp_path: Path) -> VLM:
    return VLM("m-1", Endpoint(server.base, KEY, timeout=5.0, stop=Hasty()), tmp_path / "captions.jsonl", together=3)


def pauses(vlm: VLM) -> list[float]:
    assert isinstance(vlm.endpoint.stop, Hasty)
    return vlm.endpoint.stop.pauses


def test_an_image_is_shown_and_its_caption_kept(server: Server, vlm: VLM, dataset: Dataset) -> None:
    server.answer = lambda number, question: (200, {}, said("<think>a cat?\nyes</think>\n Cat, (sky, cloud). \n"))
    assert vlm.tag(dataset.samples[2], dataset) == "Cat, (sky, cloud)."
    (asked,) = server.asked
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert asked["model"] == "m-1"
    assert asked["temperature"] == 0
    text, image = asked["messages"][0]["content"]
    assert text == {"type": "text", "text": instruction(dataset)}
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert shown(asked).size == (53, 39)
    assert abs(int(np.asarray(shown(asked)).mean()) - 80) < 3
    assert vlm.name == "vlm m-1"
    (entry,) = read(vlm.path)
    assert (entry.dataset, entry.id, entry.tagger, entry.caption) == ("toy", "p2", "vlm m-1", "Cat, (sky, cloud).")


def test_large_images_are_shown_smaller(server: Server, vlm: VLM, dataset: Dataset, tmp_path: Path) -> None:
    Image.new("RGB", (2048, 512)).save(tmp_path / "wide.png")
    vlm.tag(Sample("wide", tmp_path / "wide.png", dataset.samples[0].truth), dataset)
    assert shown(server.asked[0]).size == (1024, 256)


def test_the_instruction(dataset: Dataset) -> None:
    told = instruction(dataset)
    assert "at most 20 words" in told
    assert "cat, sky" in told
    context = Dataset("context", "val", dataset.categories, (), True, dataset.palette)
    assert "at most 35 words" in instruction(context)


def test_many_images_go_together_and_none_is_asked_twice(
    server: Server, vlm: VLM, dataset: Dataset, tmp_path: Path
) -> None:
    def answer(number: int, question: dict[str, Any]) -> Answer:
        time.sleep(0.1)
        return 200, {}, said(f"noun {number}")

    server.answer = answer
    vlm.tag(dataset.samples[1], dataset)
    done: list[int] = []
    prepare(vlm, dataset.samples, dataset, lambda: done.append(1))
    assert len(done) == 5
    assert len(server.asked) == 5
    assert 2 <= server.most <= 3
    captions = [vlm.tag(sample, dataset) for sample in dataset.samples]
    assert captions[1] == "noun 0"
    assert sorted(captions) == [f"noun {number}" for number in range(5)]
    # A second run knows them all, a file of captions has them, and neither asks.
    again = VLM("m-1", Endpoint("http://127.0.0.1:1"), vlm.path)
    prepare(again, dataset.samples, dataset)
    assert [again.tag(sample, dataset) for sample in dataset.samples] == captions
    saved = Captions(vlm.path)
    assert [saved.tag(sample, dataset) for sample in dataset.samples] == captions
    assert saved.name.startswith("captions captions.jsonl (vlm m-1) ")
    assert len(server.asked) == 5


def test_a_run_that_was_killed_goes_on(server: Server, vlm: VLM, dataset: Dataset) -> None:
    prepare(vlm, dataset.samples[:3], dataset)
    # Killed while it wrote the third answer.
    content = vlm.path.read_bytes()
    vlm.path.write_bytes(content[:-20])
    lost = {"p0", "p1", "p2"} - {entry.id for entry in read(vlm.path)}
    assert len(lost) == 1
    again = VLM("m-1", vlm.endpoint, vlm.path)
    prepare(again, dataset.samples, dataset)
    assert len(server.asked) == 3 + 3
    assert {entry.id for entry in read(vlm.path)} == {"p0", "p1", "p2", "p3", "p4"}
    assert len(vlm.path.read_bytes().splitlines()) == 5


def test_patience(server: Server, vlm: VLM, dataset: Dataset) -> None:
    answers: list[Answer] = [
        failed(429, Retry_After="7"),
        failed(503),
        failed(429, Retry_After=formatdate(time.time() + 100, usegmt=True)),
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, said("cat")),
    ]
    server.answer = lambda number, question: answers[number]
    assert vlm.tag(dataset.samples[0], dataset) == "cat"
    assert pauses(vlm) == [7, 2, pytest.approx(100, abs=5), 8]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (failed(500, "on fire"), "HTTP 500, on fire"),
        ((200, {}, b"<html>hello</html>"), "no chat completion"),
        ((200, {}, b'{"choices": []}'), "no chat completion"),
        ((200, {}, b'{"choices": [{"message": "cat"}]}'), "no chat completion"),
    ],
)
def test_patience_ends(server: Server, vlm: VLM, dataset: Dataset, answer: Answer, reason: str) -> None:
    server.answer = lambda number, question: answer
    with pytest.raises(GocaError, match=f"in 6 attempts .*{reason}") as caught:
        vlm.tag(dataset.samples[0], dataset)
    assert not isinstance(caught.value, Declined)
    assert len(server.asked) == ATTEMPTS == 6
    assert pauses(vlm) == [1, 2, 4, 8, 16]
    assert vlm.path.read_bytes() == b""
    # It ends the run.
    with pytest.raises(GocaError, match=reason):
        prepare(vlm, dataset.samples, dataset)


@pytest.mark.parametrize(
    ("body", "attempts", "reason"),
    [
        (said(None), 6, r"in 6 attempts \(its answer is empty\)"),
        (said("  "), 6, r"in 6 attempts \(its answer is empty\)"),
        (said(None, refusal=""), 6, r"in 6 attempts \(its answer is empty\)"),
        (b'{"choices": [{"message": {"role": "assistant"}}]}', 6, r"in 6 attempts \(its answer is empty\)"),
        (said(None, refusal="I tell no\ntemperature."), 1, r"declined \(I tell no temperature\.\)"),
    ],
)
def test_a_model_that_will_not_speak_of_one_image(
    body: bytes, attempts: int, reason: str, server: Server, vlm: VLM, dataset: Dataset
) -> None:
    server.answer = lambda number, question: (200, {}, body if shown(question).height == 37 + 2 else said("cat"))
    done: list[int] = []
    prepare(vlm, dataset.samples, dataset, lambda: done.append(1))
    assert len(done) == 5
    assert sorted(entry.id for entry in read(vlm.path)) == ["p0", "p1", "p3", "p4"]
    assert len(server.asked) == 4 + attempts
    assert pauses(vlm) == [1, 2, 4, 8, 16][: attempts - 1]
    with pytest.raises(Declined, match=reason):
        vlm.tag(dataset.samples[2], dataset)
    # It is not asked again, and the temperature stays: the model spoke of it, not the server.
    assert len(server.asked) == 4 + attempts
    assert all(question["temperature"] == 0 for question in server.asked)


def test_one_unreadable_image_does_not_stop_the_others(server: Server, vlm: VLM, dataset: Dataset) -> None:
    path = dataset.samples[3].image
    Image.effect_noise((59, 61), 50).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:700])
    done: list[int] = []
    prepare(vlm, dataset.samples, dataset, lambda: done.append(1))
    assert len(done) == 5
    assert sorted(entry.id for entry in read(vlm.path)) == ["p0", "p1", "p2", "p4"]
    with pytest.raises(GocaError, match=r"3\.png cannot be read"):
        vlm.tag(dataset.samples[3], dataset)
    assert len(server.asked) == 4


def test_nothing_is_paid_for_what_cannot_be_kept(server: Server, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    vlm = VLM("m", Endpoint(server.base), tmp_path / "file" / "captions.jsonl")
    assert vlm.estimate(dataset.samples, dataset).images == 5
    with pytest.raises(GocaError, match="cannot write the captions"):
        prepare(vlm, dataset.samples, dataset)
    with pytest.raises(GocaError, match="cannot write the captions"):
        vlm.tag(dataset.samples[0], dataset)
    assert not server.asked


def test_silence_is_an_answer_too(server: Server, dataset: Dataset, tmp_path: Path) -> None:
    def answer(number: int, question: dict[str, Any]) -> Answer:
        if number == 0:
            time.sleep(1.0)
        return 200, {}, said("cat")

    server.answer = answer
    endpoint = Endpoint(server.base, timeout=0.3, stop=Hasty())
    assert VLM("m", endpoint, tmp_path / "captions.jsonl").tag(dataset.samples[0], dataset) == "cat"
    assert len(server.asked) == 2
    assert "Authorization" not in server.headers[0]


def test_nobody_there(dataset: Dataset, tmp_path: Path) -> None:
    nobody = VLM("m", Endpoint("http://127.0.0.1:1", KEY, stop=Hasty()), tmp_path / "captions.jsonl")
    with pytest.raises(GocaError, match=r"127.0.0.1:1 did not answer in 6 attempts .*refused"):
        nobody.tag(dataset.samples[0], dataset)


def test_too_long_a_pause_ends_the_run(server: Server, vlm: VLM, dataset: Dataset) -> None:
    server.answer = lambda number, question: failed(429, Retry_After="3600")
    with pytest.raises(GocaError, match="3600 s: start again later"):
        vlm.tag(dataset.samples[0], dataset)
    assert len(server.asked) == 1


def test_a_wrong_key_ends_the_run_and_is_not_shown(
    server: Server, vlm: VLM, dataset: Dataset, capfd: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda number, question: failed(401, f"Incorrect API key: {KEY}")
    with pytest.raises(GocaError, match=r"HTTP 401, Incorrect API key: \*\*\*.*check OPENAI_API_KEY") as caught:
        prepare(vlm, dataset.samples, dataset)
    assert len(server.asked) <= 3
    # The cause is told, also where others were waiting for their next attempt; and then one may try again.
    server.answer = lambda number, question: failed(500) if number % 2 else failed(404, "no such model")
    server.asked.clear()
    slow = VLM("m-1", Endpoint(server.base), vlm.path, together=2)
    with pytest.raises(GocaError, match="no such model"):
        prepare(slow, dataset.samples, dataset)
    assert not slow.endpoint.stop.is_set()
    out = capfd.readouterr()
    assert KEY not in f"{caught.value}{vlm!r}{vlm.endpoint}{out.out}{out.err}{vlm.path.read_text()}"


def test_a_redirection_does_not_get_the_key(server: Server, vlm: VLM, dataset: Dataset) -> None:
    server.answer = lambda number, question: (302, {"Location": f"{server.base}/elsewhere"}, b"")
    with pytest.raises(GocaError, match="HTTP 404"):
        vlm.tag(dataset.samples[0], dataset)
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {KEY}", None]


def test_one_declined_image_does_not_stop_the_others(server: Server, vlm: VLM, dataset: Dataset) -> None:
    def answer(number: int, question: dict[str, Any]) -> Answer:
        return failed(400, "not such an image") if shown(question).height == 37 + 2 else (200, {}, said("cat"))

    server.answer = answer
    prepare(vlm, dataset.samples, dataset)
    assert len(read(vlm.path)) == 4
    with pytest.raises(Declined, match="not such an image"):
        vlm.tag(dataset.samples[2], dataset)
    assert len(server.asked) == 5


def test_a_model_that_takes_no_temperature(server: Server, vlm: VLM, dataset: Dataset) -> None:
    def answer(number: int, question: dict[str, Any]) -> Answer:
        return failed(400, "temperature is not supported") if "temperature" in question else (200, {}, said("cat"))

    server.answer = answer
    for sample in dataset.samples[:2]:
        assert vlm.tag(sample, dataset) == "cat"
    assert len(server.asked) == 3


def test_an_estimate(server: Server, vlm: VLM, dataset: Dataset, tmp_path: Path) -> None:
    words = -(-len(instruction(dataset)) // 4)
    told = vlm.estimate(dataset.samples, dataset)
    # An image of one tile: 85 + 170.
    assert (told.images, told.read, told.written, told.cost) == (5, 5 * (words + 255), 5 * 40, None)
    assert "name prices" in str(told)
    vlm.tag(dataset.samples[0], dataset)
    vlm.prices = (3.0, 11.0)
    told = vlm.estimate(dataset.samples, dataset)
    assert told.images == 4
    assert told.cost == pytest.approx((4 * (words + 255) * 3 + 4 * 40 * 11) / 1e6)
    assert len(server.asked) == 1
    # 1500 x 2000 is shown as 768 x 1024: two by two tiles.
    Image.new("RGB", (1500, 2000)).save(tmp_path / "large.png")
    large = [Sample("large", tmp_path / "large.png", dataset.samples[0].truth)]
    assert vlm.estimate(large, dataset).read == words + 85 + 4 * 170
    (tmp_path / "large.png").write_text("no image")
    assert vlm.estimate(large, dataset) == Estimate(0, 0, 0, 0.0)


def test_what_a_run_will_take_is_said_before_anybody_is_asked(
    server: Server, goca: Goca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    run = tmp_path / "run"
    ask = ("evaluate", "scenes", "--limit", "3", "--tagger", "vlm:m-1", "--out", run)
    told = goca(*ask, "--estimate")
    assert (told.code, told.err) == (0, "")
    assert told.out.startswith("3 images, about ")
    assert told.out.endswith("name prices to see the cost\n")
    priced = json.loads(goca(*ask, "--estimate", "--prices", "1000000,0", "--json").out)
    assert priced["cost"] == priced["read"]
    assert not server.asked
    assert not run.exists()
    assert goca(*ask[:-2], "--estimate").out == told.out
    assert goca(*ask, "--estimate", "--prices", "0.001,0").out.endswith("less than 0.01\n")
    with monkeypatch.context() as without:
        without.delenv("OPENAI_BASE_URL")
        assert "set OPENAI_API_KEY" in goca(*ask).mistake()
    assert not run.exists()
    done = goca(*ask, "--prices", "0,500000", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["images"] == 3
    assert len(server.asked) == 3
    shown = goca(*ask[:-1], tmp_path / "other", "--prices", "0,500000")
    assert (shown.code, shown.err) == (0, "")
    first = shown.out.splitlines()[0]
    assert first.startswith("expected use of the tagger: 3 images, ")
    assert first.endswith(f": about {priced['written'] / 2:.2f}")
    assert len(server.asked) == 6
    # All is known now.
    assert json.loads(goca(*ask, "--estimate", "--json").out)["images"] == 0
    assert goca(*ask, "--json").err == ""
    assert len(server.asked) == 6


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--estimate",), 'nobody has to pay the tagger "oracle"'),
        (("--tagger", "self:map", "--estimate"), 'nobody has to pay the tagger "self:map"'),
        (("--tagger", "vlm:m", "--prices", "3"), '--prices "3" is not valid'),
        (("--tagger", "vlm:m", "--prices", "3,-1"), '--prices "3,-1" is not valid'),
        (("--tagger", "vlm:m", "--prices", "nan,1"), '--prices "nan,1" is not valid'),
        (("--prices", "3,1"), "--prices only applies to"),
        (("--together", "0"), "--together"),
    ],
)
def test_what_cannot_be_estimated(options: tuple[str, ...], reason: str, goca: Goca) -> None:
    assert reason in goca("evaluate", "scenes", *options).mistake()


def test_where_and_who_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dataset: Dataset
) -> None:
    means = Means(captions=tmp_path / "captions.jsonl", prices=(1.0, 2.0), together=2)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    # Without a key one may see what it would take, and is told as soon as somebody would have to be asked.
    keyless = tagger_named("vlm:gpt", means)
    assert isinstance(keyless, VLM)
    assert keyless.estimate(dataset.samples, dataset).images == 5
    monkeypatch.setattr("urllib.request.urlopen", lambda *unused, **more: pytest.fail("asked"))
    keyless.endpoint = replace(keyless.endpoint, stop=Hasty())
    for ask in (
        lambda: prepare(keyless, dataset.samples, dataset),
        lambda: keyless.tag(dataset.samples[0], dataset),
        lambda: keyless.endpoint.complete({}),
    ):
        with pytest.raises(GocaError, match="set OPENAI_API_KEY") as caught:
            ask()
        assert not isinstance(caught.value, Declined)
    assert pauses(keyless) == []
    assert not (tmp_path / "captions.jsonl").exists()
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    made = tagger_named("vlm:gpt", means)
    assert isinstance(made, VLM)
    assert (made.endpoint.base, made.endpoint.key) == ("https://api.openai.com/v1", KEY)
    assert (made.model, made.prices, made.together) == ("gpt", (1, 2), 2)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1/")
    assert Endpoint.from_environment().base == "http://localhost:8000/v1"
    monkeypatch.setenv("OPENAI_API_KEY", "sk\nsecond")
    with pytest.raises(GocaError, match="copy it again") as caught:
        Endpoint.from_environment()
    assert "second" not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert Endpoint.from_environment().key == ""
    monkeypatch.setenv("OPENAI_BASE_URL", "file:///etc")
    with pytest.raises(GocaError, match="http://"):
        Endpoint.from_environment()


@pytest.mark.parametrize(
    ("spec", "means", "reason"),
    [
        ("vlm:gpt", Means(), r"--out RUN\), or Means\(captions=FILE\)"),
        ("vlm:", Means(Path("captions.jsonl")), "no model"),
        ("vlm:gpt", Means(Path("captions.txt")), "ends in .jsonl"),
        ("vlm:gpt", Means(Path("captions.jsonl"), together=0), "1 or more"),
    ],
)
def test_what_it_cannot_start_with(
    spec: str, means: Means, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(GocaError, match=reason):
        tagger_named(spec, means)
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_one_tagger(server: Server, vlm: VLM, dataset: Dataset) -> None:
    vlm.tag(dataset.samples[0], dataset)
    with pytest.raises(GocaError, match='holds captions of "vlm m-1", not of "vlm m-2"'):
        VLM("m-2", vlm.endpoint, vlm.path)


def test_ctrl_c_does_not_wait_for_a_patient_thread(server: Server, dataset: Dataset, tmp_path: Path) -> None:
    server.answer = lambda number, question: (200, {}, said("cat")) if number == 0 else failed(429, Retry_After="300")
    vlm = VLM("m", Endpoint(server.base), tmp_path / "captions.jsonl", together=1)

    def interrupt() -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        vlm.prepare(dataset.samples, dataset, interrupt)
    assert time.monotonic() - start < 60
    assert len(read(vlm.path)) == 1
