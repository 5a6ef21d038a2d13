"""COCO: one file for all images, with a mask, a box and an area for each object."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt16

from goca.errors import GocaError
from goca.exports.base import DatasetImage
from goca.exports.objects import ObjectOptions, Region, regions


def coco(
    labels: UInt16[np.ndarray, "height width"],
    classes: Sequence[str],
    image_id: int,
    file_name: str,
    objects: ObjectOptions | None = None,
) -> dict[str, Any]:
    """A COCO data set of one image.

    Category ids are the labels, from 1. Annotation ids are unique across images of different `image_id`. Boxes are x,
    y, width, height; areas are pixel counts; both in pixels.

    Args:
        labels: 0 for background, i for `classes[i - 1]`.
        classes, image_id, file_name: Names and id as they appear in the file.
        objects: How regions become annotations; by default one per class.

    Raises:
        GocaError: The masks are to be run lengths, and pycocotools is not installed.
    """
    height, width = labels.shape
    objects = objects or ObjectOptions()
    return {
        "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
        "annotations": [
            {
                "id": (image_id << 20) + number,
                "image_id": image_id,
                "category_id": region.label,
                "segmentation": _polygons(region) if objects.polygons else _run_lengths(region, labels.shape),
                "area": region.area,
                "bbox": [region.box.left, region.box.top, *reversed(region.crop.shape)],
                "iscrowd": 0,
            }
            for number, region in enumerate(regions(labels, objects), start=1)
        ],
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes, start=1)],
    }


def write(
    images: Iterable[DatasetImage], classes: Sequence[str], objects: ObjectOptions
) -> Iterator[tuple[str, bytes]]:
    """`coco` of all images as one file; image and annotation ids count from 1."""
    whole = coco(np.zeros((1, 1), np.uint16), classes, 0, "", objects)
    whole |= {"images": [], "annotations": []}
    for image_id, image in enumerate(images, start=1):
        part = coco(image.labels, classes, image_id, image.file_name, objects)
        whole["images"] += part["images"]
        whole["annotations"] += part["annotations"]
    for number, annotation in enumerate(whole["annotations"], start=1):
        annotation["id"] = number
    yield "", json.dumps(whole).encode()


def _run_lengths(region: Region, shape: tuple[int, ...]) -> dict[str, Any]:
    try:
        from pycocotools import mask as rle
    except ImportError:
        raise GocaError("COCO's run lengths need pycocotools: pip install pycocotools") from None
    mask = np.asfortranarray(region.mask(shape), dtype=np.uint8)
    return {"size": list(shape), "counts": rle.encode(mask)["counts"].decode("ascii")}


def _polygons(region: Region) -> list[list[int]]:
    return [[coordinate for point in polygon for coordinate in point] for polygon in region.polygons()]
