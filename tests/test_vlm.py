"""The tagger that asks a server, against a server of the test's own."""

import base64
import gzip
import io
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, as_completed
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from commands import Outcome
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from goca import GocaError
from goca.evaluation.datasets.base import Dataset, Sample
from goca.tagging import tagger_named
from goca.tagging.answers import parse
from goca.tagging.captions import CaptionsTagger, read_captions
from goca.tagging.endpoint import ATTEMPTS, MOST_BYTES, ChatEndpoint, DeclinedError, _RetryError
from goca.tagging.instruction import instruction
from goca.tagging.vlm import VLMTagger
from goca.text.nouns import Category

KEY = "sk-not-for-your-eyes"
Goca = Callable[..., Outcome]
Answer = tuple[int, dict[str, str], bytes] | Callable[[BinaryIO], None]
"""(status, headers, body), or what writes an answer that no decent server would give."""


def completion(text: object, finish_reason: str = "stop", **members: object) -> bytes:
    message = {"role": "assistant", "content": text, **members}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish_reason}]}).encode()


def as_asked(dataset: Dataset) -> str:
    """The instruction that goes with the data set's images."""
    return instruction(dataset, as_json=True)


def shown(request: dict[str, Any]) -> Image.Image:
    """The image of a request."""
    url = request["messages"][0]["content"][1]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def failed(status: int, message: str = "no", **headers: str) -> Answer:
    return status, headers, json.dumps({"error": {"message": message}}).encode()


