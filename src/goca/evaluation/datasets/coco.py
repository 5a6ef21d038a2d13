"""COCO-Object: the 80 things of COCO as a label map, drawn from the instances; the rest is background.

Where instances overlap, the smaller one is on top; a crowd counts as its class, below everything else.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from goca.errors import GocaError
from goca.evaluation.datasets.base import Dataset, LabelMap, Sample
from goca.evaluation.datasets.coco_json import CocoFile, decode_mask, read_coco
from goca.evaluation.datasets.files import choose_split, dataset_root, first_of, require_files
from goca.evaluation.datasets.labels import check_size
from goca.evaluation.datasets.names import categories, colours, published_classes
from goca.storage.reading import whole

NAME = "coco-object"
SPLITS = ("val2017", "train2017")
LAST_THING = 90
"""The last category id of a thing; later ones are stuff."""


def open_coco_object(root: Path | None, split: str | None = None) -> Dataset:
    """Open annotations/instances_SPLIT.json and the images in SPLIT or images/SPLIT.

    Every listed image is a sample, even without annotations.
    """
    split = choose_split(NAME, split, SPLITS)
    try:
        from pycocotools import mask  # noqa: F401
    except ImportError:
        raise GocaError("COCO-Object needs pycocotools: pip install pycocotools") from None
    home = dataset_root(NAME, root)
    path = home / "annotations" / f"instances_{split}.json"
    require_files(NAME, [path])
    coco = read_coco(path)
    folder = image_folder(home, split)
    images = {number: folder / entry.file_name for number, entry in sorted(coco.images.items())}
    require_files(NAME, images.values())
    classes = [entry for entry in published_classes("coco") if entry.id <= LAST_THING]
    _check_names(coco, {entry.id: entry.name for entry in classes})
    labels = {entry.id: label for label, entry in enumerate(classes, start=1)}
    samples = tuple(
        Sample(image.stem, image, partial(_draw, coco, number, image, labels)) for number, image in images.items()
    )
    return Dataset(NAME, split, categories(classes), samples, True, colours(classes))


def image_folder(home: Path, split: str) -> Path:
    """The folder of COCO's images."""
    return first_of([home / split, home / "images" / split])


def _draw(coco: CocoFile, number: int, image: Path, labels: Mapping[int, int]) -> LabelMap:
    """The label map of one image."""
    height, width = coco.images[number].height, coco.images[number].width
    check_size(coco.path, (height, width), image)
    out = np.zeros((height, width), np.uint16)
    depths = np.full((height, width), 2 * height * width + 1)  # drawing order: by decreasing area, crowds first
    for annotation in coco.annotations.get(number, ()):
        try:
            category = whole(annotation["category_id"])
            crowd = whole(annotation.get("iscrowd") or 0, most=1)
            mask = decode_mask(annotation["segmentation"], height, width)
        except Exception as error:  # pycocotools may raise anything for broken masks
            raise coco.damaged(annotation, image, error) from None
        if category not in labels:
            raise GocaError(
                f"{coco.path} has the category {category}, which COCO lacks: check that it is this data set's file"
            )
        depth = int(mask.sum()) + crowd * (height * width + 1)
        top = (mask > 0) & (depth <= depths)
        out[top], depths[top] = labels[category], depth
    return out


def _check_names(coco: CocoFile, names: Mapping[int, str]) -> None:
    """Raise GocaError unless the categories are COCO's: the file may be of another data set in COCO's format."""
    for category in coco.categories:
        name = names.get(category["id"])
        if name is not None and category.get("name", name) != name:
            raise GocaError(
                f'{coco.path}: category {category["id"]} is {repr(category["name"])[:40]}, in COCO it is "{name}": '
                f"{NAME} does not read other data sets in COCO's format"
            )
