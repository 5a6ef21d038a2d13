"""COCO's annotation files, and the masks in them, checked before pycocotools' C code sees them."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import UInt8

from goca.errors import GocaError

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
        """What to raise for an annotation that cannot be read."""
        reason = str(error) or type(error).__name__
        return GocaError(
            f"{self.path}: annotation {annotation.get('id')} of {image.name} cannot be drawn ({reason}): is the file "
            "complete?"
        )


def read_coco(path: Path) -> CocoFile:
    """Read a COCO file; GocaError if it is incomplete, or of another kind.

    `pycocotools.coco.COCO` reads no panoptic files, and in an encoding that depends on the system.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise GocaError(f"cannot read {path}: {error.strerror}; check the path") from None
    except (ValueError, RecursionError):
        raise GocaError(f"{path} is not a complete JSON file: download it again") from None
    annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        images = {entry["id"]: _image(entry) for entry in content["images"]}
        categories = tuple(dict(category) for category in content["categories"])
        for annotation in content["annotations"]:
            annotations[annotation["image_id"]].append(annotation)
    except (KeyError, TypeError, ValueError):
        images, categories = {}, ()
    if not images or not categories:
        raise GocaError(f"{path} lists no images and categories as COCO does: is it this data set's?")
    return CocoFile(path, images, categories, dict(annotations))


def _image(entry: Mapping[str, Any]) -> CocoImage:
    name = PurePath(entry["file_name"])
    # A name that leaves the data set's folder could show a vision-language model any file of this machine.
    if name.is_absolute() or ".." in name.parts or not all(type(entry[side]) is int for side in ("height", "width")):
        raise ValueError("not an image of COCO's")
    return CocoImage(entry["file_name"], entry["height"], entry["width"])


def decode_mask(segmentation: Any, height: int, width: int) -> Mask:
    """The mask of polygons, or of run lengths as a list or a string; an exception of any kind if it is damaged."""
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, height, width)
    if segmentation["size"] != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}, the image's [{height}, {width}]")
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _decompressed(counts)
    # pycocotools would leave what is behind the last run uninitialised.
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise ValueError("its runs do not add up to the image")
    return np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(width, height).T


def _from_polygons(polygons: list[Any], height: int, width: int) -> Mask:
    from pycocotools import mask

    # pycocotools' memory grows with the length of the outline: far points end the process.
    reach = max(height, width)
    for polygon in polygons:
        if len(polygon) % 2 or not all(-reach <= coordinate <= 2 * reach for coordinate in polygon):
            raise ValueError("it has a point without two coordinates, or far outside the image")
    # A polygon of two points has no area, and pycocotools would take it for a box.
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        return np.zeros((height, width), np.uint8)
    return mask.decode(mask.merge(mask.frPyObjects(polygons, height, width)))


def _decompressed(counts: Any) -> list[int]:
    """Run lengths from COCO's compressed form: five bits a character; from the third run on, less the last but one."""
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode("ascii"):
        bits = code - 48
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
