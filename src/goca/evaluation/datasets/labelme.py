"""Label maps from labelme files: polygons and rectangles, later ones on top of earlier ones."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from goca.errors import GocaError
from goca.evaluation.datasets.base import LabelMap
from goca.evaluation.datasets.labels import check_coordinates, check_size
from goca.imaging.files import size_of
from goca.storage.reading import read_json, whole


def read_labelme(path: Path, image: Path, labels: Mapping[str, int], rest: int) -> LabelMap:
    """The label map of an image's labelme file.

    A pixel is inside a shape if its centre is, so that files of `goca.exports.labelme` are restored exactly.

    Args:
        path: Path of the file.
        image: Path of its image.
        labels: {name in lower case: label}.
        rest: Label of pixels under no shape.

    Raises:
        GocaError: The file is damaged, names a class that is not in `labels`, or differs from the image in size.
    """
    height, width = size_of(image)
    file = read_json(path)
    if not isinstance(file, dict) or not isinstance(file.get("shapes"), list):
        raise GocaError(f"{path} has no list of shapes: it is not a labelme file")
    try:
        sides = [(file.get("imageHeight"), height), (file.get("imageWidth"), width)]
        stated_height, stated_width = (side if stated is None else whole(stated) for stated, side in sides)
    except ValueError as error:
        raise GocaError(f"{path} has an invalid size ({error}): check that the file is complete") from None
    check_size(path, (stated_height, stated_width), image)
    out = np.full((height, width), rest, np.uint16)
    for shape in file["shapes"]:
        name, corners = _polygon(path, shape, height, width)
        if name.lower() not in labels:
            raise GocaError(f'{path} has the label "{name}", which classes.txt lacks: add it there')
        out[fill(corners, height, width)] = labels[name.lower()]
    return out


def _polygon(path: Path, shape: Any, height: int, width: int) -> tuple[str, list[tuple[float, float]]]:
    try:
        name, corners = shape["label"].strip(), [(x, y) for x, y in shape["points"]]
        check_coordinates((coordinate for corner in corners for coordinate in corner), height, width)
        points = [(float(x), float(y)) for x, y in corners]
        kind = shape.get("shape_type") or "polygon"
    except (AttributeError, KeyError, TypeError):
        raise GocaError(f"{path} has a shape without a label or points: it is not a labelme file") from None
    except ValueError as error:
        raise GocaError(f"{path} has a shape that cannot be drawn ({error}): draw it again") from None
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        points = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind != "polygon" and (kind, len(points)) != ("rectangle", 4):
        raise GocaError(f'{path} has a shape of type "{kind}": only polygons and rectangles are read: draw it as one')
    return name, points


def fill(polygon: Sequence[tuple[float, float]], height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The pixels whose centre is inside: a ray to the left crosses the outline an odd number of times."""
    crossings = np.zeros((height, width + 1), np.int64)
    for (x, y), (next_x, next_y) in pairwise([*polygon, *polygon[:1]]):
        first, past = (min(max(ceil(end - 0.5), 0), height) for end in sorted((y, next_y)))
        if first < past:
            rows = np.arange(first, past)
            columns = x + (rows + 0.5 - y) * (next_x - x) / (next_y - y)
            crossings[rows, np.ceil(columns - 0.5).clip(0, width).astype(np.int64)] += 1
    return crossings.cumsum(axis=1)[:, :-1] % 2 == 1
