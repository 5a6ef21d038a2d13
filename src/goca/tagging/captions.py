"""Files of captions: reading saved ones, and saving a tagger's captions as they are made."""

import json
from dataclasses import asdict, astuple, dataclass
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import Any

from goca.errors import GocaError
from goca.storage.json_lines import JsonLines
from goca.storage.reading import escaped, read_json, read_text
from goca.tagging.base import ImageCollection, TaggableImage
from goca.text.clean import storable

FORMATS = (".jsonl", ".json", ".tsv")


@dataclass(frozen=True)
class CaptionEntry:
    """The caption of one image; `dataset` and `tagger`, its author, are "" if the file does not have them."""

    id: str
    caption: str
    dataset: str = ""
    tagger: str = ""


def read_captions(path: Path) -> list[CaptionEntry]:
    """The captions in a file; if an image occurs twice, its last caption is used.

    Args:
        path: .jsonl: an object with "id" and "caption" on each line, "dataset" and "tagger" if known; a last line that
            a killed process left unfinished is skipped. .json: a list of such objects, or {id: caption}. .tsv: id,
            tab, caption.

    Raises:
        GocaError: The file is missing, or has none of these formats.
    """
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise GocaError(f"{path} is not a file of captions: its name must end in {', '.join(FORMATS)}")
    if kind == ".jsonl":
        return _json_lines(path).read()
    values = _json(path) if kind == ".json" else _tsv(read_text(path))
    entries = []
    for number, value in enumerate(values, start=1):
        try:
            entries.append(_entry(value))
        except ValueError as error:
            raise GocaError(f"{path}, entry {number} is not a caption: {error}") from None
    return entries


def _json_lines(path: Path) -> JsonLines[CaptionEntry]:
    return JsonLines(path, _entry, asdict, "a caption")


def _json(path: Path) -> list[Any]:
    value = read_json(path)
    if isinstance(value, dict):
        return [{"id": name, "caption": caption} for name, caption in value.items()]
    if not isinstance(value, list):
        raise GocaError(f'{path} is neither {{id: caption}} nor a list of {{"id", "caption"}}: write it as one of them')
    return value


def _tsv(text: str) -> list[Any]:
    lines = (line.partition("\t") for line in text.splitlines() if line.strip())
    return [
        {"id": name.strip(), "caption": caption.strip()} if tab and "\t" not in caption.strip() else None
        for name, tab, caption in lines
    ]


def _entry(value: Any) -> CaptionEntry:
    fields = {name: value.get(name, "") for name in CaptionEntry.__annotations__} if isinstance(value, dict) else {}
    if not fields.get("id") or "caption" not in value or not all(isinstance(text, str) for text in fields.values()):
        raise ValueError("give each image's id and its caption, both text")
    # The id has a data set's form, and the caption can be written again.
    return CaptionEntry(escaped(fields.pop("id")), **{name: storable(text) for name, text in fields.items()})


class CaptionsTagger:
    """Captions that were saved, by hand or by another tagger, in a file that `read_captions` reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        entries = read_captions(path)
        self._captions = {(entry.dataset, entry.id): entry.caption for entry in entries}
        captions = {(entry.dataset, entry.id, entry.caption) for entry in entries}
        # In files that grow line by line the last line counts.
        if len(self._captions) < len(captions) and path.suffix.lower() != ".jsonl":
            raise GocaError(f"{path} has two captions for one image: remove one")
        taggers = ", ".join(dict.fromkeys(entry.tagger for entry in entries if entry.tagger))
        # A file with the same name but other captions is another tagger.
        content = json.dumps([astuple(entry) for entry in entries]).encode()
        digest = blake2b(content, digest_size=4).hexdigest()
        self.name = f"captions {path.name}{taggers and f' ({taggers})'} {digest}"

    def tag(self, sample: TaggableImage, dataset: ImageCollection) -> str:
        # Users may name images by their file name only.
        ids = [sample.id, sample.image.name] if isinstance(sample.image, Path) else [sample.id]
        for key in product((dataset.name, ""), ids):
            if key in self._captions:
                return self._captions[key]
        raise GocaError(
            f'{self.path} has no caption of "{sample.id}" in {dataset.name}: add one, or use another tagger'
        )


class CaptionStore:
    """A .jsonl file to which a tagger adds each caption as soon as it has it, so that none is made twice.

    As a context manager it locks the file for this process before a caption is paid for; until then the file is only
    read. It can be used from several threads.

    Raises:
        GocaError: The file cannot be read, or has captions of another tagger.
    """

    def __init__(self, path: Path, tagger: str) -> None:
        if path.suffix != ".jsonl":
            raise GocaError(f"captions are saved line by line: name a file that ends in .jsonl instead of {path}")
        self.path, self.tagger = path, tagger
        self._file = _json_lines(path)
        self._captions: dict[tuple[str, str], str] = {}
        for entry in self._file.read() if path.exists() else ():
            if entry.tagger != tagger:
                raise GocaError(
                    f'{path} has captions of "{entry.tagger}", not of "{tagger}": use another file or folder '
                    "for the output"
                )
            self._captions[entry.dataset, entry.id] = entry.caption

    def get(self, sample: TaggableImage, dataset: ImageCollection) -> str | None:
        """The caption of an image; None if it has none yet."""
        return self._captions.get((dataset.name, sample.id))

    def add(self, sample: TaggableImage, dataset: ImageCollection, caption: str) -> None:
        """Save a caption. Raises GocaError if the file cannot be written."""
        caption = storable(caption)
        self._file.append(CaptionEntry(sample.id, caption, dataset.name, self.tagger))
        self._captions[dataset.name, sample.id] = caption

    def __enter__(self) -> "CaptionStore":
        self._file.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
