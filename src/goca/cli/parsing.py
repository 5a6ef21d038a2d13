"""What was typed for an option, as the value that the library takes."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goca.errors import GocaError

RECIPES = ("goca", "vanilla", "goca-balanced", "goca-compound", "daam", "fttm", "diffsegmenter", "concept-attention")
"""The names of `goca.recipe.RECIPES`, which would need torch to be told."""
RECIPES_HELP = f"{', '.join(RECIPES[:-1])} or {RECIPES[-1]}."


@dataclass(frozen=True)
class Asked:
    """The question that every image is asked; see `goca.SegmentationRequest`."""

    classes: Sequence[str] | Mapping[str, Sequence[str]]
    background_classes: Sequence[str]
    background: str | float | None
    caption: str | None

    def to_json(self) -> dict[str, Any]:
        """As a result's JSON tells it. A list of classes, because their order is their ids."""
        synonyms = self.classes if isinstance(self.classes, Mapping) else dict.fromkeys(self.classes, ())
        return {
            "classes": [{"name": name, "synonyms": list(more)} for name, more in synonyms.items()],
            "background_classes": list(self.background_classes),
            "background": self.background,
            "caption": self.caption,
        }


def names(text: str) -> tuple[str, ...]:
    """Names between commas; blank ones, as after a last comma, do not count."""
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def classes(text: str | None, file: Path | None) -> Sequence[str] | Mapping[str, Sequence[str]]:
    """The classes of --classes or --classes-file. Raises GocaError where both, neither or none are given."""
    if text is not None and file is not None:
        raise GocaError("--classes and --classes-file exclude each other: give one of them")
    if file is not None:
        return _from_file(file)
    found = names(text or "")
    if not found:
        raise GocaError('no classes: name what to look for with --classes "cat, grass" or --classes-file FILE')
    return found


def _from_file(file: Path) -> Mapping[str, Sequence[str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise GocaError(f"--classes-file {file} is no UTF-8 text: give one class a line") from None
    except OSError as error:
        raise GocaError(f"--classes-file {file} cannot be read: {error.strerror}") from None
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        # A comment starts a line or follows a space: "c#" is a name.
        content = re.sub(r"(^|\s)#.*", "", line).strip()
        if not content:
            continue
        name, _, synonyms = content.partition(":")
        if name.strip() in found:
            raise GocaError(f'--classes-file {file}, line {number}: "{name.strip()}" is named twice; remove one')
        found[name.strip()] = names(synonyms)
    if not found:
        raise GocaError(f"--classes-file {file} names no class: write one a line")
    return found


def background(text: str) -> str | float | None:
    """--background as the library takes it. GocaError unless it is auto, none or a number from 0 to 1."""
    plain = text.strip().lower()
    if plain in ("auto", "none"):
        return None if plain == "none" else plain
    try:
        threshold = float(plain)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold <= 1:
        raise GocaError(f'no background "{text}": give auto, none, or a threshold from 0 to 1')
    return threshold


def timesteps(text: str | None) -> tuple[int, ...] | None:
    """The timesteps of --timestep. Raises GocaError for anything but whole numbers between commas."""
    if text is None:
        return None
    levels = names(text)
    if not levels or not all(re.fullmatch(r"[0-9]{1,9}", level) for level in levels):
        raise GocaError(f'no timestep "{text}": give a training timestep such as 100, or several: 100,50')
    return tuple(int(level) for level in levels)


def prices(text: str | None, tagger: str) -> tuple[float, float] | None:
    """The prices of --prices. Raises GocaError for anything but two numbers from 0, and where nobody is paid."""
    if text is None:
        return None
    if not tagger.startswith("vlm:"):
        raise GocaError(f'nobody has to pay the tagger "{tagger}": leave --prices out')
    try:
        read, written = (float(part) for part in text.split(","))
    except ValueError:
        read = written = -1.0
    if not (0 <= read < math.inf and 0 <= written < math.inf):
        raise GocaError(f'no prices "{text}": give what a million tokens cost to read and to write, such as 2.5,10')
    return read, written


def dataset(text: str) -> None:
    """Refuse any data set but the scenes."""
    if text != "scenes":
        raise GocaError(f'no data set "{text}": there is "scenes", the benchmark that ships with goca')


def tagger(text: str | None, dataset: str) -> str:
    """The tagger of --tagger; only scenes have one unasked, for whoever it is decides what a score is worth."""
    if text is not None:
        return text
    if dataset == "scenes":
        return "oracle"
    raise GocaError(
        "who says which classes an image shows? Give --tagger captions:FILE, vlm:MODEL, local:MODEL, self:map, "
        "self:error, given:NOUNS, or oracle, the ground truth, which flatters"
    )
