"""The facts that a model's folder states, in a file beside its model_index.json: its words and settings.

docs/families.md describes the file. It is read without torch, so that a wrong word is reported at once.
"""

import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from goca import bundled
from goca.errors import GocaError
from goca.storage.reading import read_json, whole
from goca.text.spelling import plain

SAMPLING = frozenset(
    ("num_inference_steps", "timesteps", "sigmas", "guidance_scale", "true_cfg_scale", "negative_prompt")
)
"""Options of a pipeline's call for sampling, which a single pass does not need."""
_SET_BY_GOCA = frozenset(("prompt", "height", "width", "generator", "output_type", "num_frames"))


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The content of such a file; empty for a folder without one.

    Attributes:
        path: Path of the file, for messages.
        words: Further words in the prompts of a model with a closed vocabulary.
        settings: The stated fields of `goca.diffusion.families.spec.CheckpointSettings`, including its nouns.
    """

    path: str = ""
    words: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nouns(self) -> tuple[str, ...]:
        """The nouns of a model with a closed vocabulary; () for any."""
        return self.settings.get("nouns", ())

    def check_call(self, pipeline: Any) -> None:
        """Raise GocaError for an option that the pipeline's call does not take."""
        options = self.settings.get("options", {})
        if unknown := sorted(options.keys() - inspect.signature(pipeline.__call__).parameters):
            raise self.wrong("settings.options", f"{type(pipeline).__name__} takes no {unknown[0]}")

    def wrong(self, key: str, reason: object) -> GocaError:
        """The error for an entry that cannot be used."""
        return _wrong(self.path, key, reason)


def _wrong(path: object, key: str, reason: object) -> GocaError:
    return GocaError(f'{path} has a wrong entry "{key}": {reason}; correct it, or leave it out')


def local_folder(name: str | Path) -> Path | None:
    """The folder of a model: that of a bundled one, or one that the user names; None for a Hub id.

    Raises:
        GocaError: There is no such model, or the folder has no pipeline.
    """
    if str(name) in bundled.names():
        return bundled.pipeline(str(name))
    if os.path.isdir(name):  # noqa: PTH112 - False for a name that the system refuses
        if not Path(name, "model_index.json").is_file():
            raise GocaError(
                f"{name} is not a diffusers pipeline: it has no model_index.json; save one with save_pretrained",
                hint="model",
            )
        return Path(name)
    if isinstance(name, Path) or not re.fullmatch(r"[^./~][^/]*/[^/]+", name):
        listed = ", ".join(bundled.names())
        raise GocaError(
            f'no model "{name}": give {listed}, a diffusers folder, or a Hub id such as owner/name', hint="model"
        )
    return None


def facts_of(name: str | Path) -> ModelFacts:
    """The facts of a model's folder; empty for a Hub id. Raises GocaError like `local_folder` and `read_facts`."""
    return read_facts(local_folder(name))


def pipeline_folder(pipeline: Any) -> Path | None:
    """The folder that a loaded pipeline came from; None if unknown."""
    folder = Path(str(getattr(pipeline, "name_or_path", None) or ""))
    return folder if (folder / "model_index.json").is_file() else None


def read_facts(folder: Path | None) -> ModelFacts:
    """The facts in a folder. Raises GocaError for a file that is damaged, naming the entry."""
    path = None if folder is None else folder / bundled.FACTS
    if path is None or not path.exists():
        return ModelFacts()
    content = read_json(path)
    if not isinstance(content, dict):
        raise GocaError(f"{path} is not a JSON object: write the model's facts in braces")
    facts = _parsed(path, content, _ENTRIES)
    settings = _parsed(path, facts.get("settings", {}), _SETTINGS, "settings.")
    things, stuff = facts.get("things", ()), facts.get("stuff", ())
    if twice := [noun for noun, count in Counter(map(plain, things + stuff)).items() if count > 1]:
        raise _wrong(path, "stuff" if twice[0] in map(plain, stuff) else "things", f'"{twice[0]}" is listed twice')
    if things:
        settings["nouns"] = things + stuff
    if things or "stuff" in facts:
        settings["background_classes"] = stuff
    return ModelFacts(path=str(path), words=facts.get("words", ()), settings=settings)


def parse_settings(name: str | Path, content: Any) -> dict[str, Any]:
    """Settings from the JSON content of `name`: the entries of `settings` in a model's facts.

    Raises:
        GocaError: The content is not an object with some of these entries, or one of them is wrong.
    """
    if not isinstance(content, Mapping) or not content:
        raise GocaError(f"{name} does not hold settings: write some of {', '.join(_SETTINGS)} in braces", "settings")
    try:
        return _parsed(name, content, _SETTINGS)
    except GocaError as error:
        raise GocaError(str(error), "settings") from None


def _parsed(
    path: str | Path, content: Mapping[str, Any], parsers: Mapping[str, Callable[[Any], Any]], prefix: str = ""
) -> dict[str, Any]:
    """The parsed entries."""
    parsed = {}
    for key, value in content.items():
        if key not in parsers:
            raise _wrong(path, prefix + key, f"the entry is unknown: choose from {', '.join(parsers)}")
        try:
            parsed[key] = parsers[key](value)
        except ValueError as error:
            raise _wrong(path, prefix + key, error) from None
    return parsed


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{repr(value)[:40]} is not a text")
    return value


def _texts(value: Any, least: int = 0) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < least:
        raise ValueError(f"{repr(value)[:40]} is not a list of {'texts' if least == 0 else 'one text or more'}")
    return tuple(map(_text, value))


def _nouns(value: Any) -> tuple[str, ...]:
    for noun in (nouns := _texts(value)):
        if "," in noun or not any(map(str.isalnum, noun)):
            raise ValueError(f'"{noun}" is not a noun, which has letters and no comma')
    return nouns


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{repr(value)[:40]} is not an object in braces")
    return value


def _options(value: Any) -> dict[str, Any]:
    if named := sorted(_SET_BY_GOCA & _object(value).keys()):
        raise ValueError(f"{named[0]} is set by goca")
    return value


_ENTRIES: Mapping[str, Callable[[Any], Any]] = {"things": _nouns, "stuff": _nouns, "words": _texts, "settings": _object}
_SETTINGS: Mapping[str, Callable[[Any], Any]] = {
    "size": partial(whole, least=8, most=8192),
    "timestep": partial(whole, most=999),
    "reference": _text,
    "refine": partial(_texts, least=1),
    "order": partial(whole, most=100),
    "grid": partial(whole, least=1, most=1024),
    "evidence_blocks": _texts,
    "origin": _text,
    "options": _options,
}
