"""Prompts to generate from, read from a file: one a line, JSON, JSON lines, or the captions of COCO."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from goca.errors import GocaError
from goca.storage.json_lines import JsonLines
from goca.storage.reading import read_json, read_text, whole


@dataclass(frozen=True)
class Prompt:
    """What one image is generated from. id: the stem of its file's name, unique among the prompts of a file."""

    id: str
    text: str
    seed: int


def read_prompts(path: Path, limit: int | None = None, seed: int = 0, same_seed: bool = False) -> tuple[Prompt, ...]:
    """The prompts of a file, in its order; those of COCO in the order of their images' ids.

    Args:
        path: text with a prompt a line; `.jsonl` or `.json` with texts, or objects that have one as "prompt", "text" or
            "caption"; or COCO's `captions_*.json`, of which each image's first caption counts, by its id.
        limit: only the first N, 1 or more.
        seed: of the first prompt; each further one has the next.
        same_seed: all have the same.

    Raises:
        GocaError: the file cannot be read, or has no prompts.
    """
    try:
        named = list(islice(_named(path), limit))
    except GocaError as error:
        raise GocaError(str(error), "prompts") from None
    if not named:
        raise GocaError(f"{path} has no prompt: write one a line", "prompts")
    return tuple(Prompt(name, text, seed if same_seed else seed + index) for index, (name, text) in enumerate(named))


def digest(prompts: Sequence[Prompt]) -> str:
    """A mark of prompts, with their names and seeds."""
    return blake2b(
        repr([(prompt.id, prompt.text, prompt.seed) for prompt in prompts]).encode(), digest_size=8
    ).hexdigest()


def _named(path: Path) -> Iterator[tuple[str, str]]:
    if path.suffix.lower() == ".jsonl":
        texts = JsonLines(path, _text, str, "a prompt").read()
    elif path.suffix.lower() == ".json":
        content = read_json(path)
        if isinstance(content, dict):
            yield from _coco(path, content)
            return
        if not isinstance(content, list):
            raise GocaError(f"{path} is not a list of prompts: write one, or a prompt a line")
        texts = [_entry(path, number, entry) for number, entry in enumerate(content, start=1)]
    else:
        texts = [" ".join(line.split()) for line in read_text(path).splitlines() if line.strip()]
    yield from ((f"{index:06d}", text) for index, text in enumerate(texts))


def _entry(path: Path, number: int, entry: Any) -> str:
    try:
        return _text(entry)
    except ValueError as error:
        raise GocaError(f"{path}, entry {number} is not a prompt ({error}): mend it") from None


def _text(entry: Any) -> str:
    if isinstance(entry, dict):
        entry = next((entry[key] for key in ("prompt", "text", "caption") if key in entry), None)
    if not isinstance(entry, str) or not entry.strip():
        raise ValueError('neither a text nor an object with one as "prompt", "text" or "caption"')
    return " ".join(entry.split())


def _coco(path: Path, content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name of the image's file in COCO without its ending, caption)"""
    first: dict[int, tuple[int, str]] = {}
    try:
        for annotation in content["annotations"]:
            image, caption = whole(annotation["image_id"]), (whole(annotation["id"]), _text(annotation))
            first[image] = min(first.get(image, caption), caption)
    except (KeyError, TypeError, ValueError) as error:
        raise GocaError(
            f"{path} is not COCO's captions_*.json ({type(error).__name__}: {error}): name that file, or a list"
        ) from None
    yield from ((f"{image:012d}", text) for image, (_, text) in sorted(first.items()))