class Server:
    """Answers with `answer(number of the request, the request)`, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.paths: list[str] = []
        self.most = self._now = 0
        self.answer: Callable[[int, dict[str, Any]], Answer] = lambda number, request: (200, {}, completion("cat, sky"))
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.requests)
                    outer.requests.append(content)
                    outer.headers.append(self.headers)
                    outer.paths.append(self.path)
                    outer._now += 1
                    outer.most = max(outer.most, outer._now)
                answer = outer.answer(number, content)
                with outer._lock:
                    outer._now -= 1
                try:
                    if callable(answer):
                        answer(self.wfile)
                        self.close_connection = True
                        return
                    status, headers, body = answer
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
    running = Server()
    yield running
    running.close()


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
def vlm(server: Server, tmp_path: Path) -> VLMTagger:
    endpoint = ChatEndpoint(server.base, KEY, timeout=5.0, stop=Hasty())
    return VLMTagger("m-1", endpoint, tmp_path / "captions.jsonl", concurrency=3)


def pauses(vlm: VLMTagger) -> list[float]:
    assert isinstance(vlm.endpoint.stop, Hasty)
    return vlm.endpoint.stop.pauses


def test_an_image_is_shown_and_its_caption_kept(server: Server, vlm: VLMTagger, dataset: Dataset) -> None:
    server.answer = lambda number, request: (200, {}, completion('{"nouns": ["Cat", "(sky, cloud)"]}'))
    assert vlm.tag(dataset.samples[2], dataset) == "Cat, (sky, cloud)"
    (request,) = server.requests
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert request["model"] == "m-1"
    assert request["temperature"] == 0
    assert request["response_format"]["json_schema"]["schema"]["required"] == ["nouns"]
    text, image = request["messages"][0]["content"]
    assert text == {"type": "text", "text": as_asked(dataset)}
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert shown(request).size == (53, 39)
    assert abs(int(np.asarray(shown(request)).mean()) - 80) < 3
    assert vlm.name == "vlm m-1"
    (entry,) = read_captions(vlm.path)
    assert (entry.dataset, entry.id, entry.tagger, entry.caption) == ("toy", "p2", "vlm m-1", "Cat, (sky, cloud)")


@pytest.mark.parametrize(
    ("body", "caption"),
    [
        (completion("<think>a cow?\nyes</think>\n Cat, (sky, cloud). \n"), "Cat, (sky, cloud)."),
        (completion('```json\n{"nouns": ["cat"]}\n```'), "cat"),
        (completion([{"type": "text", "text": "cat, "}, {"type": "text", "text": "sky"}]), "cat, sky"),
        (completion("cat, sky, mount", finish_reason="length"), "cat, sky"),
        (completion(f"cat, {KEY}"), "cat, ***"),
        (completion(f"cat, {KEY.upper()}s"), "cat, ***s"),
        (completion("cat", reasoning_content="a dog"), "cat"),
        (completion([{"type": "thinking", "thinking": "a dog"}, {"type": "text", "text": "cat"}]), "cat"),
        (completion(["cat, ", "sky"]), "cat, sky"),
        (completion('{"nouns": ["cat", "sky", "mou', finish_reason="MAX_TOKENS"), "cat, sky"),
        (b"\xef\xbb\xbf" + completion("cat"), "cat"),
    ],
)
def test_what_servers_put_around_an_answer(
    body: bytes, caption: str, server: Server, vlm: VLMTagger, dataset: Dataset
) -> None:
    server.answer = lambda number, request: (200, {}, body)
    assert vlm.tag(dataset.samples[0], dataset) == caption


@pytest.mark.parametrize("message", ["response_format is not supported", "Unknown field"])
def test_a_server_that_refuses_structured_answers_is_asked_for_a_list(
    message: str, server: Server, vlm: VLMTagger, dataset: Dataset
) -> None:
    def answer(number: int, request: dict[str, Any]) -> Answer:
        return failed(400, message) if "response_format" in request else (200, {}, completion("cat, sky"))

    server.answer = answer
    for sample in dataset.samples[:2]:
        assert vlm.tag(sample, dataset) == "cat, sky"
    # Refused once, and not asked for again.
    assert ["response_format" in request for request in server.requests] == [True, False, False]
    texts = [request["messages"][0]["content"][0]["text"] for request in server.requests]
    assert ["JSON" in text for text in texts] == [True, False, False]


@pytest.mark.parametrize("text", ["<think>a cow, a dog", "I'm sorry, I can't help with that.", '{"nouns": []}'])
def test_an_answer_without_nouns_is_not_kept(text: str, server: Server, vlm: VLMTagger, dataset: Dataset) -> None:
    server.answer = lambda number, request: (200, {}, completion(text))
    with pytest.raises(DeclinedError, match="names no nouns"):
        vlm.tag(dataset.samples[0], dataset)
    assert read_captions(vlm.path) == []


def test_large_images_are_shown_smaller(server: Server, vlm: VLMTagger, dataset: Dataset, tmp_path: Path) -> None:
    Image.new("RGB", (2048, 512)).save(tmp_path / "wide.png")
    vlm.tag(Sample("wide", tmp_path / "wide.png", dataset.samples[0].truth), dataset)
    assert shown(server.requests[0]).size == (1024, 256)


def test_the_instruction(dataset: Dataset) -> None:
    assert "at most 20 words" in as_asked(dataset)
    assert "use that very word: cat, sky." in as_asked(dataset)
    context = Dataset("context", "val", dataset.categories, (), True, dataset.palette)
    assert "at most 35 words" in as_asked(context)
    # Without classes the words are the model's own.
    free = instruction(replace(dataset, categories=()))
    assert "that very word" not in free
    assert "at most 20 words" in free


def test_many_images_go_together_and_none_is_asked_twice(
    server: Server, vlm: VLMTagger, dataset: Dataset, tmp_path: Path
) -> None:
    def answer(number: int, request: dict[str, Any]) -> Answer:
        time.sleep(0.1)
        return 200, {}, completion(f"noun {number}")

    server.answer = answer
    vlm.tag(dataset.samples[1], dataset)
    vlm.prepare(dataset.samples, dataset)
    assert len(server.requests) == 5
    assert 2 <= server.most <= 3
    captions = [vlm.tag(sample, dataset) for sample in dataset.samples]
    assert captions[1] == "noun 0"
    assert sorted(captions) == [f"noun {number}" for number in range(5)]
    # A second run knows them all, a file of captions has them, and neither asks.
    again = VLMTagger("m-1", ChatEndpoint("http://127.0.0.1:1"), vlm.path)
    again.prepare(dataset.samples, dataset)
    assert [again.tag(sample, dataset) for sample in dataset.samples] == captions
    saved = CaptionsTagger(vlm.path)
    assert [saved.tag(sample, dataset) for sample in dataset.samples] == captions
    assert saved.name.startswith("captions captions.jsonl (vlm m-1) ")
    assert len(server.requests) == 5


def test_a_run_that_was_killed_goes_on(server: Server, vlm: VLMTagger, dataset: Dataset) -> None:
    vlm.prepare(dataset.samples[:3], dataset)
    # Killed while it wrote the third answer.
    content = vlm.path.read_bytes()
    vlm.path.write_bytes(content[:-20])
    lost = {"p0", "p1", "p2"} - {entry.id for entry in read_captions(vlm.path)}
    assert len(lost) == 1
    again = VLMTagger("m-1", vlm.endpoint, vlm.path)
    again.prepare(dataset.samples, dataset)
    assert len(server.requests) == 3 + 3
    assert {entry.id for entry in read_captions(vlm.path)} == {"p0", "p1", "p2", "p3", "p4"}
    assert len(vlm.path.read_bytes().splitlines()) == 5


def test_patience(server: Server, vlm: VLMTagger, dataset: Dataset) -> None:
    answers: list[Answer] = [
        failed(429, Retry_After="7"),
        failed(503),
        failed(429, Retry_After=formatdate(time.time() + 100, usegmt=True)),
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, completion("cat")),
    ]
    server.answer = lambda number, request: answers[number]
    assert vlm.tag(dataset.samples[0], dataset) == "cat"
    assert pauses(vlm) == [7, 2, pytest.approx(100, abs=5), 8]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (failed(500, "on fire"), "HTTP 500, on fire"),
        ((200, {}, b"<html>hello</html>"), "not a chat completion"),
        ((200, {}, b'{"choices": []}'), "not a chat completion"),
        ((200, {}, b'{"choices": [{"message": "cat"}]}'), "not a chat completion"),
        ((200, {}, b"[" * 100_000), "not a chat completion"),
        ((200, {}, b'{"error": {"message": "no GPU is free"}}'), "no GPU is free"),
        ((200, {}, b"<html>hello</html>"), "an HTML page: check OPENAI_BASE_URL"),
        ((200, {}, b'{"error": {"message": "busy", "code": 503}}'), "HTTP 503, .*busy"),
        ((200, {}, b'[{"error": "busy"}]'), r"\(busy\)"),
        ((200, {}, b'{"choices": [{"error": {"message": "busy"}}]}'), "busy"),
        (failed(500, "\x1b[31mr\u202eed\x00"), "HTTP 500, red"),
        (failed(403, "flagged"), "HTTP 403, flagged"),
    ],
)
def test_patience_ends(server: Server, vlm: VLMTagger, dataset: Dataset, answer: Answer, reason: str) -> None:
    server.answer = lambda number, request: answer
    with pytest.raises(DeclinedError, match=reason):
        vlm.tag(dataset.samples[0], dataset)
    if "403" not in reason:  # moderation speaks of the image, and would again
        assert len(server.requests) == ATTEMPTS == 6
        assert pauses(vlm) == [1, 2, 4, 8, 16]
    assert read_captions(vlm.path) == []
    # One image after the other: it ends the run.
    with pytest.raises(GocaError, match=reason):
        vlm.prepare(dataset.samples, dataset)
    assert not vlm.endpoint.stop.is_set()


@pytest.mark.parametrize(
    ("body", "attempts", "reason"),
    [
        (completion(None), 6, r"in 6 attempts \(its answer is empty\)"),
        (completion("  "), 6, r"in 6 attempts \(its answer is empty\)"),
        (completion(None, refusal=""), 6, r"in 6 attempts \(its answer is empty\)"),
        (b'{"choices": [{"message": {"role": "assistant"}}]}', 6, r"in 6 attempts \(its answer is empty\)"),
        (completion("cat, " * (MOST_BYTES // 5 + 1)), 6, "longer than"),
        (completion(None, refusal="I tell no\ntemperature."), 1, r"declined \(I tell no temperature\.\)"),
        (completion([{"type": "refusal", "refusal": "Not that."}]), 1, r"declined \(Not that\.\)"),
        (completion("cat, s", finish_reason="content_filter"), 1, r"filtered the answer \(content_filter\)"),
        (completion(None, reasoning_content="a dog"), 6, "its answer is empty"),
        (completion("", finish_reason="length", reasoning="a dog"), 1, "cut the answer off before its first noun"),
        (completion("<think>a dog, a horse"), 1, 'names no nouns .its answer begins "<think>a dog'),
        (completion("\x1b]0;pwned\x07As an AI, I can't."), 1, """begins "As an AI, I can't."""),
        (completion(json.dumps({"nouns": [f"cat {n}" for n in range(50_000)]})), 1, "names too many nouns"),
        (completion(", ".join(f"n{n}" for n in range(600))), 1, "names too many nouns"),
        (b"[" * 100_000, 6, "not a chat completion"),
    ],
)
def test_a_model_that_will_not_speak_of_one_image(
    body: bytes, attempts: int, reason: str, server: Server, vlm: VLMTagger, dataset: Dataset
) -> None:
    server.answer = lambda number, request: (200, {}, body if shown(request).height == 37 + 2 else completion("cat"))
    vlm.prepare(dataset.samples, dataset)
    assert sorted(entry.id for entry in read_captions(vlm.path)) == ["p0", "p1", "p3", "p4"]
    assert len(server.requests) == 4 + attempts
    assert pauses(vlm) == [1, 2, 4, 8, 16][: attempts - 1]
    with pytest.raises(DeclinedError, match=reason):
        vlm.tag(dataset.samples[2], dataset)
    # It is not asked again, and the temperature stays: the model spoke of it, not the server.
    assert len(server.requests) == 4 + attempts
    assert all(request["temperature"] == 0 for request in server.requests)


