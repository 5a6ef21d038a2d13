"""COCO: one annotation, as compressed RLE, for each class that occurs."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt16

from goca.errors import GocaError
from goca.exports.base import Exportable, ExportContext, occurring


def coco(
    labels: UInt16[np.ndarray, "height width"], classes: Sequence[str], image_id: int, file_name: str
) -> dict[str, Any]:
    """A COCO dataset of one image.

    Category ids are the labels, from 1. Annotation ids are unique across images with the same classes and different
    `image_id`. Boxes are x, y, width, height; areas are counts; both in pixels.

    Args:
        labels: 0 for background, i for `classes[i - 1]`.
        classes, image_id, file_name: as the file shall name them.

    Raises:
        GocaError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask as rle
    except ImportError:
        raise GocaError("COCO export needs pycocotools: pip install pycocotools") from None

    height, width = labels.shape
    annotations = []
    for category_id in occurring(labels, classes):
        segmentation = rle.encode(np.asfortranarray(labels == category_id, dtype=np.uint8))
        annotations.append(
            {
                "id": image_id * (len(classes) + 1) + category_id,
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": {"size": [height, width], "counts": segmentation["counts"].decode("ascii")},
                "area": int(rle.area(segmentation)),
                "bbox": rle.toBbox(segmentation).tolist(),
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes, start=1)],
    }


def write(result: Exportable, context: ExportContext) -> bytes:
    """`coco` as a file."""
    return json.dumps(coco(result.labels, result.classes, image_id=1, file_name=context.file_name)).encode()
