"""Regions as objects, for formats with boxes, polygons and instances."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt16

from goca.errors import GocaError
from goca.imaging.masks import Box, Mask, box_of, boxes_of, components, filled
from goca.imaging.polygons import polygons


@dataclass(frozen=True, kw_only=True)
class ObjectOptions:
    """How the pixels of a class become objects.

    Attributes:
        instances: Whether each connected region is an object; otherwise the pixels of a class in an image are one
            object, in formats in which an object can have several pieces.
        min_area: Leave out regions of fewer pixels.
        fill_holes: Whether a region gets the pixels that it surrounds; objects may then overlap.
        polygons: Whether COCO's masks are polygons instead of run lengths.
    """

    instances: bool = False
    min_area: int = 1
    fill_holes: bool = False
    polygons: bool = False

    def __post_init__(self) -> None:
        if self.min_area < 1:
            raise GocaError(f"min_area {self.min_area!r} is not a number of pixels: give 1 or more", "min_area")

    def changed(self) -> dict[str, Any]:
        """The options that differ from the default."""
        values = asdict(self)
        return {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}


class Region(NamedTuple):
    """An object: its label, its box, and its mask within the box."""

    label: int
    box: Box
    crop: Mask

    @property
    def area(self) -> int:
        """The area in pixels."""
        return int(self.crop.sum())

    def mask(self, shape: tuple[int, ...]) -> Mask:
        """The mask in an image of shape (height, width)."""
        out = np.zeros(shape, bool)
        out[self.box.slices] = self.crop
        return out

    def polygons(self) -> list[list[tuple[int, int]]]:
        """The outline of each of its connected regions, see `goca.imaging.polygons`."""
        left, top = self.box.left, self.box.top
        return [[(x + left, y + top) for x, y in polygon] for polygon in polygons(self.crop)]


def regions(
    labels: UInt16[np.ndarray, "height width"], options: ObjectOptions, instances: bool | None = None
) -> Iterator[Region]:
    """The objects of a label map, sorted by label and then by their first pixel.

    instances: Overrides the option, for formats in which an object has a single outline.
    """
    numbers = components(labels)
    areas = np.bincount(numbers.ravel())
    of_region = np.zeros(len(areas), labels.dtype)
    of_region[numbers] = labels
    boxes = boxes_of(numbers)
    kept = np.flatnonzero((areas >= options.min_area) & (of_region > 0))
    for label in np.unique(of_region[kept]).tolist():
        crops = []
        for number in kept[of_region[kept] == label].tolist():
            box = boxes[number - 1]
            crop = numbers[box.slices] == number
            crops.append(Region(label, box, filled(crop) if options.fill_holes else crop))
        if options.instances if instances is None else instances:
            yield from crops
        else:
            yield _union(label, crops, labels.shape)


def _union(label: int, parts: list[Region], shape: tuple[int, ...]) -> Region:
    whole = np.zeros(shape, bool)
    for part in parts:
        whole[part.box.slices] |= part.crop
    box = box_of(whole)
    return Region(label, box, whole[box.slices])
