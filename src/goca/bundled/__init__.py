"""Data that ships with the package: small trained pipelines, and scenes to evaluate them on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


DEFAULT = "bundled"
"""The default model."""
FACTS = "goca.json"
"""File of a model's facts beside its model_index.json; `goca.diffusion.model_facts` reads it."""
_PIPELINES = Path(__file__).parent / "pipelines"


def names() -> tuple[str, ...]:
    """The names of the bundled pipelines, which are those of their folders."""
    return tuple(sorted(index.parent.name for index in _PIPELINES.glob("*/model_index.json")))


def pipeline(name: str = DEFAULT) -> Path:
    """The folder of a bundled diffusers pipeline, one of `names`."""
    return _PIPELINES / name


def vocabulary(name: str = DEFAULT) -> tuple[str, ...]:
    """The nouns that a bundled pipeline was trained on; it knows no other words."""
    facts = _facts(name)
    return tuple(facts["things"] + facts["stuff"])


def stuff(name: str = DEFAULT) -> tuple[str, ...]:
    """The nouns of the vocabulary that are stuff, not things: the surroundings of things."""
    return tuple(_facts(name)["stuff"])


def _facts(name: str) -> dict[str, list[str]]:
    return json.loads((pipeline(name) / FACTS).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Scene:
    """One scene of the benchmark.

    labels: (height, width) uint8, i is classes[i - 1]; every pixel has a class. captions: {"nouns": the classes as a
    list, "sentences": a sentence that names them}.
    """

    image: "Image.Image"
    labels: "np.ndarray[Any, Any]"
    classes: tuple[str, ...]
    captions: dict[str, str]

    def __iter__(self) -> Iterator[Any]:
        """image, labels, classes = scene."""
        return iter((self.image, self.labels, self.classes))


def scenes() -> Iterator[Scene]:
    """The scenes benchmark: images in a style that no pipeline was trained on, with exact labels."""
    import numpy as np

    from goca.imaging.files import opened

    folder = Path(__file__).parent / "scenes"
    for entry in json.loads((folder / "scenes.json").read_text()):
        with opened(folder / entry["image"]) as image, opened(folder / entry["labels"]) as labels:
            scene = Scene(image.convert("RGB"), np.asarray(labels), tuple(entry["classes"]), entry["captions"])
        yield scene