def test_one_unreadable_image_does_not_stop_the_others(server: Server, vlm: VLMTagger, dataset: Dataset) -> None:
    path = dataset.samples[3].image
    Image.effect_noise((59, 61), 50).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:700])
    vlm.prepare(dataset.samples, dataset)
    assert sorted(entry.id for entry in read_captions(vlm.path)) == ["p0", "p1", "p2", "p4"]
    with pytest.raises(GocaError, match=r"3\.png cannot be read"):
        vlm.tag(dataset.samples[3], dataset)
    assert len(server.requests) == 4


def test_nothing_is_paid_for_what_cannot_be_kept(server: Server, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    vlm = VLMTagger("m", ChatEndpoint(server.base), tmp_path / "file" / "captions.jsonl")
    assert vlm.estimate(dataset.samples, dataset).images == 5
    with pytest.raises(GocaError, match="cannot write"):
        vlm.prepare(dataset.samples, dataset)
    with pytest.raises(GocaError, match="cannot write"):
        vlm.tag(dataset.samples[0], dataset)
    assert not server.requests


def test_silence_is_an_answer_too(server: Server, dataset: Dataset, tmp_path: Path) -> None:
    def answer(number: int, request: dict[str, Any]) -> Answer:
        if number == 0:
            time.sleep(1.0)
        return 200, {}, completion("cat")

    server.answer = answer
    endpoint = ChatEndpoint(server.base, timeout=0.3, stop=Hasty())
    assert VLMTagger("m", endpoint, tmp_path / "captions.jsonl").tag(dataset.samples[0], dataset) == "cat"
    assert len(server.requests) == 2
    assert "Authorization" not in server.headers[0]


def test_nobody_there(dataset: Dataset, tmp_path: Path) -> None:
    nobody = VLMTagger("m", ChatEndpoint("http://127.0.0.1:1", KEY, stop=Hasty()), tmp_path / "captions.jsonl")
    with pytest.raises(GocaError, match=r"127.0.0.1:1 did not answer in 6 attempts .*refused"):
        nobody.tag(dataset.samples[0], dataset)


def test_too_long_a_pause_ends_the_run(server: Server, vlm: VLMTagger, dataset: Dataset) -> None:
    server.answer = lambda number, request: failed(429, Retry_After="3600")
    with pytest.raises(GocaError, match="3600 s: start again later"):
        vlm.tag(dataset.samples[0], dataset)
    assert len(server.requests) == 1


def test_a_wrong_key_ends_the_run_and_is_not_shown(
    server: Server, vlm: VLMTagger, dataset: Dataset, capfd: pytest.CaptureFixture[str]
) -> None:
    server.answer = lambda number, request: failed(401, f"Incorrect API key: {KEY}")
    with pytest.raises(GocaError, match=r"HTTP 401, Incorrect API key: \*\*\*.*check OPENAI_API_KEY") as caught:
        vlm.prepare(dataset.samples, dataset)
    assert len(server.requests) <= 3
    # The cause is told, also where others were waiting for their next attempt; and then one may try again.
    server.answer = lambda number, request: failed(500) if number % 2 else failed(404, "no such model")
    server.requests.clear()
    slow = VLMTagger("m-1", ChatEndpoint(server.base), vlm.path, concurrency=2)
    with pytest.raises(GocaError, match="no such model"):
        slow.prepare(dataset.samples, dataset)
    assert not slow.endpoint.stop.is_set()
    out = capfd.readouterr()
    assert KEY not in f"{caught.value}{vlm!r}{vlm.endpoint}{out.out}{out.err}{vlm.path.read_text()}"


def test_an_account_without_credit_ends_the_run(server: Server, vlm: VLMTagger, dataset: Dataset) -> None:
    server.answer = lambda number, request: failed(402, "insufficient balance")
    with pytest.raises(GocaError, match=r"HTTP 402, insufficient balance.*check the account's credit"):
        vlm.prepare(dataset.samples, dataset)
    assert len(server.requests) <= 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["{base}/elsewhere", "http://127.0.0.1:1/v1", "file:///etc/passwd", "//evil"])
