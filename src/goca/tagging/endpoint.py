"""An OpenAI-compatible server: one request, one answer, with patience. Nobody but the server sees the key.

The standard library is enough here. huggingface_hub's client sends the user's Hub token to any server for which no key
is set, and refuses to work offline; openai's reads answers of any size, and weighs 30 MB for one POST request.
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
"""Seconds; a server that asks for more is better asked later."""
LONGEST_ANSWER = 3
"""Times the silence that ends an attempt: what a whole answer may take, however steadily it trickles in."""
MOST_BYTES = 1 << 20
"""Of an answer; a list of nouns and the thoughts before it are far smaller."""
SECRET = 8
"""Letters; a shorter key, such as "none" for a server that wants any, may be a part of other words."""
REMEDIES = {401: "check OPENAI_API_KEY", 402: "check the account's credit", 403: "check OPENAI_API_KEY"}
"""What to do about an HTTP status."""
CUT_OFF = frozenset({"length", "max_tokens"})
FILTERED = frozenset({"content_filter", "safety", "prohibited_content", "blocklist", "recitation", "refusal"})
"""Why servers say that an answer ended early, in lower case."""


class ModelRefusedError(DeclinedError):
    """Declined by the model, in words or with an empty answer, and not by the server."""


class UnansweredError(DeclinedError):
    """Nothing usable came; where that happens to one image after the other, the server is to blame and not an image."""


class _RetryError(Exception):
    """Worth another attempt. pause: seconds that the server asks for. kind: what the last attempt raises instead."""

    def __init__(self, reason: str, pause: float = 0.0, kind: type[GocaError] = UnansweredError) -> None:
        super().__init__(reason)
        self.pause, self.kind = pause, kind


@dataclass(frozen=True)
class ChatEndpoint:
    """Where to send requests, and as whom.

    Attributes:
        base: the address in front of "/chat/completions".
        key: sent as a bearer token; "" for a server that wants none.
        timeout: seconds of silence after which an attempt has failed; a whole answer may take `LONGEST_ANSWER` times as
            long.
        stop: once it is set, no thread waits for another attempt.

    Raises:
        GocaError: the address or the key is unusable.
    """

    base: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    stop: Event = field(default_factory=Event, repr=False)

    def __post_init__(self) -> None:
        if "@" in self.base:
            raise GocaError("OPENAI_BASE_URL has a user's name in it: put the key into OPENAI_API_KEY instead")
        if not self.base.startswith(("http://", "https://")):
            raise GocaError(f'OPENAI_BASE_URL "{self.base}" is not an address: it starts with http:// or https://')
        if not (self.key.isascii() and self.key.isprintable()):
            raise GocaError("OPENAI_API_KEY has characters that no key has: copy it again")

    @classmethod
    def from_environment(cls) -> "ChatEndpoint":
        """The endpoint of OPENAI_BASE_URL and OPENAI_API_KEY; GocaError if one is unusable."""
        base = os.environ.get("OPENAI_BASE_URL", "").strip().rstrip("/") or PUBLIC
        return cls(base, os.environ.get("OPENAI_API_KEY", "").strip())

    def check(self) -> None:
        """Raise GocaError if the server wants a key and there is none."""
        if not self.key and self.base == PUBLIC:
            raise GocaError(f"{PUBLIC} wants a key: set OPENAI_API_KEY, or OPENAI_BASE_URL to a server of your own")

    def complete(self, request: dict[str, Any]) -> str:
        """Send a chat completion request.

        Rate limits, the server's own errors, garbled or empty answers and silence are tried again, after longer and
        longer pauses, or when the server says so.

        Args:
            request: the body, with "model" and "messages".

        Returns:
            The text of the answer, without the key if the server quotes it.

        Raises:
            DeclinedError: this request is refused, or gets no answer that can be used.
            GocaError: the server cannot be used.
        """
        self.check()
        for attempt in range(ATTEMPTS):
            try:
                return self._post(request)
            except _RetryError as error:
                failure = error
            if failure.pause > LONGEST_PAUSE:
                raise GocaError(f"{self.base} wants a pause of {failure.pause:.0f} s: start again later")
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
            hint = ", but a page in HTML: is OPENAI_BASE_URL right?" if page else ""
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
                    f"{self.base} cut the answer off before its first noun ({ending}): ask another model, or one that "
                    "thinks less"
                )
        if not isinstance(text, str) or not text.strip():
            raise _RetryError("its answer is empty", kind=ModelRefusedError)
        return self._without_key(text)

    def _failure(self, failure: Any, content: bytes) -> Exception:
        """What an error in an answer with HTTP 200 means: that of its status, if it has one."""
        status = failure.get("code") if isinstance(failure, dict) else None
        text = content.decode(errors="replace")
        if isinstance(status, int) and 400 <= status < 600:
            return self._refused(status, text, Message())
        return _RetryError(self._gist(text))

    def _refused(self, status: int, text: str, headers: Message) -> Exception:
        """What an HTTP status means for this request and for the others."""
        gist = self._gist(text)
        reason = f"HTTP {status}{gist and f', {gist}'}"
        if status in (408, 409, 429) or status >= 500:
            return _RetryError(reason, _retry_after(headers))
        if status in (400, 413, 422):
            return DeclinedError(f"{self.base} declined ({reason}): check the model's name and what it accepts")
        if 300 <= status < 400:
            target = self._gist(headers.get("Location", "nowhere"))
            return GocaError(f'{self.base} points to "{target}" (HTTP {status}): set OPENAI_BASE_URL to where it is')
        remedy = REMEDIES.get(status, "check OPENAI_BASE_URL and the model's name")
        # Moderation says 403 of a single image.
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
    """Wherever a server points to, neither the key nor an image goes there."""

    def redirect_request(self, *unused: Any) -> None:
        return None


class _Exchange(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """A request and its answer, which another thread can cut: a timeout alone never ends what trickles in."""

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
    """The content of an answer, `MOST_BYTES` and a little more at most."""
    content = b""
    # In small parts: a whole read would take a chunk of -1 bytes for all there will ever be.
    while len(content) <= MOST_BYTES and (part := response.read1(MOST_BYTES)):
        content += part
    if response.headers.get("Content-Encoding", "").lower() == "gzip":
        content = zlib.decompressobj(wbits=31).decompress(content, MOST_BYTES + 1)
    return content


def _retry_after(headers: Message) -> float:
    """Seconds, from a header that has them or a date; 0 without one."""
    value = headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(value) if value[:1].isdigit() else parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
