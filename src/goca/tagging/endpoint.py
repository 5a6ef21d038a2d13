"""A client of an OpenAI-compatible server that retries requests. The key is sent to that server only.

The standard library suffices. huggingface_hub's client sends the user's Hub token to any server for which no key
is set, and refuses to work offline; openai's reads answers of any size, and takes 30 MB for one POST request.
"""

import http.client
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import partial
from threading import Event, Timer
from typing import Any

from goca.errors import GocaError
from goca.storage.reading import decode_text, parse_json
from goca.tagging.base import DeclinedError
from goca.text.clean import one_line

PUBLIC = "https://api.openai.com/v1"
ATTEMPTS = 6
LONGEST_PAUSE = 600.0
"""Longest pause in seconds that a server may ask for."""
LONGEST_ANSWER = 3
"""Longest time for a whole answer, in units of the timeout, however steadily it arrives."""
MOST_BYTES = 1 << 20
"""Most bytes of an answer; a list of nouns and the thoughts before it are far smaller."""
SECRET = 8
"""Least characters of a key that is removed from messages; a shorter one, such as "none", may be part of a word."""
REMEDIES = {401: "check OPENAI_API_KEY", 402: "check the account's credit", 403: "check OPENAI_API_KEY"}
"""What to do about an HTTP status."""
CUT_OFF = frozenset({"length", "max_tokens"})
FILTERED = frozenset({"content_filter", "safety", "prohibited_content", "blocklist", "recitation", "refusal"})
"""Reasons that servers give for an answer that ended early, in lower case."""


class ModelRefusedError(DeclinedError):
    """The model, not the server, declined, in words or with an empty answer."""


class UnansweredError(DeclinedError):
    """There was no usable answer; if that happens for image after image, the server is to blame."""


class _RetryError(Exception):
    """Worth a retry. pause: seconds that the server asks for. kind: the error that the last attempt raises."""

    def __init__(self, reason: str, pause: float = 0.0, kind: type[GocaError] = UnansweredError) -> None:
        super().__init__(reason)
        self.pause, self.kind = pause, kind


