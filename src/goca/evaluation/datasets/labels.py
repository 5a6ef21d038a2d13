"""Label files to arrays: values to labels, sizes held against the image, broken files named."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8, UInt16
from PIL import Image

from goca.errors import GocaError
from goca.evaluation.datasets.base import LabelMap
from goca.imaging.files import LABEL_FORMATS, opened, size_of

UNKNOWN = 65534
"""What a table holds for values that no file should have."""

STRETCHED = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey of 2 and 4 bits by

LabelTable = UInt16[np.ndarray, "value"]
"""The label of each value that files may have."""


def label_table(labels: Mapping[int, int], size: int = 256, rest: int = UNKNOWN) -> LabelTable:
    """From values in files to labels; `rest` for values that are not named."""
    out = np.full(size, rest, np.uint16)
    out[list(labels)] = list(labels.values())
    return out


def read_indexed(path: Path, image: Path, labels: LabelTable) -> LabelMap:
    """The label map of an indexed or grey PNG; GocaError if it is damaged, or does not fit the image or the labels."""
    with opened(path, formats=LABEL_FORMATS) as file:
        check_size(path, (file.height, file.width), image)  # before memory is taken for another size
        values = _values(path, file)
    return translate(path, values, labels)


def translate(path: Path, values: Integer[np.ndarray, "height width"], labels: LabelTable) -> LabelMap:
    """The label map of a file's values, which has the image's size; GocaError for a value without a label."""
    outside = (values < 0) | (values >= len(labels))
    label_map = labels[np.where(outside, 0, values)]
    unknown = values[outside | (label_map == UNKNOWN)]
    if unknown.size:
        raise GocaError(f"{path} has the value {unknown[0]}, which no class has: is it this data set's?")
    return label_map


def check_size(path: Path, size: tuple[int, ...], image: Path) -> None:
    """GocaError if a file's labels, of this (height, width), are not of the image's size."""
    height, width = size_of(image)
    if size != (height, width):
        sizes = f"{path} is {size[1]} x {size[0]} px and {image} {width} x {height}"
        raise GocaError(f"{sizes}: they do not belong together, download or write the one again that is wrong")


def check_coordinates(coordinates: Iterable[Any], height: int, width: int) -> None:
    """ValueError unless all are numbers, inside the image or at most its longer side away from it.

    What lies farther is a mistake, and code that draws could take memory, or end the process, for it.
    """
    reach = max(height, width)
    for coordinate in coordinates:
        if type(coordinate) not in (int, float) or not -reach <= coordinate <= 2 * reach:
            raise ValueError(f"{repr(coordinate)[:40]} is not a coordinate, or lies far outside the image")


def read_rgb(path: Path, image: Path) -> UInt8[np.ndarray, "height width 3"]:
    """A colour PNG whose colours are numbers; GocaError if it is damaged, of another kind or size than the image."""
    with opened(path, formats=LABEL_FORMATS) as file:
        if file.mode != "RGB":
            raise GocaError(f"{path} is of mode {file.mode}, not RGB: is it this data set's?")
        check_size(path, (file.height, file.width), image)
        return np.asarray(file)


def _values(path: Path, image: Image.Image) -> Integer[np.ndarray, "height width"]:
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise GocaError(f"{path} is of mode {image.mode}, not indexed or grey: is it this data set's?")
    stretch = STRETCHED.get(image.tile[0].args, 1) if image.mode == "L" and image.tile else 1  # type: ignore
    values = np.asarray(image)
    return (values.astype(np.uint8) if image.mode == "1" else values) // stretch
