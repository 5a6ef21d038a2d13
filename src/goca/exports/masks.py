"""A folder for each class, with the mask of every image that shows it: 0 or 255."""

import re
from collections.abc import Iterable, Iterator, Sequence

from goca.exports.base import DatasetImage
from goca.exports.objects import ObjectOptions, regions
from goca.imaging.draw import png
from goca.imaging.masks import Mask, as_image
from goca.storage.atomic import short_stem


def write(
    images: Iterable[DatasetImage], classes: Sequence[str], objects: ObjectOptions
) -> Iterator[tuple[str, bytes]]:
    """CLASS/NAME.png, in grey."""
    for _, name, mask in class_masks(images, classes, objects):
        yield name, png(as_image(mask))


def class_masks(
    images: Iterable[DatasetImage], classes: Sequence[str], objects: ObjectOptions
) -> Iterator[tuple[DatasetImage, str, Mask]]:
    """Each image with each class that it shows: the name of the file for them, and the mask."""
    folders = _folders(classes)
    for image in images:
        for region in regions(image.labels, objects, instances=False):
            yield image, f"{folders[region.label - 1]}/{image.stem}.png", region.mask(image.labels.shape)


def _folders(classes: Sequence[str]) -> list[str]:
    """The folder name of each class: its name, made valid on every file system."""
    folders: list[str] = []
    for number, name in enumerate(classes, start=1):
        folder = short_stem(re.sub(r"[^\w ,+-]+", "-", name).strip() or "class", (f"-{number}",))
        taken = {other.casefold() for other in folders}
        folders.append(f"{folder}-{number}" if folder.casefold() in taken else folder)
    return folders
