"""A training set from segmentations: images, masks and prompts in a folder, as `goca evaluate folder` reads them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from goca.errors import GocaError
from goca.exports.labels_png import labels_png
from goca.imaging.draw import png
from goca.segmentation import Segmentation
from goca.storage.atomic import write_atomic
from goca.text.nouns import cleaned, parse_nouns

CLASSES, PROMPTS = "classes.txt", "prompts.jsonl"
RESERVED = ("background", "void")
"""What stands in classes.txt for no class."""


@dataclass(frozen=True)
class TrainingSet:
    """A folder of NUMBER.png, NUMBER.labels.png (indexed), prompts.jsonl and classes.txt.

    classes: their ids in the masks are 1, 2, ... in this order; 0 is background. A folder that has images is gone on
    with, if its classes are the same. Raises GocaError for other classes, for no or odd ones, and for a folder that
    cannot be written.
    """

    folder: str | Path
    classes: Sequence[str]

    def __post_init__(self) -> None:
        parse_nouns(self.classes)
        object.__setattr__(self, "classes", cleaned(self.classes))  # as results have them
        for name in self.classes:
            if name.lower() in RESERVED:
                raise GocaError(f"{name!r} cannot be a class of a folder: name it otherwise")
        text = "".join(f"{number}: {name}\n" for number, name in enumerate(self.classes, start=1))
        path = Path(self.folder) / CLASSES
        try:
            if path.exists() and path.read_text(encoding="utf-8") != text:
                raise GocaError(f"{path} lists other classes, or in another order: choose another folder")
        except (OSError, UnicodeDecodeError) as error:
            raise GocaError(f"cannot read {path}: {error}; choose another folder") from None
        write_atomic({path: text.encode()})

    def add(self, segmentation: Segmentation, prompt: str = "") -> Path:
        """Write an image with its mask, then its prompt as a line; the image's path.

        Raises GocaError for a class that the set does not have, and where the folder cannot be written.
        """
        for name in segmentation.classes:
            if name not in self.classes:
                raise GocaError(f'"{name}" is not a class of {self.folder}: there are {", ".join(self.classes)}')
        ids = np.array([0, *(list(self.classes).index(name) + 1 for name in segmentation.classes)], np.uint16)
        folder = Path(self.folder)
        taken = [int(path.stem) for path in folder.glob("*.png") if path.stem.isdecimal()]
        image = folder / f"{max(taken, default=-1) + 1}.png"
        mask = labels_png(ids[segmentation.labels], self.classes)
        # The image last: where it is, its mask is.
        write_atomic({image.with_suffix(".labels.png"): mask, image: png(segmentation.image)})
        try:
            with (folder / PROMPTS).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"image": image.name, "prompt": prompt}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise GocaError(f"cannot write {folder / PROMPTS}: {error.strerror}; choose another folder") from None
        return image
