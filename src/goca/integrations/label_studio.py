"""Label Studio: an ML backend with three HTTP routes that predicts brush strokes for a project's labels."""

import asyncio
import base64
import http.client
import posixpath
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event, Lock
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit
from xml.etree import ElementTree

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from goca.diffusion.backbone import BackboneSession
from goca.errors import GocaError
from goca.exports.label_studio import prediction
from goca.exports.objects import ObjectOptions
from goca.request import SegmentationRequest
from goca.segmenter import Segmenter
from goca.storage.reading import sent_json
from goca.text.class_list import SPECIAL
from goca.text.clean import one_line

MAX_BYTES = 64 << 20
"""Most bytes of a request, and of a fetched image."""
MAX_SECONDS = 60
"""Most seconds that receiving a request, or an image, may take."""
MAX_LABELS = 1000
"""Most brush labels of a project."""
MAX_LETTERS = 500
"""Most characters of a message about a request, which may quote its content."""
MEDIA = ("/data/", "/storage-data/", "/tasks/")
"""Paths at which Label Studio serves a task's files: uploads, local storage, and cloud storage through its proxy."""

Report = Callable[[str], None]


class RequestError(GocaError):
    """A request that cannot be answered. status: the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class BrushControl:
    """The brush labels of a labelling configuration.

    Attributes:
        name, image: Names of its BrushLabels tag and of the Image tag that it annotates.
        key: Key of the image's address in a task's data.
        labels: {label: words to look for}, from `<Label value="car" predicted_values="jeep, taxi"/>`.
    """

    name: str
    image: str
    key: str
    labels: Mapping[str, Sequence[str]]

    @classmethod
    def of(cls, config: Any) -> "BrushControl":
        """The first BrushLabels tag of an Image in the XML of a labelling configuration.

        Raises:
            RequestError: There is no such tag, the text is not XML, or has a document type (it may hold entities).
        """
        if not isinstance(config, str):
            raise RequestError("the labelling configuration is missing: send it as text")
        if "<!DOCTYPE" in config:
            raise RequestError("the labelling configuration has a document type: remove it")
        try:
            root = ElementTree.fromstring(config)
        except (ElementTree.ParseError, ValueError) as error:
            raise RequestError(f"the labelling configuration is not XML ({error}): is it complete?") from None
        images = {tag.get("name", ""): tag.get("value", "") for tag in root.iter("Image")}
        for tag in root.iter("BrushLabels"):
            image = tag.get("toName", "")
            if not images.get(image, "").startswith("$"):
                continue
            labels = {}
            for label in tag.iter("Label"):
                name = label.get("value", "")
                if name.strip() and name.strip().lower() not in SPECIAL:
                    words = label.get("predicted_values", "").split(",")
                    labels[name] = [word for word in map(one_line, words) if word and word != one_line(name)]
            if len(labels) > MAX_LABELS:
                raise RequestError(
                    f"the labelling configuration has {len(labels)} brush labels: use at most {MAX_LABELS}"
                )
            if labels:
                return cls(tag.get("name", ""), image, images[image][1:], labels)
        raise RequestError(
            'the labelling configuration has no <BrushLabels toName="image"> with labels for an <Image name="image" '
            'value="$image">: add them'
        )


@dataclass(frozen=True)
class ImageSource:
    """Source of the tasks' images: the request itself, or one Label Studio server and nothing else.

    Attributes:
        url: The server's address, such as "http://localhost:8080"; None to accept only images within requests.
        token: Access token for its files.

    Raises:
        GocaError: The address or the token is malformed.
    """

    url: str | None = None
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.url is not None:
            try:
                base = urlsplit(self.url)
                usable = base.scheme in ("http", "https") and base.hostname and "@" not in base.netloc
                usable = usable and _origin(base) and not base.query
            except ValueError:
                usable = False
            if not usable:
                raise GocaError(
                    f'"{self.url}" is not the address of a Label Studio: give one such as http://localhost:8080',
                    "label_studio_url",
                )
        if not (self.token.isascii() and self.token.isprintable()):
            raise GocaError("the token for Label Studio contains invalid characters: copy it again")

    def read(self, address: Any) -> bytes:
        """The file at a data: URI, or at an address of Label Studio as its tasks contain them.

        Raises:
            RequestError: It may not, or cannot, be read.
        """
        if not isinstance(address, str):
            raise RequestError("the task has no image under the key that the labelling configuration names")
        if address[:5].lower() == "data:":
            try:
                head, content = address.split(",", 1)
                if not head.lower().endswith(";base64"):
                    raise ValueError
                return base64.b64decode(content, validate=True)
            except ValueError:
                raise RequestError("the image's data: URI is not in base64: is it complete?") from None
        return self._fetched(self._allowed(address))

    def _allowed(self, address: str) -> str:
        shown = f'"{one_line(address)[:80]}"'
        if self.url is None:
            raise RequestError(f"{shown} is not a data: URI, and the address of Label Studio is not set", 403)
        base = urlsplit(self.url.rstrip("/"))
        try:
            parts = urlsplit(address)
            relative = address.startswith("/") and not parts.netloc
            inside = relative or _origin(parts) == _origin(base)
        except ValueError:
            inside = False
        path = (base.path if relative else "") + parts.path if inside else ""
        plain = posixpath.normpath(unquote(path))
        if not plain.startswith(tuple(base.path + folder for folder in MEDIA)):
            raise RequestError(
                f"{shown} is not a file of the Label Studio at {self.url}, the only source of images", 403
            )
        # Rebuilt, so that it leads there however another parser reads the address.
        query = f"?{quote(parts.query, safe='=&%/+:,')}" if parts.query else ""
        return f"{base.scheme}://{base.netloc}{quote(path, safe='/%+:,')}{query}"

    def _fetched(self, url: str) -> bytes:
        request = urllib.request.Request(url, headers={"User-Agent": "goca"})
        if self.token:
            kind = "Bearer" if self.token.count(".") == 2 else "Token"  # a JSON Web Token has two
            request.add_unredirected_header("Authorization", f"{kind} {self.token}")
        content, deadline = bytearray(), time.monotonic() + MAX_SECONDS
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=MAX_SECONDS / 2) as response:
                while part := response.read1(1 << 16):
                    content += part
                    if len(content) > MAX_BYTES or time.monotonic() > deadline:
                        raise RequestError(
                            f"the image is larger than {MAX_BYTES >> 20} MB or takes over {MAX_SECONDS} s to fetch", 502
                        )
        except urllib.error.HTTPError as error:
            error.close()
            raise RequestError(
                f"Label Studio answered HTTP {error.code} for the image: check LABEL_STUDIO_API_KEY", 502
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = one_line(str(getattr(error, "reason", None) or error))[:200]
            raise RequestError(f"the image cannot be fetched from Label Studio ({reason})", 502) from None
        return bytes(content)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: a client must not make this machine request addresses of its choice."""

    def redirect_request(self, *unused: Any) -> None:
        return None


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    """Scheme, host and port. Raises ValueError for a port that is not a number, or with a user's name."""
    if "@" in parts.netloc:
        raise ValueError
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