def test_a_redirection_is_not_followed(
    status: int, target: str, server: Server, vlm: VLMTagger, dataset: Dataset
) -> None:
    target = target.format(base=server.base)
    server.answer = lambda number, request: (status, {"Location": target}, b"")
    with pytest.raises(GocaError, match=f'redirects to "{target}".*set OPENAI_BASE_URL') as caught:
        vlm.tag(dataset.samples[0], dataset)
    assert not isinstance(caught.value, DeclinedError)
    assert server.paths == ["/v1/chat/completions"]
    assert len(server.headers) == 1


def reply(*parts: bytes, pause: float = 0.0, for_ever: bool = False) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(b"HTTP/1.1 200 OK\r\n")
        for part in chain(parts, repeat(parts[-1]) if for_ever else ()):
            file.write(part)
            time.sleep(pause)

    return write


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            reply(b"Transfer-Encoding: chunked\r\n\r\n", b"-1\r\n" + b"x" * 3 * MOST_BYTES),
            "longer than 1,048,576 bytes",
        ),
        (reply(b"Transfer-Encoding: chunked\r\n\r\n", b"-7\r\nabc"), "not a chat completion|IncompleteRead"),
        (reply(b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\nabc"), "IncompleteRead|invalid literal"),
        (reply(b"\r\n", b"x" * 65536, for_ever=True), "longer than 1,048,576 bytes"),
        (reply(b"Content-Length: -5\r\n\r\n", b"x" * 65536, for_ever=True), "longer than 1,048,576 bytes"),
        (reply(b"Content-Length: 999\r\n\r\n", completion("cat")[:-9]), "not a chat completion|IncompleteRead"),
        (reply(b"X-Y: z\r\n", for_ever=True), "headers"),
        (reply(b"X-Y: " + b"z" * 100_000 + b"\r\n"), "header line"),
        (reply(b"\r\n", b" ", pause=0.05, for_ever=True), "took longer than 0.6 s"),
        (reply(b"X", pause=0.05, for_ever=True), "took longer than 0.6 s"),
        (reply(b"\r\nHTTP/1.1 100 Continue\r\n", for_ever=True), "took longer|header"),
        (reply(b""), "not a chat completion|closed|end of"),
        (reply(b"", pause=1.0), "silent for 0.2 s"),
        ((200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(50 * MOST_BYTES))), "longer than 1,048,576 bytes"),
        ((200, {"Content-Encoding": "gzip"}, b"no gzip"), "did not answer in 2 attempts"),
    ],
)
def test_a_hostile_answer_costs_one_image(
    answer: Answer, reason: str, server: Server, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goca.tagging.endpoint.ATTEMPTS", 2)
    endpoint = ChatEndpoint(server.base, KEY, timeout=0.2, stop=Hasty())
    vlm = VLMTagger("m", endpoint, tmp_path / "captions.jsonl", concurrency=1)
    server.answer = lambda number, request: answer if shown(request).height == 37 + 2 else (200, {}, completion("cat"))
    start = time.monotonic()
    vlm.prepare(dataset.samples, dataset)
    assert time.monotonic() - start < 15
    assert [entry.id for entry in read_captions(vlm.path)] == ["p0", "p1", "p3", "p4"]
    with pytest.raises(DeclinedError, match=reason):
        vlm.tag(dataset.samples[2], dataset)


def test_a_gzipped_answer_is_read(server: Server, vlm: VLMTagger, dataset: Dataset) -> None:
    server.answer = lambda number, request: (200, {"Content-Encoding": "gzip"}, gzip.compress(completion("cat")))
    assert vlm.tag(dataset.samples[0], dataset) == "cat"


@pytest.mark.parametrize("key", ["x", "none", "cat"])
def test_a_key_that_is_no_secret_does_not_change_words(
    key: str, server: Server, dataset: Dataset, tmp_path: Path
) -> None:
    server.answer = lambda number, request: (200, {}, completion(f"box, cattle, nonentity, {key}"))
    vlm = VLMTagger("m", ChatEndpoint(server.base, key), tmp_path / "captions.jsonl")
    assert parse(vlm.tag(dataset.samples[0], dataset)) == (("box",), ("cattle",), ("nonentity",))


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": f"Bearer {KEY}"}},
        {"error": KEY},
        {"detail": [{"msg": KEY}]},
        {"message": KEY.upper()},
        [f"<b>{KEY}</b>"],
    ],
)
@pytest.mark.parametrize("status", [200, 400, 401, 404, 500])
def test_an_echoed_key_is_neither_shown_nor_saved(
    status: int, body: object, server: Server, vlm: VLMTagger, dataset: Dataset
) -> None:
    echo = json.dumps(body).replace("-", "\\u002d").encode()  # as JSON may write it
    server.answer = lambda number, request: (status, {}, echo)
    with pytest.raises(GocaError) as caught:
        vlm.tag(dataset.samples[0], dataset)
    assert KEY not in f"{caught.value}{vlm.path.read_text()}".lower()
    assert "***" in str(caught.value) or status == 200


