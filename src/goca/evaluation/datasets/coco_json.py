"""COCO's annotation files, and the masks in them, checked before pycocotools' C code sees them."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from goca.errors import GocaError
from goca.evaluation.datasets.labels import check_coordinates
from goca.storage.reading import inside, read_json, whole

Mask = UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class CocoImage:
    """An image as a COCO file lists it; height and width in pixels."""

    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class CocoFile:
    """A COCO file, instances or panoptic, in memory: images, and the annotations of each, by the image's id."""

    path: Path
    images: Mapping[int, CocoImage]
    categories: tuple[dict[str, Any], ...]
    annotations: Mapping[int, list[dict[str, Any]]]

    def damaged(self, annotation: dict[str, Any], image: Path, error: Exception) -> GocaError:
        """The error for an annotation that cannot be read."""
        reason = str(error) or type(error).__name__
        return GocaError(
            f"{self.path}: annotation {annotation.get('id')} of {image.name} cannot be drawn ({reason}): is the file "
            "complete?"
        )


def read_coco(path: Path) -> CocoFile:
    """Read a COCO file. Raises GocaError if it is incomplete or of another kind.

    An annotation's mask is checked when it is drawn, and only fails its image; its image's id is checked here.
    `pycocotools.coco.COCO` does not read panoptic files, and uses an encoding that depends on the system.
    """
    content = read_json(path, finite=False)
    images: dict[int, CocoImage] = {}
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        for entry in content["images"]:
            if whole(entry["id"]) in images:
                raise ValueError(f"two images have the id {entry['id']}")
            images[whole(entry["id"])] = CocoImage(
                inside(entry["file_name"]), whole(entry["height"]), whole(entry["width"])
            )
        categories = tuple({**category, "id": whole(category["id"])} for category in content["categories"])
        for annotation in content["annotations"]:
            annotations[whole(annotation["image_id"])].append(annotation)
        reason = "" if images and categories else ": they are empty"
    except (AttributeError, KeyError, TypeError):
        reason = ": a part is missing or of another type"
    except ValueError as error:
        reason = f": {error}"
    if reason:
        raise GocaError(
            f"{path} does not list images and categories as COCO does{reason}. Check that it is this data set's file"
        )
    return CocoFile(path, images, categories, dict(annotations))


def decode_mask(segmentation: Any, height: int, width: int) -> Mask:
    """The mask of polygons or run lengths (list or string). Raises ValueError or TypeError if it is damaged."""
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), list | str):
        raise ValueError("it has neither polygons nor runs")
    if segmentation.get("size") != [height, width]:
        raise ValueError(f"its size is {repr(segmentation.get('size'))[:40]}, the image's [{height}, {width}]")
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _decompressed(counts)
    # pycocotools would leave pixels after the last run uninitialised.
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise ValueError("its runs do not add up to the image")
    return np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(width, height).T


def _from_polygons(polygons: list[Any], height: int, width: int) -> Mask:
    from pycocotools import mask

    outline = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise ValueError("it has a point without two coordinates")
        check_coordinates(polygon, height, width)
        corners = np.array(polygon, float).reshape(-1, 2)
        outline += float(np.abs(np.diff(corners, axis=0, append=corners[:1])).sum())
    # pycocotools' memory grows with the outline's length; an outline of every pixel would be this long.
    if outline > 4 * (height + 2) * (width + 2):
        raise ValueError("its outline is too long for the image")
    # A polygon of two points has no area, but pycocotools would take it for a box.
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        return np.zeros((height, width), np.uint8)
    return mask.decode(mask.merge(mask.frPyObjects(polygons, height, width)))


def _decompressed(counts: str) -> list[int]:
    """Run lengths from COCO's compressed form: five bits per character; from the third, minus the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("its runs are not in COCO's encoding")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its last run has no end")
    return runs
