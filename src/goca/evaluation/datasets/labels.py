"""Label files as arrays: values are mapped to labels, sizes compared with the image, and broken files reported."""

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
"""Entry of a table for values that no file should have."""

STRETCHED = {"L;2": 85, "L;4": 17}  # factors by which Pillow scales 2-bit and 4-bit grey

LabelTable = UInt16[np.ndarray, "value"]
"""The label of each value in a file."""


def label_table(labels: Mapping[int, int], size: int = 256, rest: int = UNKNOWN) -> LabelTable:
    """A table from values in files to labels; `rest` is the label of all other values."""
    out = np.full(size, rest, np.uint16)
    out[list(labels)] = list(labels.values())
    return out


def read_indexed(path: Path, image: Path, labels: LabelTable) -> LabelMap:
    """The label map of an indexed or grey PNG. Raises GocaError if it is damaged or does not fit image or labels."""
    with opened(path, formats=LABEL_FORMATS) as file:
        check_size(path, (file.height, file.width), image)  # before memory is allocated for a wrong size
        values = _values(path, file)
    return translate(path, values, labels)


def translate(path: Path, values: Integer[np.ndarray, "height width"], labels: LabelTable) -> LabelMap:
    """The label map of a file's values. Raises GocaError for a value without a label."""
    outside = (values < 0) | (values >= len(labels))
    label_map = labels[np.where(outside, 0, values)]
    unknown = values[outside | (label_map == UNKNOWN)]
    if unknown.size:
        raise GocaError(f"{path} has the value {unknown[0]}, which no class has: check that it is this data set's file")
    return label_map


def check_size(path: Path, size: tuple[int, ...], image: Path) -> None:
    """Raise GocaError if a label file's (height, width) differs from the image's."""
    height, width = size_of(image)
    if size != (height, width):
        sizes = f"{path} is {size[1]} x {size[0]} px and {image} {width} x {height}"
        raise GocaError(f"{sizes}: they do not belong together; replace the wrong one")


def check_coordinates(coordinates: Iterable[Any], height: int, width: int) -> None:
    """Raise ValueError unless all are numbers inside the image or at most its longer side away from it.

    Farther coordinates are a mistake, and drawing them could exhaust memory or crash the process.
    """
    reach = max(height, width)
    for coordinate in coordinates:
        if type(coordinate) not in (int, float) or not -reach <= coordinate <= 2 * reach:
            raise ValueError(f"{repr(coordinate)[:40]} is not a coordinate, or is far outside the image")


def read_rgb(path: Path, image: Path) -> UInt8[np.ndarray, "height width 3"]:
    """A PNG whose colours encode numbers. Raises GocaError if it is damaged or has a wrong mode or size."""
    with opened(path, formats=LABEL_FORMATS) as file:
        if file.mode != "RGB":
            raise GocaError(f"{path} has mode {file.mode}, not RGB: check that it is this data set's file")
        check_size(path, (file.height, file.width), image)
        return np.asarray(file)


def _values(path: Path, image: Image.Image) -> Integer[np.ndarray, "height width"]:
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
        raise GocaError(f"{path} has mode {image.mode}, not indexed or grey: check that it is this data set's file")
    stretch = STRETCHED.get(image.tile[0].args, 1) if image.mode == "L" and image.tile else 1  # type: ignore
    values = np.asarray(image)
    return (values.astype(np.uint8) if image.mode == "1" else values) // stretch
