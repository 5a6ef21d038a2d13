"""A run's folder: images.jsonl, one line an image as it is done, and run.json, what the run is and what it found.

A process may be killed at any moment: run.json is there before the first line and from then on, a torn last line is
dropped when the run is taken up again, and what was done stays.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from goca.errors import GocaError
from goca.evaluation.fingerprint import differences
from goca.evaluation.records import ImageRecord
from goca.storage.atomic import sweep, write_atomic

IMAGES, FACTS = "images.jsonl", "run.json"


@dataclass
class Run:
    """A folder that one process writes, or, with folder None, nothing but the memory of one.

    settings: what decides the figures; a folder of other settings is refused. images: by id, the last line of each.
    """

    folder: Path | None
    settings: Mapping[str, Any]
    command: Sequence[str] = ()
    images: dict[str, ImageRecord] = field(default_factory=dict)
    _facts: dict[str, Any] = field(default_factory=dict, repr=False)
    _file: int | None = field(default=None, repr=False)

    def __enter__(self) -> "Run":
        """Take the folder up, or begin it.

        Raises GocaError where it belongs to another run or cannot be written, or another process is at it.
        """
        self._facts = {"started": _now(), "sessions": []}
        if self.folder is None:
            return self
        before = read_facts(self.folder)
        if before is not None:
            other = list(differences(json.loads(json.dumps(self.settings)), before.get("settings", {})))
            if other:
                raise GocaError(
                    f"{self.folder} is a run that differs in {'; '.join(other[:3])}: choose another --out, or ask the "
                    "same again"
                )
            self._facts = {key: before[key] for key in ("started", "sessions", "finished") if key in before}
        self._open()
        try:
            if before is None and (self.folder / IMAGES).stat().st_size:
                raise GocaError(f"{self.folder} has {IMAGES} but no {FACTS}: choose another --out")
            self.images = {image.id: image for image in read_images(self.folder, mend=True)}
            sweep([self.folder / FACTS, self.folder / "confusion.png"])
            if "finished" not in self._facts:
                self._write("running", self._facts)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *failed: object) -> None:
        self._close()

    def add(self, images: Iterable[ImageRecord]) -> None:
        """Write images down, each as one whole line."""
        for image in images:
            self.images[image.id] = image
            if self._file is not None:
                self._append(image.line().encode() + b"\n")

    def finish(self, found: Mapping[str, Any], files: Mapping[str, bytes], crew: str | None) -> None:
        """Write files beside the figures, and then these. crew: who did this session's part, None if nobody had to."""
        if crew is not None or "finished" not in self._facts:
            self._facts["sessions"] = [*self._facts["sessions"], {"crew": crew, "command": list(self.command)}]
            self._facts["finished"] = _now()
        if self.folder is not None:
            # One at a time: written together, the last would be away for a moment, and a folder without its run.json
            # is nobody's.
            for name, content in files.items():
                write_atomic({self.folder / name: content})
        self._write("finished", {**self._facts, **found})

    def _write(self, state: str, facts: Mapping[str, Any]) -> None:
        """Replace run.json, whole. Raises ValueError for NaN, which is no JSON: `Report` has none."""
        told = {"state": state, "settings": self.settings, **facts}
        content = (json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
        if self.folder is not None:
            write_atomic({self.folder / FACTS: content})

    def _open(self) -> None:
        assert self.folder is not None
        path = self.folder / IMAGES
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise GocaError(f"cannot write {path}: {error.strerror}; choose another --out") from None
        # There are systems without it, whose users must see to it themselves.
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._close()
                raise GocaError(f"another process is at {self.folder}: wait for it, or choose another --out") from None

    def _append(self, line: bytes) -> None:
        assert self._file is not None
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise GocaError(
                f"cannot write {self.folder}/{IMAGES}: {error.strerror}; free some space and run the same again"
            ) from None

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What run.json says, None where there is none. Raises GocaError for one that is no run's."""
    path = folder / FACTS
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise GocaError(f"{folder} is no folder: choose another --out") from None
    except (OSError, ValueError) as error:
        raise GocaError(f"{path} cannot be read ({error}): choose another --out") from None
    if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
        raise GocaError(f"{path} is not of a run of goca evaluate: choose another folder")
    return found


def read_images(folder: Path, mend: bool = False) -> list[ImageRecord]:
    """The lines of a run. A last line without an end was torn by a kill: it is passed over, and cut off to `mend`.

    Raises GocaError for a line that is none of a run.
    """
    path = folder / IMAGES
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GocaError(f"cannot read {path}: {error.strerror}; is it the folder of a run?") from None
    *whole, torn = content.split(b"\n")
    if torn and mend:
        os.truncate(path, len(content) - len(torn))
    out = []
    for number, line in enumerate(whole, start=1):
        try:
            out.append(ImageRecord.read(line))
        except ValueError as error:
            raise GocaError(f"{path}, line {number} is no image ({error}): restore it, or begin a new run") from None
    return out


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
