"""`goca serve`: a model that stays loaded, behind a web page or for another program."""

import errno
import os
import socket
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from goca import bundled
from goca.cli import arguments
from goca.cli.console import first_given, say, session, show
from goca.cli.settings import load_segmenter
from goca.errors import GocaError

OF_LABEL_STUDIO = (
    *("label_studio_url", "classes", "classes_file", "background_classes", "background"),
    *("instances", "min_area", "fill_holes"),
)
"""Options that do not apply to the page."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MOST_CONNECTIONS = 16
"""Concurrent connections; more are told to retry later, as each may hold a request of many megabytes."""
MOST_CONNECTIONS_OF_PAGE = 128
"""A browser keeps about six; none of their requests takes much memory."""
GRACE = 5
"""Seconds that pending answers have when the server is stopped."""


def serve(
    label_studio: Annotated[
        bool,
        arguments.option("--label-studio", help="Serve as an ML backend for Label Studio that predicts brush labels."),
    ] = False,
    label_studio_url: Annotated[
        str | None,
        arguments.option(
            metavar="URL",
            help="Address of Label Studio, to fetch images from; set its access token in LABEL_STUDIO_API_KEY. "
            "[default: LABEL_STUDIO_URL; without it, only images within requests]",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        arguments.option(metavar="NAMES", help="Labels to look for.  [default: all brush labels of the project]"),
    ] = None,
    classes_file: Annotated[
        Path | None, arguments.option(metavar="FILE", help="File of labels, with synonyms; see goca segment.")
    ] = None,
    background_classes: Annotated[
        str | None,
        arguments.option(
            metavar="NAMES", help='Nouns whose pixels get no label; "" for none.  [default: the model\'s list]'
        ),
    ] = None,
    background: Annotated[
        str,
        typer.Option(
            metavar="auto|none|T",
            help="Background: auto, by the recipe's rule; none, every pixel has a label; T, a score threshold, 0 to 1.",
        ),
    ] = "auto",
    model: arguments.ModelOption = bundled.DEFAULT,
    settings: arguments.SettingsOption = None,
    recipe: arguments.RecipeOption = "goca-open",
    floor: arguments.FloorOption = None,
    refine_edges: arguments.RefineEdgesOption = False,
    instances: Annotated[
        bool, arguments.option("--instances", help="Make a stroke for each connected region, not for each label.")
    ] = False,
    min_area: Annotated[int, typer.Option(metavar="N", min=1, help="Leave out regions of fewer than N pixels.")] = 1,
    fill_holes: Annotated[
        bool, arguments.option("--fill-holes", help="Give regions the pixels that they surround.")
    ] = False,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen at; 0.0.0.0 for every network of this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen at; 0 for a free one.")
    ] = 9090,
    device: arguments.DeviceOption = None,
    dtype: arguments.DtypeOption = None,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Serve a web page for segmenting and generating, until Ctrl-C.

    With --label-studio, serve the model to Label Studio instead: connect http://127.0.0.1:9090 as a model in the
    project's settings there.
    """
    with session(verbose):
        if not label_studio and (flag := first_given(OF_LABEL_STUDIO)) is not None:
            raise GocaError(f"{flag} only applies to --label-studio: leave it out, the page has a control for it")
        listed = None if classes is None and classes_file is None else arguments.classes(classes, classes_file)[0]
        options: dict[str, Any] = {"device": device, "dtype": dtype, "floor": floor, "refine_edges": refine_edges}
        options |= arguments.settings(settings)
        threshold = arguments.background(background)
        background_names = arguments.background_classes(background_classes, None)
        arguments.check_model(model, recipe, device, dtype)
        _check_installed(*(("starlette", "serve") if label_studio else ("gradio", "web")))
        if not label_studio:
            _serve_page(model, recipe, options, host, port)
            return
        from goca.exports.objects import ObjectOptions
        from goca.integrations.label_studio import Backend, ImageSource, application

        url = label_studio_url or os.environ.get("LABEL_STUDIO_URL") or None
        source = ImageSource(url, os.environ.get("LABEL_STUDIO_API_KEY", "").strip())
        objects = ObjectOptions(instances=instances, min_area=min_area, fill_holes=fill_holes)
        with _listening(host, port) as listener:
            from goca.request import SegmentationRequest

            segmenter = load_segmenter(model, recipe, options)
            request = SegmentationRequest("", (), background_names, threshold)
            backend = Backend(segmenter, request, listed, objects, source, f"goca {model} {recipe}", say)
            _run(application(backend), listener, host, MOST_CONNECTIONS)


def _check_installed(package: str, extra: str) -> None:
    if find_spec(package) is None or find_spec("uvicorn") is None:
        raise GocaError(f'serving needs {package} and uvicorn: pip install "goca[{extra}]"')


def _serve_page(model: str, recipe: str, options: Mapping[str, Any], host: str, port: int) -> None:
    with _listening(host, port) as listener:
        from goca.web.page import application

        segmenter = load_segmenter(model, recipe, options)
        hosts = frozenset(LOOPBACK) if host in LOOPBACK else None
        with application(segmenter, hosts) as page:
            _run(page, listener, host, MOST_CONNECTIONS_OF_PAGE)


def _listening(host: str, port: int) -> socket.socket:
    """A listening socket, opened before the model is loaded. Raises GocaError if it cannot be opened."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]
        hint = "port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "host"
        raise GocaError(f"cannot listen at {host}, port {port}: {reason}; choose another", hint) from None


def _run(application: Any, listener: socket.socket, host: str, most_connections: int) -> None:
    """Serve until a signal says stop; KeyboardInterrupt is then raised."""
    import uvicorn

    port = listener.getsockname()[1]
    show(f"listening at http://{f'[{host}]' if ':' in host else host}:{port}, until Ctrl-C")
    if host not in LOOPBACK:
        say(f"anyone who can reach port {port} of this machine can use the model: there is no password")
    config = uvicorn.Config(
        application, log_config=None, limit_concurrency=most_connections, timeout_graceful_shutdown=GRACE
    )
    uvicorn.Server(config).run(sockets=[listener])