@dataclass(frozen=True)
class Backend:
    """A model that answers Label Studio's requests, one image at a time.

    Attributes:
        segmenter: Labels the images.
        request: What is asked besides the labels.
        classes: {label: synonyms} to look for, if not all of a project's labels.
        objects: How regions become strokes.
        images: Source of the images.
        version: Identifies the predictions of this model.
        report: Is called with a line for each refused request and each task that is left out.
        stopping: Once it is set, no further image is started.
    """

    segmenter: Segmenter
    request: SegmentationRequest
    classes: Mapping[str, Sequence[str]] | None
    objects: ObjectOptions
    images: ImageSource
    version: str
    report: Report
    stopping: Event = field(default_factory=Event, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def health(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a health check."""
        return {"status": "UP", "model_class": self.version}

    def setup(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Check a project's labelling configuration, `schema`, when it is connected."""
        self._request_for(BrushControl.of(body.get("schema")))
        return {"model_version": self.version}

    def predict(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A prediction for each of `tasks`, by `label_config`; one without strokes for a task that fails.

        Raises:
            GocaError: The request is not complete, or no prediction can be made.
        """
        tasks = body.get("tasks")
        if not (isinstance(tasks, list) and tasks and all(isinstance(task, dict) for task in tasks)):
            raise RequestError("the request has no tasks: send a list of them, each with its data")
        control = BrushControl.of(body.get("label_config"))
        request, names, session = self._request_for(control)
        predictions, errors = list[dict[str, Any]](), list[tuple[Any, GocaError]]()
        for task in tasks:
            if self.stopping.is_set():
                raise RequestError("the server is stopping: start it again", 503)
            try:
                data = task.get("data")
                image = self.images.read(data.get(control.key) if isinstance(data, dict) else None)
                predictions.append(self._prediction(replace(request, image=image), names, control, session))
            except GocaError as error:
                errors.append((task.get("id"), error))
                predictions.append({"model_version": self.version, "result": []})
        if len(errors) == len(tasks):
            raise errors[0][1]
        for number, failure in errors:
            self.report(f"left out: task {number}: {failure}")
        return {"results": predictions, "model_version": self.version}

    def _request_for(self, control: BrushControl) -> tuple[SegmentationRequest, list[str], BackboneSession]:
        labels, wanted = dict(control.labels), self.classes
        if wanted is not None:
            labels = {name: wanted[one_line(name)] for name in labels if one_line(name) in wanted}
            if not labels:
                raise RequestError(f"the labelling configuration has none of the labels {', '.join(wanted)}: add them")
        request = replace(self.request, classes=labels)
        with self._lock:
            return request, list(labels), self.segmenter.check(request)

    def _prediction(
        self, request: SegmentationRequest, names: Sequence[str], control: BrushControl, session: BackboneSession
    ) -> dict[str, Any]:
        with self._lock:
            ((_, result),) = self.segmenter.stream([request], session)
        if isinstance(result, GocaError):
            raise result
        return prediction(
            result.labels,
            names,
            self.objects,
            evidence=result.evidence,
            control=control.name,
            image=control.image,
            model_version=self.version,
        )


def application(backend: Backend) -> Starlette:
    """The routes POST /predict, POST /setup and GET /health; a mistake is a line of JSON, {"error": ...}."""

    def route(path: str, answer: Callable[[Mapping[str, Any]], dict[str, Any]], method: str) -> Route:
        async def endpoint(request: Request) -> JSONResponse:
            try:
                content = await _content(request) if method == "POST" else b"{}"
                return JSONResponse(await run_sync(lambda: answer(_body(content)), abandon_on_cancel=True))
            except asyncio.CancelledError:  # the server is stopping and waits for its threads
                backend.stopping.set()
                raise
            except GocaError as error:
                # 422: the image or the classes are well-formed, but cannot be used.
                message, status = str(error), error.status if isinstance(error, RequestError) else 422
            except Exception as error:
                message, status = f"unexpected {type(error).__name__}: {error}", 500
            message = textwrap.shorten(message, MAX_LETTERS, placeholder=" ...")
            backend.report(f"{path}: {message}")
            return _refusal(message, status)

        return Route(path, endpoint, methods=[method])

    def unknown(request: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return _refusal(
            f"there is no {request.method} {one_line(request.url.path)[:80]} here",
            status,
        )

    routes = [
        *(route("/predict", backend.predict, "POST"), route("/setup", backend.setup, "POST")),
        *(route("/health", backend.health, "GET"), route("/", backend.health, "GET")),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: unknown})


async def _content(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        # A browser lets any website send other content types here without asking.
        raise RequestError("the request is not application/json: send it as that", 415)
    content, too_large = bytearray(), f"the request is larger than {MAX_BYTES >> 20} MB: send fewer tasks at a time"
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise RequestError(too_large, 413)
    try:
        async with asyncio.timeout(MAX_SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > MAX_BYTES:
                    raise RequestError(too_large, 413)
    except TimeoutError:
        raise RequestError(
            f"the request took over {MAX_SECONDS} s to arrive: send fewer tasks at a time", 408
        ) from None
    except ClientDisconnect:
        raise RequestError("the connection was closed before the request was complete") from None
    return bytes(content)


def _body(content: bytes) -> dict[str, Any]:
    try:
        body = sent_json(content)
    except GocaError as error:
        raise RequestError(str(error)) from None
    if not isinstance(body, dict):
        raise RequestError("the request is not a JSON object: send one")
    return body


def _refusal(message: str, status: int) -> JSONResponse:
    return JSONResponse({"error": message}, status)
