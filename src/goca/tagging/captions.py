"""Captions in a file: those that somebody saved, and those that a tagger saves while it makes them."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any

from goca.errors import GocaError
from goca.evaluation.datasets.base import Dataset, Sample


@dataclass(frozen=True)
class Entry:
    """The caption of one image. dataset, tagger: whose it is and who said it, where the file tells."""

    id: str
    caption: str
    dataset: str = ""
    tagger: str = ""


def read(path: Path) -> tuple[Entry, ...]:
    """The captions of a file, by its suffix; of an image that occurs twice the last one counts to its readers.

    .jsonl: an object with "id" and "caption" on each line, "dataset" and "tagger" if known; a last line that a killed
    process left unfinished is passed over. .json: a list of such objects, or {id: caption}. .tsv: id, tab, caption.
    Raises GocaError for a file that is not there or is none of these.
    """
    readers = {".jsonl": _jsonl, ".json": _json, ".tsv": _tsv}
    if path.suffix not in readers:
        raise GocaError(f"{path} is no file of captions: name one that ends in {', '.join(readers)}")
    return tuple(readers[path.suffix](path, _bytes(path)))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise GocaError(f"cannot read the captions {path}: {error.strerror}; check the path") from None


def _jsonl(path: Path, content: bytes) -> Iterator[Entry]:
    *whole, last = content.split(b"\n")
    for number, line in enumerate(whole, start=1):
        if line.strip():
            yield _parsed(line, f"{path}, line {number}")
    if last.strip() and not _torn(last):
        yield _parsed(last, f"{path}, last line")


def _torn(line: bytes) -> bool:
    """Whether a line without its end is unfinished: it may lack no more than the line break."""
    try:
        _parsed(line, "")
    except GocaError:
        return True
    return False


def _json(path: Path, content: bytes) -> Iterator[Entry]:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise GocaError(f"{path} is no JSON ({error}): write {{id: caption}}") from None
    if isinstance(found, dict):
        found = [{"id": name, "caption": caption} for name, caption in found.items()]
    if not isinstance(found, list):
        raise GocaError(f'{path} holds no captions: write {{id: caption}}, or a list of {{"id", "caption"}}')
    for number, entry in enumerate(found, start=1):
        yield _entry(entry, f"{path}, entry {number}")


def _tsv(path: Path, content: bytes) -> Iterator[Entry]:
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise GocaError(f"{path} is not UTF-8: save it as UTF-8 text") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            name, tab, caption = line.partition("\t")
            yield _entry({"id": name, "caption": caption} if tab else None, f"{path}, line {number}")


def _parsed(line: bytes, where: str) -> Entry:
    try:
        return _entry(json.loads(line), where)
    except ValueError:
        return _entry(None, where)


def _entry(found: Any, where: str) -> Entry:
    told = {name: found.get(name, "") for name in Entry.__annotations__} if isinstance(found, dict) else {}
    if not told.get("id") or "caption" not in found or not all(isinstance(value, str) for value in told.values()):
        raise GocaError(f"{where} is no caption: give each image's id and its caption, both text")
    return Entry(**told)


class Captions:
    """The captions that somebody saved: by hand, or by an earlier run of another tagger."""

    def __init__(self, path: Path) -> None:
        self.path = path
        entries = read(path)
        self._captions = {(entry.dataset, entry.id): entry.caption for entry in entries}
        told = dict.fromkeys(entry.tagger for entry in entries if entry.tagger)
        self._told = f" ({', '.join(told)})" if told else ""
        # A file of the same name that says something else is another tagger.
        self._mark = blake2b(json.dumps([astuple(entry) for entry in entries]).encode(), digest_size=4).hexdigest()

    @property
    def name(self) -> str:
        """The file's name, who said its captions where it tells, and a mark of what they are."""
        return f"captions {self.path.name}{self._told} {self._mark}"

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        for whose in (dataset.name, ""):
            if (whose, sample.id) in self._captions:
                return self._captions[whose, sample.id]
        raise GocaError(f'{self.path} has no caption of "{sample.id}" in {dataset.name}: add it, or tag it another way')


class Record:
    """A .jsonl file to which one tagger adds each caption as soon as it knows it, and whose captions it need not make
    again. It is only read until `open`. Safe to use from several threads.
    """

    def __init__(self, path: Path, tagger: str) -> None:
        """Raises GocaError for a file that cannot be read, or holds captions of another tagger."""
        if path.suffix != ".jsonl":
            raise GocaError(f"captions are saved line by line: name a file that ends in .jsonl instead of {path}")
        self.path, self.tagger = path, tagger
        self._lock = Lock()
        self._opened = False
        self._captions: dict[tuple[str, str], str] = {}
        if path.exists():
            for entry in read(path):
                if entry.tagger != tagger:
                    raise GocaError(f'{path} holds captions of "{entry.tagger}", not of "{tagger}": name another file')
                self._captions[entry.dataset, entry.id] = entry.caption

    def get(self, sample: Sample, dataset: Dataset) -> str | None:
        return self._captions.get((dataset.name, sample.id))

    def add(self, sample: Sample, dataset: Dataset, caption: str) -> None:
        entry = Entry(sample.id, caption, dataset.name, self.tagger)
        self.open()
        with self._lock:
            self._append(json.dumps(asdict(entry)).encode() + b"\n")
            self._captions[dataset.name, sample.id] = caption

    def open(self) -> None:
        """Make the file ready for captions, once; GocaError where it cannot be written. `add` does it if need be.

        Who pays for a caption opens the file first.
        """
        with self._lock:
            if not self._opened:
                self._mend()
                self._opened = True

    def _mend(self) -> None:
        """End a last line that lacks only its line break, take away one that is unfinished; make the file."""
        content = _bytes(self.path) if self.path.exists() else b""
        last = content.rpartition(b"\n")[2]
        if last and _torn(last):
            try:
                os.truncate(self.path, len(content) - len(last))
            except OSError as error:
                raise self._refused(error) from None
        self._append(b"\n" if last and not _torn(last) else b"")

    def _append(self, line: bytes) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(line)
        except OSError as error:
            raise self._refused(error) from None

    def _refused(self, error: OSError) -> GocaError:
        return GocaError(f"cannot write the captions {self.path}: {error.strerror}; name another file")
