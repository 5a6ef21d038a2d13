"""Regions as objects: what formats of boxes, polygons and instances are made of."""

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
        instances: each connected region is an object of its own; False takes a class of an image for one object, in
            formats that can hold an object in several pieces.
        min_area: regions of fewer pixels are left out.
        fill_holes: whether a region gets the pixels that it surrounds; objects may overlap then.
        polygons: COCO's masks as polygons, not as run lengths.
    """

    instances: bool = False
    min_area: int = 1
    fill_holes: bool = False
    polygons: bool = False

    def __post_init__(self) -> None:
        if self.min_area < 1:
            raise GocaError(f"{self.min_area!r} is not an area: give a number of pixels, 1 or more", "min_area")

    def changed(self) -> dict[str, Any]:
        """The options that are not the default."""
        values = asdict(self)
        return {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}


class Region(NamedTuple):
    """An object: its label, its box, and its mask within the box."""

    label: int
    box: Box
    crop: Mask

    @property
    def area(self) -> int:
        """In pixels."""
        return int(self.crop.sum())

    def mask(self, shape: tuple[int, ...]) -> Mask:
        """The mask in an image of that (height, width)."""
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
    """The objects of a label map, by label, and of one label in the order of their first pixels.

    instances: in place of the option's, for formats in which an object has one outline.
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
