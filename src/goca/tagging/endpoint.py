"""An OpenAI-compatible server: one question, one answer, with patience. The key is sent to it and shown to nobody."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
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
"""Seconds; who is told to wait longer had better come back later."""


class Declined(GocaError):  # noqa: N818 - an answer, if not to the question
    """The server will not answer this one question, and may well answer others."""


class Refusal(Declined):
    """Declined not by the server but by the model, in words or with an empty answer."""


class _Again(Exception):  # noqa: N818 - a signal, not an error
    """Worth another attempt: why, and after how many seconds the server wants it, if it says so.

    kind: what it is where the last attempt ends so.
    """

    def __init__(self, reason: str, pause: float = 0.0, kind: type[GocaError] = GocaError) -> None:
        super().__init__(reason)
        self.pause, self.kind = pause, kind


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and as whom.

    timeout: seconds of silence after which an attempt has failed. stop: where it is set, nobody waits any longer.
    """

    base: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    stop: Event = field(default_factory=Event, repr=False)

    @classmethod
    def from_environment(cls) -> "Endpoint":
        """OPENAI_BASE_URL and OPENAI_API_KEY. GocaError for what is unusable; that a key is missing `check` tells."""
        base = os.environ.get("OPENAI_BASE_URL", "").strip().rstrip("/") or PUBLIC
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not base.startswith(("http://", "https://")):
            raise GocaError(f'OPENAI_BASE_URL "{base}" is no address: it starts with http:// or https://')
        if not (key.isascii() and key.isprintable()):
            raise GocaError("OPENAI_API_KEY has characters that no key has: copy it again")
        return cls(base, key)

    def check(self) -> None:
        """Raises GocaError where a key is wanted and there is none; a server of one's own may want none."""
        if not self.key and self.base == PUBLIC:
            raise GocaError(f"{PUBLIC} wants a key: set OPENAI_API_KEY, or OPENAI_BASE_URL to a server of your own")

    def complete(self, question: Mapping[str, Any]) -> str:
        """The text that answers a chat completion request.

        Too many requests, the server's own mistakes, garbled or empty answers and silence are tried again, ever later,
        or when the server says so. Raises Declined where this question is refused or its answer stays empty, GocaError
        where nothing can be asked.
        """
        self.check()
        reason, kind = "", GocaError
        for attempt in range(ATTEMPTS):
            try:
                return self._once(question)
            except _Again as again:
                reason, kind = str(again), again.kind
                if again.pause > LONGEST_PAUSE:
                    raise GocaError(f"{self.base} wants a pause of {again.pause:.0f} s: start again later") from None
                if attempt < ATTEMPTS - 1 and self.stop.wait(max(again.pause, 2.0**attempt)):
                    raise GocaError("stopped before the server answered: start again") from None
        raise kind(f"{self.base} did not answer in {ATTEMPTS} attempts ({reason}): check it, then start again")

    def _once(self, question: Mapping[str, Any]) -> str:
        try:
            request = urllib.request.Request(
                f"{self.base}/chat/completions",
                json.dumps(question).encode(),
                {"Content-Type": "application/json", "User-Agent": "goca"},
            )
            if self.key:
                # A server that redirects must not carry the key elsewhere.
                request.add_unredirected_header("Authorization", f"Bearer {self.key}")
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return self._text(response.read())
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (http.client.InvalidURL, UnicodeError):
            raise GocaError(f'OPENAI_BASE_URL "{self.base}" is no address: check it') from None
        except TimeoutError:
            raise _Again(f"silent for {self.timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise _Again(self._tell(str(getattr(error, "reason", None) or error or type(error).__name__))) from None

    def _text(self, content: bytes) -> str:
        try:
            message = json.loads(content)["choices"][0]["message"]
            text, refusal = message.get("content"), message.get("refusal")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise _Again("its answer is no chat completion") from None
        if isinstance(refusal, str) and refusal.strip():
            raise Refusal(f"{self.base} declined ({self._tell(refusal)}): leave the image out, or ask another model")
        if not isinstance(text, str) or not text.strip():
            raise _Again("its answer is empty", kind=Refusal)
        return text

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP status means for this question and for the others."""
        try:
            with error:
                told = self._tell(error.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            told = ""
        reason = f"HTTP {error.code}{told and f', {told}'}"
        if error.code in (408, 409, 429) or error.code >= 500:
            return _Again(reason, _retry_after(error.headers))
        if error.code in (400, 413, 422):
            return Declined(f"{self.base} declined ({reason}): check the model's name and what it accepts")
        hint = "check OPENAI_API_KEY" if error.code in (401, 403) else "check OPENAI_BASE_URL and the model's name"
        return GocaError(f"{self.base} refused ({reason}): {hint}")

    def _tell(self, text: str) -> str:
        """The gist of what a server said, without the key that it may quote."""
        with suppress(ValueError, LookupError, TypeError):
            text = str(json.loads(text)["error"]["message"])
        return " ".join((text.replace(self.key, "***") if self.key else text).split())[:200]


def _retry_after(headers: Message) -> float:
    """Seconds, from a header that gives them or a date; 0 without one."""
    told = headers.get("Retry-After", "").strip()
    try:
        return max(0.0, float(told) if told[:1].isdigit() else parsedate_to_datetime(told).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
