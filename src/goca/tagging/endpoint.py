"""An OpenAI-compatible server: one request, one answer, with patience. Nobody but the server sees the key.

The standard library is enough here. huggingface_hub's client sends the user's Hub token to any server for which no key
is set, and refuses to work offline; openai's reads answers of any size, and weighs 30 MB for one POST request.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any

from goca.errors import GocaError

PUBLIC = "https://api.openai.com/v1"
ATTEMPTS = 6
LONGEST_PAUSE = 600.0
"""Seconds; a server that asks for more is better asked later."""
MOST_BYTES = 1 << 20
"""Of an answer; a list of nouns and the thoughts before it are far smaller."""
REMEDIES = {401: "check OPENAI_API_KEY", 402: "check the account's credit", 403: "check OPENAI_API_KEY"}
"""What to do about an HTTP status."""


class DeclinedError(GocaError):
    """This one image gets no answer, and others may well."""


class ModelRefusedError(DeclinedError):
    """Declined by the model, in words or with an empty answer, and not by the server."""


class _RetryError(Exception):
    """Worth another attempt. pause: seconds that the server asks for. kind: what the last attempt raises instead."""

    def __init__(self, reason: str, pause: float = 0.0, kind: type[GocaError] = GocaError) -> None:
        super().__init__(reason)
        self.pause, self.kind = pause, kind


@dataclass(frozen=True)
class ChatEndpoint:
    """Where to send requests, and as whom.

    Attributes:
        base: the address in front of "/chat/completions".
        key: sent as a bearer token; "" for a server that wants none.
        timeout: seconds of silence after which an attempt has failed.
        stop: once it is set, no thread waits for another attempt.
    """

    base: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    stop: Event = field(default_factory=Event, repr=False)

    @classmethod
    def from_environment(cls) -> "ChatEndpoint":
        """The endpoint of OPENAI_BASE_URL and OPENAI_API_KEY; GocaError if one is unusable."""
        base = os.environ.get("OPENAI_BASE_URL", "").strip().rstrip("/") or PUBLIC
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not base.startswith(("http://", "https://")):
            raise GocaError(f'OPENAI_BASE_URL "{base}" is not an address: it starts with http:// or https://')
        if not (key.isascii() and key.isprintable()):
            raise GocaError("OPENAI_API_KEY has characters that no key has: copy it again")
        return cls(base, key)

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
            DeclinedError: this request is refused, or its answer stays empty.
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
        try:
            request = urllib.request.Request(
                f"{self.base}/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json", "User-Agent": "goca"},
            )
            if self.key:
                # A server that redirects must not carry the key elsewhere.
                request.add_unredirected_header("Authorization", f"Bearer {self.key}")
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                content = response.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (http.client.InvalidURL, UnicodeError):
            raise GocaError(f'OPENAI_BASE_URL "{self.base}" is not an address: check it') from None
        except TimeoutError:
            raise _RetryError(f"silent for {self.timeout:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = str(getattr(error, "reason", None) or error)
            raise _RetryError(self._gist(reason or type(error).__name__)) from None
        if len(content) > MOST_BYTES:
            raise _RetryError(f"its answer is longer than {MOST_BYTES:,} bytes", kind=ModelRefusedError)
        return self._text(content)

    def _text(self, content: bytes) -> str:
        """The text of a completion."""
        try:
            answer = json.loads(content)
            if isinstance(answer, dict) and answer.get("error"):
                raise _RetryError(self._gist(json.dumps(answer)))  # some gateways report errors with HTTP 200
            choice = answer["choices"][0]
            text, refusal = choice["message"].get("content"), choice["message"].get("refusal")
            if isinstance(text, list):
                text = "".join(part["text"] for part in text if part.get("type", "text") == "text")
            cut_off = choice.get("finish_reason") == "length"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _RetryError("its answer is not a chat completion") from None
        if isinstance(refusal, str) and refusal.strip():
            raise ModelRefusedError(
                f"{self.base} declined ({self._gist(refusal)}): leave the image out, or ask another model"
            )
        if isinstance(text, str) and cut_off:
            text = text.rpartition(",")[0]  # the last noun may lack its end
        if not isinstance(text, str) or not text.strip():
            raise _RetryError("its answer is empty", kind=ModelRefusedError)
        return self._without_key(text)

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP status means for this request and for the others."""
        try:
            with error:
                gist = self._gist(error.read(MOST_BYTES).decode(errors="replace"))
        except (OSError, http.client.HTTPException, ValueError):
            gist = ""
        reason = f"HTTP {error.code}{gist and f', {gist}'}"
        if error.code in (408, 409, 429) or error.code >= 500:
            return _RetryError(reason, _retry_after(error.headers))
        if error.code in (400, 413, 422):
            return DeclinedError(f"{self.base} declined ({reason}): check the model's name and what it accepts")
        remedy = REMEDIES.get(error.code, "check OPENAI_BASE_URL and the model's name")
        return GocaError(f"{self.base} refused ({reason}): {remedy}")

    def _gist(self, text: str) -> str:
        """The beginning of a server's message, without the key that it may quote and without control characters."""
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            text = str(json.loads(text)["error"]["message"])
        line = " ".join(self._without_key(text).split())
        return "".join(character for character in line if character.isprintable())[:200]

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def _retry_after(headers: Message) -> float:
    """Seconds, from a header that has them or a date; 0 without one."""
    value = headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(value) if value[:1].isdigit() else parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
