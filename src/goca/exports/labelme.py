"""labelme: polygons to correct by hand."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt16

from goca.exports.base import Exportable, ExportContext
from goca.exports.objects import ObjectOptions, regions
from goca.storage.reading import escaped


def labelme(
    labels: UInt16[np.ndarray, "height width"],
    classes: Sequence[str],
    file_name: str,
    objects: ObjectOptions | None = None,
) -> dict[str, Any]:
    """A labelme file: for each class, one polygon around each of its connected regions.

    Points are x, y in pixels from the image's upper left corner, on the outlines of pixels: a polygon's area is its
    region's number of pixels. labelme has no holes: a hole is joined to the outline by a seam of zero width.
    `file_name` is the image's path relative to the folder of the file.
    """
    height, width = labels.shape
    shapes: list[dict[str, Any]] = [
        {
            "label": classes[region.label - 1],
            "points": [list(point) for point in polygon],
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for region in regions(labels, objects or ObjectOptions(), instances=True)
        for polygon in region.polygons()
    ]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": file_name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def write(result: Exportable, context: ExportContext) -> bytes:
    """`labelme` as a file."""
    file = labelme(result.labels, result.classes, context.file_name, context.objects)
    return escaped(json.dumps(file, ensure_ascii=False)).encode()
