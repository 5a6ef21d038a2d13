"""COCO-Object: the 80 things of COCO as a label map, drawn from the instances; the rest is background.

Where instances overlap, the smaller lies on top; a crowd is of its class and lies under everything.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from goca.errors import GocaError
from goca.evaluation.datasets.base import Dataset, Sample
from goca.evaluation.datasets.coco_json import Index, index
from goca.evaluation.datasets.files import choose, first_of, folder, require
from goca.evaluation.datasets.labels import Labels, of_size
from goca.evaluation.datasets.names import categories, colours, rows

NAME = "coco-object"
SPLITS = ("val2017", "train2017")
LAST_THING = 90


def open_coco_object(root: Path | None, split: str | None = None) -> Dataset:
    """annotations/instances_SPLIT.json and the images in SPLIT or images/SPLIT.

    Every image that the file lists is a sample, without annotations too. Raises GocaError naming the file that was
    expected where the root is another or incomplete, and where pycocotools is not installed.
    """
    chosen = choose(NAME, split, SPLITS)
    try:
        from pycocotools import mask  # noqa: F401
    except ImportError:
        raise GocaError('COCO-Object needs pycocotools: pip install "goca[bench]"') from None
    home = folder(NAME, root)
    path = home / "annotations" / f"instances_{chosen}.json"
    require(NAME, [path])
    known = index(path)
    images = image_folder(home, chosen)
    paths = {number: images / entry.file_name for number, entry in sorted(known.images.items())}
    require(NAME, paths.values())
    classes = [row for row in rows("coco") if row.id <= LAST_THING]
    labels = {row.id: label for label, row in enumerate(classes, start=1)}
    samples = tuple(
        Sample(image.stem, image, partial(_draw, known, number, image, labels)) for number, image in paths.items()
    )
    return Dataset(NAME, chosen, categories(classes), samples, True, colours(classes))


def image_folder(home: Path, split: str) -> Path:
    return first_of([home / split, home / "images" / split])


def _draw(known: Index, number: int, image: Path, labels: Mapping[int, int]) -> Labels:
    """The label map of one image; GocaError where the file and the image do not fit."""
    entry = known.images[number]
    layers: list[tuple[bool, int, int, int, UInt8[np.ndarray, "height width"]]] = []
    for annotation in known.annotations(number):
        category = annotation["category_id"]
        if category not in labels:
            raise GocaError(f"{known.path} has the category {category}, which COCO has not: is it this data set's?")
        try:
            mask = _mask(annotation["segmentation"], entry.height, entry.width)
        except Exception as error:  # pycocotools raises errors of every kind on broken masks
            reason = str(error) or type(error).__name__
            raise GocaError(
                f"{known.path}: annotation {annotation.get('id')} of {image.name} cannot be drawn ({reason}): is the "
                "file complete?"
            ) from None
        layers.append((not annotation.get("iscrowd"), -int(mask.sum()), len(layers), labels[category], mask))
    out = np.zeros((entry.height, entry.width), np.uint16)
    for *_, label, mask in sorted(layers, key=lambda layer: layer[:3]):
        out[mask > 0] = label
    return of_size(known.path, image, out)


def _mask(segmentation: Any, height: int, width: int) -> UInt8[np.ndarray, "height width"]:
    """From polygons, or run lengths as a list or a string."""
    from pycocotools import mask

    if isinstance(segmentation, list):
        # A polygon of two points has no area, and pycocotools would take it for a box.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return np.zeros((height, width), np.uint8)
        return mask.decode(mask.merge(mask.frPyObjects(polygons, height, width)))
    if segmentation["size"] != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, the image's [{height}, {width}]")
    if isinstance(segmentation["counts"], list):
        if sum(segmentation["counts"]) != height * width:
            raise ValueError("its runs do not add up to the image")
        segmentation = mask.frPyObjects(segmentation, height, width)
    return mask.decode(segmentation)
