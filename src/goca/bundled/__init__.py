"""What ships with the package: a small trained pipeline, and scenes to measure it on. Data only."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


def pipeline() -> Path:
    """The folder of the bundled diffusers pipeline."""
    return Path(__file__).parent / "pipeline"


def vocabulary() -> tuple[str, ...]:
    """The nouns that the bundled pipeline was trained on; it knows no other words."""
    return tuple(_nouns()["things"] + _nouns()["stuff"])


def stuff() -> tuple[str, ...]:
    """The nouns of the vocabulary that are not things: what the surroundings of things consist of."""
    return tuple(_nouns()["stuff"])


def _nouns() -> dict[str, list[str]]:
    return json.loads((pipeline() / "vocabulary.json").read_text(encoding="utf-8"))


_SYNONYMS = """
kitten kitty puppy hound calf piglet hog toad tortoise dove automobile coach ship plane aircraft spaceship home cottage
toadstool lawn meadow beach desert sea lake air cloud ice brickwork plank timber street asphalt
"""
_PHRASES = "two three a picture of we see an image with in front of the back behind above"


def prompt_words() -> tuple[str, ...]:
    """The words that it was trained to paint: the nouns, their synonyms, and those of sentences around them."""
    return (*vocabulary(), *_SYNONYMS.split(), *_PHRASES.split())


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
    """The scenes benchmark: images in an art style that the pipeline was not trained on, with exact labels."""
    import numpy as np

    from goca.imaging.files import opened

    folder = Path(__file__).parent / "scenes"
    for entry in json.loads((folder / "scenes.json").read_text()):
        with opened(folder / entry["image"]) as image, opened(folder / entry["labels"]) as labels:
            scene = Scene(image.convert("RGB"), np.asarray(labels), tuple(entry["classes"]), entry["captions"])
        yield scene
