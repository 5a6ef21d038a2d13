"""A training set from segmentations: a folder of images, masks and prompts that `goca evaluate folder` reads."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from goca.errors import GocaError
from goca.exports import EXPORTERS, dataset_formats
from goca.exports.base import DatasetImage
from goca.exports.labels_png import labels_png, read_labels
from goca.exports.objects import ObjectOptions
from goca.imaging.draw import png
from goca.segmentation import Segmentation
from goca.storage.atomic import write_atomic
from goca.storage.reading import read_text, require_regular
from goca.text.class_list import ListedClass, parse_class_list
from goca.text.nouns import cleaned, parse_nouns

CLASSES, PROMPTS = "classes.txt", "prompts.jsonl"


@dataclass(frozen=True)
class TrainingSet:
    """A folder of NUMBER.png, NUMBER.labels.png (indexed), prompts.jsonl and classes.txt.

    classes: Their ids in the masks are 1, 2, ... in this order; 0 is background. A folder that already has images is
    continued if its classes are the same. Raises GocaError for other classes, for missing or odd ones, and for a folder
    that cannot be written.
    """

    folder: str | Path
    classes: Sequence[str]

    def __post_init__(self) -> None:
        parse_nouns(self.classes)
        object.__setattr__(self, "classes", cleaned(self.classes))  # as in results
        text = "".join(f"{number}: {name}\n" for number, name in enumerate(self.classes, start=1))
        path = Path(self.folder) / CLASSES
        listed = [ListedClass(name, (), number) for number, name in enumerate(self.classes, start=1)]
        for entry in listed:
            if entry.special or list(parse_class_list(f"{entry.label}: {entry.name}", CLASSES)) != [entry]:
                raise GocaError(f"{entry.name!r} cannot be a class of a folder: choose another name, in one line")
        if not path.exists():
            write_atomic({path: text.encode()})
        elif list(parse_class_list(read_text(path), str(path))) != listed:
            raise GocaError(f"{path} lists other classes, or another order: choose another folder")

    def add(self, segmentation: Segmentation, prompt: str = "") -> Path:
        """Write an image with its mask, and append its prompt; returns the image's path.

        Raises GocaError for a class that the set does not have, and if the folder cannot be written.
        """
        names = tuple(self.classes)
        for name in segmentation.classes:
            if name not in names:
                raise GocaError(f'"{name}" is not a class of {self.folder}: there are {", ".join(names)}')
        ids = np.array([0, *(names.index(name) + 1 for name in segmentation.classes)], np.uint16)
        folder = Path(self.folder)
        image = folder / f"{max(self._numbers(), default=-1) + 1}.png"
        mask = labels_png(ids[segmentation.labels], self.classes)
        # The image comes last: if it exists, so does its mask.
        write_atomic({image.with_suffix(".labels.png"): mask, image: png(segmentation.image)})
        try:
            if (folder / PROMPTS).exists():
                require_regular(folder / PROMPTS)
            with (folder / PROMPTS).open("a", encoding="utf-8", errors="backslashreplace") as lines:
                lines.write(json.dumps({"image": image.name, "prompt": prompt}, ensure_ascii=False) + "\n")
        except OSError as error:
            raise GocaError(f"cannot write {folder / PROMPTS}: {error.strerror}; choose another folder") from None
        return image

    def export(self, name: str, target: str | Path, objects: ObjectOptions | None = None) -> Path:
        """Write all images as a data set of another format, whole or not at all, replacing an earlier one.

        Args:
            name: A data set format of `goca.exports.EXPORTERS`, such as "coco" or "hf".
            target: The file or folder; in COCO, images have the same names as in this set's folder.
            objects: How regions become objects, in formats that have them.

        Raises:
            GocaError: The format is unknown, there is no image, a file cannot be read, or `target` is not goca's.
        """
        exporter = dataset_formats([name]).get(name)
        if exporter is None:
            raise GocaError(
                f'"{name}" is not a data set: choose from {", ".join(dataset_formats(EXPORTERS))}', "formats"
            )
        exporter.check()
        numbers = self._numbers()
        if not numbers:
            raise GocaError(f"{self.folder} has no image: add some first")
        folder = Path(self.folder)
        images = (
            DatasetImage(
                file_name=f"{number}.png",
                stem=str(number),
                source=folder / f"{number}.png",
                read_labels=partial(read_labels, folder / f"{number}.labels.png"),
            )
            for number in numbers
        )
        exporter.write_dataset(Path(target), images, self.classes, objects or ObjectOptions())
        return Path(target)

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in Path(self.folder).glob("*.png") if path.stem.isdecimal())