@pytest.mark.slow
@settings(max_examples=2000)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda text: completion(text)),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["choices", "message", "content", "error", "code", "refusal", "text", "type"]),
                    inner,
                )
            ),
        ).map(lambda value: json.dumps(value).encode()),
        st.tuples(st.integers(0, 120), st.binary(max_size=3)).map(
            lambda cut: completion("cat, sky")[: cut[0]] + cut[1] + completion("cat, sky")[cut[0] + 1 :]
        ),
    )
)
def test_any_body_gives_text_or_a_reason(body: bytes) -> None:
    try:
        text = ChatEndpoint("http://localhost", KEY)._text(body)
    except Exception as error:
        assert isinstance(error, GocaError | _RetryError)  # noqa: PT017 - a text is right as well
    else:
        assert text.strip()


def test_one_declined_image_does_not_stop_the_others(server: Server, vlm: VLMTagger, dataset: Dataset) -> None:
    def answer(number: int, request: dict[str, Any]) -> Answer:
        return failed(400, "not such an image") if shown(request).height == 37 + 2 else (200, {}, completion("cat"))

    server.answer = answer
    vlm.prepare(dataset.samples, dataset)
    assert len(read_captions(vlm.path)) == 4
    with pytest.raises(DeclinedError, match="not such an image"):
        vlm.tag(dataset.samples[2], dataset)
    # The one is asked once more without a response format, which it might have been about; the others are not.
    assert sorted("response_format" in request for request in server.requests) == [False] + [True] * 5


