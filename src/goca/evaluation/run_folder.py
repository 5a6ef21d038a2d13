"""A run's folder: images.jsonl, one line per finished image, and run.json, the run's settings and results.

The process may be killed at any moment: run.json exists from before the first line, and finished work is kept.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from goca.errors import GocaError
from goca.evaluation.fingerprint import differences
from goca.evaluation.records import ImageRecord
from goca.storage.atomic import sweep, write_atomic
from goca.storage.json_lines import JsonLines
from goca.storage.reading import escaped, read_json

IMAGES, FACTS, CONFUSION = "images.jsonl", "run.json", "confusion.png"


class RunFolder:
    """A folder that one process writes or, without a folder, only its records in memory.

    Args:
        folder: Path of the folder; None to write nothing.
        settings: Everything that decides the figures; a folder with other settings is refused.
        command: The user's command, for the record.
        lines: Opens the folder's records, which have an `id`; None for those of `goca evaluate`.

    Attributes:
        images: {id: the last record of the image}.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: Mapping[str, Any],
        command: Sequence[str] = (),
        lines: Callable[[Path], JsonLines[Any]] | None = None,
    ) -> None:
        self.folder, self.settings, self.command = folder, settings, command
        self.images: dict[str, Any] = {}
        self._facts: dict[str, Any] = {"started": _now(), "sessions": []}
        self._lines = None if folder is None else (lines or image_lines)(folder)

    def __enter__(self) -> "RunFolder":
        """Resume or create the folder. Raises GocaError if it is another run's, or another process writes it."""
        if self.folder is None or self._lines is None:
            return self
        before = read_facts(self.folder)
        if before is not None:
            different = list(differences(json.loads(json.dumps(self.settings)), before.get("settings", {})))
            if different:
                raise GocaError(
                    f"{self.folder} holds a run that differs in {'; '.join(different[:3])}: choose another folder, or "
                    "use its settings",
                    "out",
                )
            self._facts = {key: before[key] for key in ("started", "sessions", "finished") if key in before}
        self._lines.open()
        try:
            records = self._lines.read()
            if before is None and records:
                raise GocaError(f"{self.folder} has {IMAGES} but no {FACTS}: choose another folder", "out")
            self.images = {image.id: image for image in records}
            sweep([self.folder / FACTS, self.folder / CONFUSION])
            if "finished" not in self._facts:
                self._write("running", self._facts)
        except BaseException:
            self._lines.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lines is not None:
            self._lines.close()

    def add(self, images: Sequence[Any]) -> None:
        """Write the records of images, each as one whole line."""
        self.images |= {image.id: image for image in images}
        if self._lines is not None:
            self._lines.append(*images)

    def finish(self, figures: Mapping[str, Any], files: Mapping[str, bytes], executor: str | None) -> None:
        """Write further files, and then the figures.

        Args:
            figures: Entries of run.json besides the settings, as JSON.
            files: {name: content} of further files.
            executor: What did this session's part; None if nothing was left to do.

        Raises:
            GocaError: The folder cannot be written, or was deleted or moved in the meantime.
        """
        if self._lines is not None:
            self._lines.require_present()
        if executor is not None or "finished" not in self._facts:
            session = {"executor": executor, "command": list(self.command)}
            self._facts["sessions"] = [*self._facts["sessions"], session]
            self._facts["finished"] = _now()
        if self.folder is not None:
            # One at a time: written together, run.json would be missing for a moment, and a folder without it is not
            # recognised as a run's.
            for name, content in files.items():
                write_atomic({self.folder / name: content})
        self._write("finished", {**self._facts, **figures})

    def _write(self, state: str, facts: Mapping[str, Any]) -> None:
        """Replace run.json, whole."""
        content = {"state": state, "settings": self.settings, **facts}
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if self.folder is not None:
            write_atomic({self.folder / FACTS: escaped(text).encode()})


def image_lines(folder: Path) -> JsonLines[ImageRecord]:
    """The records of a run's images."""
    return JsonLines(folder / IMAGES, ImageRecord.from_json, ImageRecord.to_json, "an image of a run")


def read_facts(folder: Path) -> dict[str, Any] | None:
    """The content of run.json; None if there is none. Raises GocaError for one that is not a run's."""
    path = folder / FACTS
    # pathlib raises for a name that the system refuses; writing there reports it.
    if not os.path.exists(path):  # noqa: PTH110
        return None
    facts = read_json(path)
    parts = (facts.get("settings"), facts.get("sessions")) if isinstance(facts, dict) else ()
    if [type(part) for part in parts] != [dict, list]:
        raise GocaError(f"{path} is not from a run of goca evaluate: restore it, or name another folder")
    return facts


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
