"""Label files to arrays: values to labels, sizes held against the image, broken files named."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Integer, UInt8, UInt16
from PIL import ExifTags, Image, UnidentifiedImageError

from goca.errors import GocaError

UNKNOWN = 65534
"""What a table holds for values that no file should have."""

SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
STRETCHED = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey of 2 and 4 bits by

Table = UInt16[np.ndarray, "value"]
Labels = UInt16[np.ndarray, "height width"]
Read = TypeVar("Read")


def table(labels: Mapping[int, int], size: int = 256, rest: int = UNKNOWN) -> Table:
    """From values in files to labels; `rest` for values that are not named."""
    out = np.full(size, rest, np.uint16)
    out[list(labels)] = list(labels.values())
    return out


def read_indexed(path: Path, image: Path, labels: Table) -> Labels:
    """The labels of an indexed or grey PNG.

    Raises GocaError where it is broken, not of the image's size, or has a value that stands for no label.
    """
    return translate(path, image, _opened(path, _values), labels)


def translate(path: Path, image: Path, values: Integer[np.ndarray, "height width"], labels: Table) -> Labels:
    """Labels from a file's values; GocaError as for `read_indexed`."""
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high < len(labels):
        found = labels[values]
        strange = values[found == UNKNOWN]
    else:
        strange = values[(values < 0) | (values >= len(labels))]
    if strange.size:
        raise GocaError(f"{path} has the value {strange[0]}, which no class has: is it this data set's?")
    return of_size(path, image, found)


def of_size(path: Path, image: Path, labels: Labels) -> Labels:
    """The labels, if they are of the image's size, upright; GocaError if not."""
    compare(path, labels.shape, image, size_of(image))
    return labels


def compare(path: Path, theirs: tuple[int, ...], image: Path, size: tuple[int, int]) -> None:
    """GocaError where the size (height, width) of a file's labels is not the image's."""
    if theirs != size:
        sizes = f"{path} is {theirs[1]} x {theirs[0]} px and {image} {size[1]} x {size[0]}"
        raise GocaError(f"{sizes}: they do not belong together, download or write the one again that is wrong")


def size_of(image: Path) -> tuple[int, int]:
    """(height, width) of an image that is turned upright; nothing but its head is read."""
    return _opened(image, _upright)


def read_rgb(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """A colour PNG whose colours are numbers; GocaError where it is broken or of another kind."""

    def colours(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
        if image.mode != "RGB":
            raise GocaError(f"{path} is of mode {image.mode}, not RGB: is it this data set's?")
        return np.asarray(image)

    return _opened(path, colours)


def _values(image: Image.Image) -> Integer[np.ndarray, "height width"]:
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        raise GocaError(f"{image.filename} is of mode {image.mode}, not indexed or grey: is it this data set's?")  # type: ignore
    stretch = STRETCHED.get(image.tile[0].args, 1) if image.mode == "L" and image.tile else 1  # type: ignore
    values = np.asarray(image)
    return (values.astype(np.uint8) if image.mode == "1" else values) // stretch


def _upright(image: Image.Image) -> tuple[int, int]:
    sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
    return (image.width, image.height) if sideways else (image.height, image.width)


def _opened(path: Path, read: Callable[[Image.Image], Read]) -> Read:
    try:
        with Image.open(path) as image:
            return read(image)
    except GocaError:
        raise
    except UnidentifiedImageError:
        raise GocaError(f"{path} is no image that Pillow can read: is the file complete?") from None
    except Exception as error:  # Pillow's decoders raise errors of every kind on broken files
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise GocaError(f"{path} cannot be read ({reason}): is the file complete?") from None