@dataclass(frozen=True)
class ChatEndpoint:
    """Where to send requests, and as whom.

    Attributes:
        base: The address before "/chat/completions".
        key: Sent as a bearer token; "" for a server without keys.
        timeout: Seconds of silence after which an attempt has failed; a whole answer may take `LONGEST_ANSWER` times as
            long.
        stop: Once it is set, no thread waits for another attempt.

    Raises:
        GocaError: The address or the key is malformed.
    """

    base: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    stop: Event = field(default_factory=Event, repr=False)

    def __post_init__(self) -> None:
        if "@" in self.base:
            raise GocaError("OPENAI_BASE_URL contains credentials: put the key into OPENAI_API_KEY instead")
        if not self.base.startswith(("http://", "https://")):
            raise GocaError(f'OPENAI_BASE_URL "{self.base}" is not an address: start it with http:// or https://')
        if not (self.key.isascii() and self.key.isprintable()):
            raise GocaError("OPENAI_API_KEY contains invalid characters: copy it again")

    @classmethod
    def from_environment(cls) -> "ChatEndpoint":
        """The endpoint of OPENAI_BASE_URL and OPENAI_API_KEY. Raises GocaError if one is malformed."""
        base = os.environ.get("OPENAI_BASE_URL", "").strip().rstrip("/") or PUBLIC
        return cls(base, os.environ.get("OPENAI_API_KEY", "").strip())

    def check(self) -> None:
        """Raise GocaError if the server needs a key and none is set."""
        if not self.key and self.base == PUBLIC:
            raise GocaError(f"{PUBLIC} needs a key: set OPENAI_API_KEY, or OPENAI_BASE_URL to a server of your own")

    def complete(self, request: dict[str, Any]) -> str:
        """Send a chat completion request.

        Rate limits, server errors, malformed or empty answers and timeouts are retried, after increasing pauses or when
        the server says so.

        Args:
            request: The body, with "model" and "messages".

        Returns:
            The text of the answer; the key is removed if the server quotes it.

        Raises:
            DeclinedError: This request is refused, or gets no usable answer.
            GocaError: The server cannot be used.
        """
        self.check()
        for attempt in range(ATTEMPTS):
            try:
                return self._post(request)
            except _RetryError as error:
                failure = error
            if failure.pause > LONGEST_PAUSE:
                raise GocaError(f"{self.base} asks for a pause of {failure.pause:.0f} s: start again later")
            if attempt < ATTEMPTS - 1 and self.stop.wait(max(failure.pause, 2.0**attempt)):
                raise GocaError("stopped before the server answered: start again")
        raise failure.kind(f"{self.base} did not answer in {ATTEMPTS} attempts ({failure}): check it, then start again")

    def _post(self, body: dict[str, Any]) -> str:
        exchange = _Exchange()
        timer = Timer(LONGEST_ANSWER * self.timeout, exchange.cut)
        timer.daemon = True
        timer.start()
        try:
            request = urllib.request.Request(
                f"{self.base}/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json", "User-Agent": "goca"},
            )
            if self.key:
                request.add_unredirected_header("Authorization", f"Bearer {self.key}")
            with urllib.request.build_opener(exchange, _NoRedirect).open(request, timeout=self.timeout) as response:
                content = _read(response)
        except urllib.error.HTTPError as error:
            with suppress(OSError, http.client.HTTPException, ValueError), error:
                content = _read(error)
                raise self._refused(error.code, content.decode(errors="replace"), error.headers) from None
            raise self._refused(error.code, "", error.headers) from None
        except (http.client.InvalidURL, UnicodeError):
            raise GocaError(f'OPENAI_BASE_URL "{self.base}" is not an address: check it') from None
        except (OSError, http.client.HTTPException, ValueError, zlib.error) as error:
            if exchange.is_cut:
                raise _RetryError(f"its answer took longer than {LONGEST_ANSWER * self.timeout:g} s") from None
            if isinstance(error, TimeoutError):
                raise _RetryError(f"silent for {self.timeout:g} s") from None
            reason = str(getattr(error, "reason", None) or error)
            raise _RetryError(self._gist(reason or type(error).__name__)) from None
        finally:
            timer.cancel()
        if len(content) > MOST_BYTES:
            raise _RetryError(f"its answer is longer than {MOST_BYTES:,} bytes", kind=ModelRefusedError)
        if exchange.is_cut:
            raise _RetryError(f"its answer took longer than {LONGEST_ANSWER * self.timeout:g} s")
        return self._text(content)

    def _text(self, content: bytes) -> str:
        """The text of a completion."""
        try:
            answer = parse_json(decode_text(content, "the answer"), "the answer")
            if isinstance(answer, list) and len(answer) == 1:
                (answer,) = answer
            choice = answer["choices"][0] if "choices" in answer and not answer.get("error") else {}
            failure = answer.get("error") or choice.get("error")
            if failure or not choice:
                raise self._failure(failure, content)  # some gateways report errors with HTTP 200
            text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
            if isinstance(text, list):
                parts = [part if isinstance(part, dict) else {"text": part} for part in text]
                refusal = refusal or "".join(part["refusal"] for part in parts if part.get("type") == "refusal")
                text = "".join(part["text"] for part in parts if part.get("type", "text") in ("text", "output_text"))
            ending = str(choice.get("finish_reason")).lower()
        except (GocaError, LookupError, TypeError, AttributeError):
            page = content.lstrip()[:1] == b"<"
            hint = ", but an HTML page: check OPENAI_BASE_URL" if page else ""
            raise _RetryError(f"its answer is not a chat completion{hint}") from None
        if isinstance(refusal, str) and refusal.strip():
            raise ModelRefusedError(
                f"{self.base} declined ({self._gist(refusal)}): leave the image out, or ask another model"
            )
        if ending in FILTERED:
            raise ModelRefusedError(
                f"{self.base} filtered the answer ({ending}): leave the image out, or ask another model"
            )
        if isinstance(text, str) and ending in CUT_OFF:
            text = text.rpartition(",")[0]  # the last noun may lack its end
            if not text.strip():
                raise ModelRefusedError(
                    f"{self.base} cut the answer off before its first noun ({ending}): use another model, or one that "
                    "thinks less"
                )
        if not isinstance(text, str) or not text.strip():
            raise _RetryError("its answer is empty", kind=ModelRefusedError)
        return self._without_key(text)

    def _failure(self, failure: Any, content: bytes) -> Exception:
        """The exception for an error in an answer with HTTP 200, by the error's own status if it has one."""
        status = failure.get("code") if isinstance(failure, dict) else None
        text = content.decode(errors="replace")
        if isinstance(status, int) and 400 <= status < 600:
            return self._refused(status, text, Message())
        return _RetryError(self._gist(text))

    def _refused(self, status: int, text: str, headers: Message) -> Exception:
        """The exception for an HTTP status: for this request only, or for all."""
        gist = self._gist(text)
        reason = f"HTTP {status}{gist and f', {gist}'}"
        if status in (408, 409, 429) or status >= 500:
            return _RetryError(reason, _retry_after(headers))
        if status in (400, 413, 422):
            return DeclinedError(f"{self.base} declined ({reason}): check the model's name and what it accepts")
        if 300 <= status < 400:
            target = self._gist(headers.get("Location", "nowhere"))
            return GocaError(
                f'{self.base} redirects to "{target}" (HTTP {status}): set OPENAI_BASE_URL to that address'
            )
        remedy = REMEDIES.get(status, "check OPENAI_BASE_URL and the model's name")
        # Moderation answers 403 for a single image.
        kind = UnansweredError if status == 403 else GocaError
        return kind(f"{self.base} refused ({reason}): {remedy}")

    def _gist(self, text: str) -> str:
        """The beginning of a server's message, without the key that it may quote and without control characters."""
        with suppress(ValueError, RecursionError):
            value = json.loads(text)
            for name in ("error", "message", "detail"):
                if isinstance(value, list) and value:
                    value = value[0]
                value = value.get(name, value) if isinstance(value, dict) else value
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return one_line(self._without_key(re.sub(r"<[^<>]*>", " ", text[:MOST_BYTES])))[:200]

    def _without_key(self, text: str) -> str:
        if not self.key:
            return text
        pattern = re.escape(self.key)
        if len(self.key) < SECRET:
            pattern = rf"(?<!\w){pattern}(?!\w)"
        return re.sub(pattern, "***", text, flags=re.IGNORECASE)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, so that neither the key nor an image goes to another server."""

    def redirect_request(self, *unused: Any) -> None:
        return None


class _Exchange(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """A request and its answer, which another thread can abort: a timeout alone never ends a slow trickle."""

    def __init__(self) -> None:
        super().__init__()
        self.is_cut = False
        self._socket: socket.socket | None = None

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connection, http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._connection, http.client.HTTPSConnection), request)

    def cut(self) -> None:
        self.is_cut = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _connection(self, kind: Callable[..., Any], *args: Any, **options: Any) -> Any:
        connection = kind(*args, **options)
        connect = connection.connect

        def connected() -> None:
            connect()
            self._socket = connection.sock
            if self.is_cut:
                self.cut()

        connection.connect = connected
        return connection


def _read(response: Any) -> bytes:
    """The content of an answer, at most a little more than `MOST_BYTES`."""
    content = b""
    # In small parts: a single read would take a chunk of -1 bytes as everything until the end.
    while len(content) <= MOST_BYTES and (part := response.read1(MOST_BYTES)):
        content += part
    if response.headers.get("Content-Encoding", "").lower() == "gzip":
        content = zlib.decompressobj(wbits=31).decompress(content, MOST_BYTES + 1)
    return content


def _retry_after(headers: Message) -> float:
    """Seconds to wait, from a header with seconds or a date; 0 without one."""
    value = headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(value) if value[:1].isdigit() else parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
