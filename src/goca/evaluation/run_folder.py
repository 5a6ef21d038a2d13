"""A run's folder: images.jsonl, one line an image as it is done, and run.json, what the run is and what it found.

A process may be killed at any moment: run.json is there before the first line and from then on, and what was done
stays.
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
    """A folder that one process writes, or, without a folder, nothing but the memory of one.

    Args:
        folder: None to write nothing.
        settings: what decides the figures; a folder of other settings is refused.
        command: as the user gave it, for the record.
        lines: opens the folder's records, which have an `id`; None for those of `goca evaluate`.

    Attributes:
        images: the last record of each image, by its id.
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
        """Resume the folder, or begin it; GocaError if it is another run's, or another process writes it."""
        if self.folder is None or self._lines is None:
            return self
        before = read_facts(self.folder)
        if before is not None:
            different = list(differences(json.loads(json.dumps(self.settings)), before.get("settings", {})))
            if different:
                raise GocaError(
                    f"{self.folder} is a run that differs in {'; '.join(different[:3])}: choose another folder, or ask "
                    "the same again",
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
        """Write images down, each as one whole line."""
        self.images |= {image.id: image for image in images}
        if self._lines is not None:
            self._lines.append(*images)

    def finish(self, figures: Mapping[str, Any], files: Mapping[str, bytes], executor: str | None) -> None:
        """Write files beside the figures, and then these.

        Args:
            figures: what run.json says beside the settings, as JSON.
            files: the content of further files, by their names.
            executor: what did this session's part; None if nothing was left to do.

        Raises:
            GocaError: the folder cannot be written, or was deleted or moved meanwhile.
        """
        if self._lines is not None:
            self._lines.require_present()
        if executor is not None or "finished" not in self._facts:
            session = {"executor": executor, "command": list(self.command)}
            self._facts["sessions"] = [*self._facts["sessions"], session]
            self._facts["finished"] = _now()
        if self.folder is not None:
            # One at a time: written together, the last would be away for a moment, and a folder without its run.json
            # is nobody's.
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
    """What run.json says, None where there is none. Raises GocaError for one that is not a run's."""
    path = folder / FACTS
    # pathlib raises for a name that the system refuses; who writes there says so.
    if not os.path.exists(path):  # noqa: PTH110
        return None
    facts = read_json(path)
    parts = (facts.get("settings"), facts.get("sessions")) if isinstance(facts, dict) else ()
    if [type(part) for part in parts] != [dict, list]:
        raise GocaError(f"{path} is not of a run of goca evaluate: restore it, or name another folder")
    return facts


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