def test_a_model_that_takes_no_temperature(server: Server, vlm: VLMTagger, dataset: Dataset) -> None:
    def answer(number: int, request: dict[str, Any]) -> Answer:
        return failed(400, "temperature is not supported") if "temperature" in request else (200, {}, completion("cat"))

    server.answer = answer
    for sample in dataset.samples[:2]:
        assert vlm.tag(sample, dataset) == "cat"
    assert len(server.requests) == 3


def test_an_estimate(server: Server, vlm: VLMTagger, dataset: Dataset) -> None:
    each = 765 + len(as_asked(dataset)) // 4
    estimate = vlm.estimate(dataset.samples, dataset)
    assert (estimate.images, estimate.read, estimate.written, estimate.cost) == (5, 5 * each, 5 * 40, None)
    assert "give prices" in str(estimate)
    vlm.tag(dataset.samples[0], dataset)
    vlm.prices = (3.0, 11.0)
    assert vlm.estimate(dataset.samples, dataset).cost == pytest.approx((4 * each * 3 + 4 * 40 * 11) / 1e6)
    assert len(server.requests) == 1


def test_what_a_run_will_take_is_said_before_anybody_is_asked(
    server: Server, goca: Goca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    run = tmp_path / "run"
    ask = ("evaluate", "scenes", "--limit", "3", "--tagger", "vlm:m-1", "--out", run)
    printed = goca(*ask, "--estimate")
    assert (printed.code, printed.err) == (0, "")
    assert printed.out.startswith("3 images, about ")
    assert printed.out.endswith("give prices to see the cost\n")
    priced = json.loads(goca(*ask, "--estimate", "--prices", "1000000,0", "--json").out)
    assert priced["cost"] == priced["read"]
    assert not server.requests
    assert not run.exists()
    assert goca(*ask[:-2], "--estimate").out == printed.out
    assert goca(*ask, "--estimate", "--prices", "0.001,0").out.endswith("less than 0.01\n")
    with monkeypatch.context() as without:
        without.delenv("OPENAI_BASE_URL")
        assert "set OPENAI_API_KEY" in goca(*ask).mistake()
    assert not run.exists()
    done = goca(*ask, "--prices", "0,500000", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["images"] == 3
    assert len(server.requests) == 3
    shown = goca(*ask[:-1], tmp_path / "other", "--prices", "0,500000")
    assert (shown.code, shown.err) == (0, "")
    first = shown.out.splitlines()[0]
    assert first.startswith("expected use of the tagger: 3 images, ")
    assert first.endswith(f": about {priced['written'] / 2:.2f}")
    assert len(server.requests) == 6
    # All is known now.
    assert json.loads(goca(*ask, "--estimate", "--json").out)["images"] == 0
    assert goca(*ask, "--json").err == ""
    assert len(server.requests) == 6


def test_a_folder_is_segmented_by_what_a_server_names(
    server: Server, goca: Goca, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base)
    monkeypatch.chdir(tmp_path)
    answers = ["kitten, spoon", "I cannot help with that.", "sky, Cats"]
    server.answer = lambda number, request: (200, {}, completion(answers[shown(request).height - 37]))
    ask = ("segment", "0.png", "1.png", "2.png", "--tagger", "vlm:m-1", "--classes")
    with monkeypatch.context() as without:
        without.delenv("OPENAI_BASE_URL")
        without.delenv("OPENAI_API_KEY", raising=False)
        assert "set OPENAI_API_KEY" in goca(*ask, "cat, sky").mistake()
    assert "does not know" in goca(*ask, "cat, spoon").mistake()
    assert not server.requests
    done = goca(*ask, "cat, sky", "--prices", "0,500000")
    assert done.code == 1
    assert done.out.splitlines()[0].startswith("expected use of the tagger: 3 images, ")
    assert done.err.startswith("goca: left out: 1.png: m-1 names no nouns")
    kept = {name: json.loads((tmp_path / "goca-out" / f"{name}.json").read_text())["kept"] for name in "02"}
    assert kept == {"0": [], "2": ["cat", "sky"]}
    # What was answered is not paid for again, even where its result is lost; what was declined is asked again.
    (tmp_path / "goca-out" / "2.json").unlink()
    paid = len(server.requests)
    server.answer = lambda number, request: (200, {}, completion("sky"))
    again = goca(*ask, "cat, sky", "--resume", "--json")
    assert again.code == 0
    assert [json.loads(line)["kept"] for line in again.out.splitlines()] == [[], ["sky"], ["cat", "sky"]]
    assert len(server.requests) == paid + 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--estimate",), 'the tagger "oracle" costs nothing'),
        (("--tagger", "self", "--estimate"), 'the tagger "self" costs nothing'),
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
    means: dict[str, Any] = {"captions": tmp_path / "captions.jsonl", "prices": (1.0, 2.0), "concurrency": 2}
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    # Without a key one may see what it would take, and is told as soon as somebody would have to be asked.
    keyless = tagger_named("vlm:gpt", **means)
    assert isinstance(keyless, VLMTagger)
    assert keyless.estimate(dataset.samples, dataset).images == 5
    monkeypatch.setattr("urllib.request.build_opener", lambda *unused, **more: pytest.fail("asked"))
    keyless.endpoint = replace(keyless.endpoint, stop=Hasty())
    for ask in (
        lambda: keyless.prepare(dataset.samples, dataset),
        lambda: keyless.tag(dataset.samples[0], dataset),
        lambda: keyless.endpoint.complete({}),
    ):
        with pytest.raises(GocaError, match="set OPENAI_API_KEY") as caught:
            ask()
        assert not isinstance(caught.value, DeclinedError)
    assert pauses(keyless) == []
    assert not (tmp_path / "captions.jsonl").exists()
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    made = tagger_named("vlm:gpt", **means)
    assert isinstance(made, VLMTagger)
    assert (made.endpoint.base, made.endpoint.key) == ("https://api.openai.com/v1", KEY)
    assert (made.model, made.prices, made.concurrency) == ("gpt", (1, 2), 2)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1/")
    assert ChatEndpoint.from_environment().base == "http://localhost:8000/v1"
    monkeypatch.setenv("OPENAI_API_KEY", "sk\nsecond")
    with pytest.raises(GocaError, match="copy it again") as caught:
        ChatEndpoint.from_environment()
    assert "second" not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ChatEndpoint.from_environment().key == ""
    monkeypatch.setenv("OPENAI_BASE_URL", "file:///etc")
    with pytest.raises(GocaError, match="http://"):
        ChatEndpoint.from_environment()
    monkeypatch.setenv("OPENAI_BASE_URL", f"https://user:{KEY}@host/v1")
    with pytest.raises(GocaError, match="put the key into OPENAI_API_KEY") as caught:
        ChatEndpoint.from_environment()
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "means", "reason"),
    [
        ("vlm:gpt", {}, "saves its captions: give an output folder"),
        ("vlm:", {"captions": Path("captions.jsonl")}, "no model"),
        ("vlm:gpt", {"captions": Path("captions.txt")}, "ends in .jsonl"),
        ("vlm:gpt", {"captions": Path("captions.jsonl"), "concurrency": 0}, "1 or more"),
    ],
)
def test_what_it_cannot_start_with(
    spec: str, means: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(GocaError, match=reason):
        tagger_named(spec, **means)
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_one_tagger(server: Server, vlm: VLMTagger, dataset: Dataset) -> None:
    vlm.tag(dataset.samples[0], dataset)
    with pytest.raises(GocaError, match='has captions of "vlm m-1", not of "vlm m-2"'):
        VLMTagger("m-2", vlm.endpoint, vlm.path)


def test_ctrl_c_does_not_wait_for_a_patient_thread(
    server: Server, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(number: int, request: dict[str, Any]) -> Answer:
        return (200, {}, completion("cat")) if number == 0 else failed(429, Retry_After="300")

    server.answer = answer
    vlm = VLMTagger("m", ChatEndpoint(server.base), tmp_path / "captions.jsonl", concurrency=1)

    def interrupted(futures: Iterable[Future[None]]) -> Iterator[Future[None]]:
        yield next(as_completed(futures))
        raise KeyboardInterrupt

    monkeypatch.setattr("goca.tagging.vlm.as_completed", interrupted)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        vlm.prepare(dataset.samples, dataset)
    assert time.monotonic() - start < 60
    assert len(read_captions(vlm.path)) == 1
