"""The page as a web application: its tabs behind their guard."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from goca.segmenter import Segmenter
from goca.web.generate import GenerateTab
from goca.web.guard import MAX_UPLOAD, Guard
from goca.web.inspect import InspectTab
from goca.web.segment import SegmentTab
from goca.web.theme import CSS, theme

TITLE = "goca"
SESSIONS = 64
"""Most visitors whose state is remembered."""
QUEUE = 16
"""Most clicks that wait; further ones are refused."""
CLEANED_EVERY, KEPT_FOR = 600, 3600
"""Seconds that uploaded and shown files are kept."""


@contextmanager
def application(segmenter: Segmenter, hosts: frozenset[str] | None) -> Iterator[Guard]:
    """The page of a model as an ASGI application; its files are removed on exit.

    Args:
        segmenter: The model, whose pipeline all tabs use.
        hosts: See `Guard`.
    """
    with tempfile.TemporaryDirectory(prefix="goca-web-") as name:
        folder = Path(name).resolve()
        os.environ.update(GRADIO_TEMP_DIR=str(folder), GRADIO_ANALYTICS_ENABLED="False")
        blocks = _page(segmenter, folder)
        blocks.state_session_capacity = SESSIONS
        mounted = gr.mount_gradio_app(
            FastAPI(openapi_url=None),
            blocks,
            "/",
            theme=theme(),
            css=CSS,
            footer_links=[],
            run_history=False,
            max_file_size=MAX_UPLOAD,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            show_error=False,
        )
        # Mounted in another application, gradio is not launched, and then accepts files from anywhere.
        blocks.has_launched = blocks.is_running = True
        yield Guard(mounted, folder, hosts)


def _page(segmenter: Segmenter, folder: Path) -> gr.Blocks:
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(CLEANED_EVERY, KEPT_FOR)) as blocks:
        gr.HTML(
            f"<h1>{TITLE}</h1><p>Segments images by words, with the text-to-image model "
            f"<b>{Path(segmenter.backbone.name).name}</b>.</p>",
            elem_classes="goca-head",
        )
        with gr.Tab("Segment", elem_id="tab-segment"):
            SegmentTab(segmenter, folder).build()
        with gr.Tab("Generate", elem_id="tab-generate"):
            GenerateTab(segmenter, folder).build()
        with gr.Tab("Inspect", elem_id="tab-inspect"):
            InspectTab(segmenter).build()
    return blocks.queue(max_size=QUEUE, api_open=False)
