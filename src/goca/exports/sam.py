"""Prompts for SAM: a box around each connected region of a class, and points inside it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt16

from goca.exports.base import Exportable, ExportContext
from goca.exports.json_document import document
from goca.exports.objects import ObjectOptions, regions
from goca.imaging.masks import Mask, depth

POINTS = 3
"""Points of each region, the same number for small ones, because processors stack them."""


def prompts(
    labels: UInt16[np.ndarray, "height width"], classes: Sequence[str], objects: ObjectOptions | None = None
) -> list[dict[str, Any]]:
    """The label, box and points of each region, in SAM's format.

    Boxes are x, y of the upper left and the lower right corner; points are x, y of pixels: the deepest one inside, then
    two that are deep and far from the previous ones; if there are no more pixels, the first one again. `point_labels`
    are 1, as all points are inside.
    """
    entries = []
    for region in regions(labels, objects or ObjectOptions(), instances=True):
        left, top, _, _ = region.box
        points = [[x + left, y + top] for x, y in _inner_points(region.crop)]
        entries.append(
            {
                "label": classes[region.label - 1],
                "area": region.area,
                "box": list(region.box),
                "points": points,
                "point_labels": [1] * len(points),
            }
        )
    return entries


def _inner_points(mask: Mask) -> list[tuple[int, int]]:
    rows, columns = (axis.astype(np.int32) for axis in np.ogrid[: mask.shape[0], : mask.shape[1]])
    room = depth(mask)
    points: list[tuple[int, int]] = []
    for _ in range(POINTS):
        y, x = np.unravel_index(int(room.argmax()), room.shape)
        points.append((int(x), int(y)) if room[y, x] else points[0])
        room = np.minimum(room, abs(rows - y) + abs(columns - x))
    return points


def write(result: Exportable, context: ExportContext) -> bytes:
    """The prompts of a result, with its image's name."""
    height, width = result.labels.shape
    file = {"image": context.file_name, "height": height, "width": width}
    return document({**file, "prompts": prompts(result.labels, result.classes, context.objects)})
