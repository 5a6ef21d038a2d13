"""The scenes benchmark that ships with the package: every pixel has a class."""

import json
from functools import partial
from pathlib import Path

from goca import bundled
from goca.errors import GocaError
from goca.evaluation.datasets.base import Dataset, Sample
from goca.evaluation.datasets.files import choose_split
from goca.evaluation.datasets.labels import label_table, read_indexed
from goca.imaging.palette import palette
from goca.text.nouns import Category

NAME = "scenes"
SPLITS = ("all",)


def open_scenes(root: Path | None = None, split: str | None = None) -> Dataset:
    """The bundled scenes; their classes are the categories, sorted by name. There is no root."""
    if root is not None:
        raise GocaError(f"{NAME} ships with goca: leave out the folder", "root")
    split = choose_split(NAME, split, SPLITS)
    home = Path(bundled.__file__).parent / "scenes"
    entries = json.loads((home / "scenes.json").read_text(encoding="utf-8"))
    names = sorted({name for entry in entries for name in entry["classes"]})
    samples = []
    for entry in entries:
        labels = label_table({value: names.index(name) + 1 for value, name in enumerate(entry["classes"], start=1)})
        image, truth = home / entry["image"], home / entry["labels"]
        samples.append(Sample(image.stem, image, partial(read_indexed, truth, image, labels), entry["captions"]))
    categories = tuple(Category(name) for name in names)
    return Dataset(NAME, split, categories, tuple(samples), False, palette(len(names)))
