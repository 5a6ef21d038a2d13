"""Prompts to generate from, read from a file: one per line, a JSON list, JSON lines, or COCO's captions."""

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
    """A prompt of one image. id: the stem of the image's file name, unique among the prompts of a file."""

    id: str
    text: str
    seed: int


def read_prompts(path: Path, limit: int | None = None, seed: int = 0, same_seed: bool = False) -> tuple[Prompt, ...]:
    """The prompts of a file, in order; those of COCO in the order of their images' ids.

    Args:
        path: A prompt per line; `.jsonl` or `.json` with texts, or objects that have one as "prompt", "text" or
            "caption"; or COCO's `captions_*.json`, from which each image's first caption, by id, is taken.
        limit: Use only the first N, 1 or more.
        seed: Seed of the first prompt; later ones have consecutive seeds.
        same_seed: Whether all have the same seed.

    Raises:
        GocaError: The file cannot be read, or has no prompts.
    """
    try:
        named = list(islice(_named(path), limit))
    except GocaError as error:
        raise GocaError(str(error), "prompts") from None
    if not named:
        raise GocaError(f"{path} has no prompt: write one per line", "prompts")
    return tuple(Prompt(name, text, seed if same_seed else seed + index) for index, (name, text) in enumerate(named))


def digest(prompts: Sequence[Prompt]) -> str:
    """A digest of prompts, with their names and seeds."""
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
            raise GocaError(f"{path} is not a list of prompts: write a JSON list, or a prompt per line")
        texts = [_entry(path, number, entry) for number, entry in enumerate(content, start=1)]
    else:
        texts = [" ".join(line.split()) for line in read_text(path).splitlines() if line.strip()]
    yield from ((f"{index:06d}", text) for index, text in enumerate(texts))


def _entry(path: Path, number: int, entry: Any) -> str:
    try:
        return _text(entry)
    except ValueError as error:
        raise GocaError(f"{path}, entry {number} is not a prompt ({error}): correct it") from None


def _text(entry: Any) -> str:
    if isinstance(entry, dict):
        entry = next((entry[key] for key in ("prompt", "text", "caption") if key in entry), None)
    if not isinstance(entry, str) or not entry.strip():
        raise ValueError('it is neither a text nor an object with a "prompt", "text" or "caption"')
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
