"""Files to download: a run in any export format, and other files that a tab makes."""

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from goca.exports import MARKER, exporters
from goca.exports.base import DatasetImage
from goca.exports.objects import ObjectOptions
from goca.web.controls import Runs
from goca.web.messages import note
from goca.web.results import Run

# Makes the browser save the file.
_SAVE = """file => { if (!file) return;
  const link = document.createElement('a');
  link.href = file.url; link.download = file.orig_name || ''; link.click(); }"""


def offer(runs: Runs, button: gr.Button, made: Callable[..., Path], inputs: Sequence[Any]) -> None:
    """Let a button save the file that `made` writes; it takes the values of `inputs`."""
    file = gr.File(visible="hidden")

    def offered(_: Any, *values: Any) -> tuple[Any, ...]:
        path = made(*values)
        return note(f"{path.name} is ready"), str(path)

    # Cleared, or the previous file would be saved once more.
    saved = runs.paint(button.click, offered, inputs, [file], failed=None)
    saved.success(None, file, js=_SAVE, api_visibility="private")


def download(run: Run, form: str, folder: Path) -> Path:
    """Write all images of a run in a format to a new folder in `folder`; several files or folders are zipped.

    Raises:
        GocaError: The format is unknown, or its package is not installed.
    """
    exporter = exporters([form])[form]
    exporter.check()
    name = next(iter(run)) if len(run) == 1 else "goca"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        if exporter.dataset:
            made = Path(scratch, f"{name}{exporter.suffix}")
            exporter.write_dataset(made, _dataset(run), next(iter(run.values())).classes, ObjectOptions())
        else:
            files = Path(scratch, f"{name}.{form}")
            paths = [path for stem, result in run.items() for path in result.save(files, stem, [form])]
            made = paths[0] if len(paths) == 1 else files
        if made.is_dir():
            made = _zipped(made)
        return made.rename(Path(tempfile.mkdtemp(dir=folder), made.name))


def _dataset(run: Run) -> list[DatasetImage]:
    return [
        DatasetImage(
            file_name=f"{stem}.png", stem=stem, source=result.image, read_labels=partial(getattr, result, "labels")
        )
        for stem, result in run.items()
    ]


def _zipped(folder: Path) -> Path:
    target = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.name != MARKER:
                archive.write(path, path.relative_to(folder.parent))
    return target
