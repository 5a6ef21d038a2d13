"""What a browser may request: the few routes that the page uses, and uploaded files, within limits of size.

Gradio answers far more than the page needs. It fetches URLs given in place of a file, has routes that forward requests,
and, when mounted in another application, accepts any path of this machine.
"""

import json
import os
import re
import textwrap
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from goca.errors import GocaError
from goca.storage.reading import sent_json
from goca.text.clean import one_line

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_UPLOAD = 64 << 20
"""Most bytes of a file, and of an upload request."""
MAX_STORED = 1 << 30
"""Most bytes of all files that the page keeps for a while."""
MAX_BODY = 1 << 20
"""Most bytes of any other request."""
UPLOAD, FILE = "/gradio_api/upload", "/gradio_api/file="
_READ = re.compile(
    rf"/|/(assets|static)/.*|/theme\.css|/favicon\.ico|/manifest\.json|{FILE}.*"
    r"|/gradio_api/(heartbeat/[^/]+|queue/data|upload_progress)"
)
_WRITTEN = re.compile(rf"{UPLOAD}|/gradio_api/queue/join")
_HEADERS = {
    # The browser loads nothing from other hosts; gradio needs unsafe-eval.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "frame-ancestors 'self'; form-action 'self'; base-uri 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_OF_FILES = {**_HEADERS, "content-security-policy": "default-src 'none'; sandbox"}


class RefusalError(GocaError):
    """A request that is refused. status: the HTTP status of the answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Guard:
    """An ASGI application that passes on to another only the requests that its page needs.

    Attributes:
        application: The other application.
        folder: Folder of its uploads, and of every file that a request may name.
        hosts: Host names that a request may address; None for any. A foreign name may belong to another website that
            resolves its own name to this machine (DNS rebinding).
    """

    application: Application
    folder: Path
    hosts: frozenset[str] | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with a line of text."""
        if scope["type"] == "lifespan":
            return await self.application(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        headers = _OF_FILES if scope["path"].startswith(FILE) else _HEADERS

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
                message = {**message, "headers": [*message.get("headers", ()), *pairs]}
            await send(message)

        try:
            self._check(scope)
            if scope["method"] == "POST" and scope["path"] != UPLOAD:
                body = await _body(receive)
                self._check_paths(sent_json(body))
                receive = _replayed(body, receive)
        except GocaError as error:
            return await _refuse(error, guarded)
        return await self.application(scope, receive, guarded)

    def _check(self, scope: Message) -> None:
        path, method = scope["path"], scope["method"]
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self.hosts is not None and _hostname(host) not in self.hosts:
            raise RefusalError(f'"{one_line(host)[:80]}" is not served here: open the page at its own address', 421)
        if not (_WRITTEN if method == "POST" else _READ).fullmatch(path) or method not in ("GET", "HEAD", "POST"):
            raise RefusalError(f"there is no {method} {one_line(path)[:80]} here: open the page", 404)
        if method == "POST":
            # The server reads no more than the announced length.
            most, length = MAX_UPLOAD if path == UPLOAD else MAX_BODY, headers.get("content-length", "")
            if not length.isdecimal() or "transfer-encoding" in headers:
                raise RefusalError("the request has no valid content-length: send one", 411)
            if int(length) > most:
                raise RefusalError(f"the request is larger than {most >> 20} MB: send less at a time", 413)
        if method == "POST" and (origin := headers.get("origin")) is not None and urlsplit(origin).netloc != host:
            raise RefusalError("the request comes from another website: open this page", 403)
        if path.startswith(FILE):
            self._check_path(path[len(FILE) :])
        if path == UPLOAD and _size(self.folder) + MAX_UPLOAD > MAX_STORED:
            raise RefusalError("the server's storage is full: try again in an hour", 507)

    def _check_paths(self, content: Any) -> None:
        """Refuse a file that was not uploaded, anywhere in a request."""
        pending = [content]
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                if "path" in value:
                    self._check_path(value["path"])
                pending += value.values()
            elif isinstance(value, list):
                pending += value

    def _check_path(self, path: Any) -> None:
        text = path if isinstance(path, str) else ""
        if "\0" in text or not all(
            Path(os.path.realpath(form)).is_relative_to(self.folder) for form in (text, unquote(text))
        ):
            raise RefusalError("the request names a file that was not uploaded: choose a file", 403)


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _size(folder: Path) -> int:
    return sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file())


async def _body(receive: Receive) -> bytes:
    content, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise RefusalError("the connection was closed before the request was complete", 400)
        content += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(content)


def _replayed(body: bytes, receive: Receive) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed


async def _refuse(error: GocaError, send: Send) -> None:
    status = error.status if isinstance(error, RefusalError) else 400
    body = json.dumps({"detail": textwrap.shorten(str(error), 300, placeholder=" ...")}).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
