"""Input images: read, turned upright, and fitted to a model's size."""

import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageFile

from goca.errors import GocaError
from goca.imaging.files import opened, refusing
from goca.imaging.pixels import of_array, rgb
from goca.maths import Grid
from goca.maths.windows import Windows

SMALLEST = 16
LONGEST_ASPECT = 4.0
MOST_WINDOWS = 64
MOST_STRETCHED = 4


@runtime_checkable
class BinaryFile(Protocol):
    """A file opened in binary mode, or an object that reads like one."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes; all, if size is -1."""
        ...


ImageLike = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | np.ndarray | torch.Tensor
)
"""An input image:

- A path. For an animation the first frame is taken, for a TIFF with several pages the first page.
- The content of an image file: bytes, or a file opened in binary mode, which is read from its position and stays open.
- A PIL image of any mode.
- An array with its channels last, (height, width) or (height, width, channel); or a tensor, on any device, with its
  channels first, (height, width) or (channel, height, width). There are 1 (grey), 3 (RGB) or 4 (RGBA) channels.
  A leading axis of 1, a batch of one image, is dropped. The first axis of an array is never taken as channels, nor the
  last one of a tensor.

White is 255 of uint8, 65535 of uint16, 1.0 of floats, and True; other integers, and floats outside [0, 1], are refused,
because their white is unknown. Scaling never depends on the pixels' values.
"""


def load(image: ImageLike) -> Image.Image:
    """Load a new RGB image, with EXIF rotation applied and transparency laid on white.

    Raises:
        GocaError: There is no such file, it is not an image, is broken or has over 178 megapixels; an array has none of
            the forms above; or a side is under 16 px.
    """
    if isinstance(image, np.ndarray | torch.Tensor):
        name = "the array"
        with refusing(name, remedy="make it dense, of plain numbers, with its data in memory"):
            upright = of_array(image)
    elif isinstance(image, Image.Image):
        name = "the image"
        with refusing(name):
            upright = rgb(_safe(image), name)
    else:
        path = Path(os.fsdecode(image)) if isinstance(image, str | os.PathLike) else None
        name = "the image" if path is None else str(image)
        with opened(path or _content(image), name) as file:
            upright = rgb(file, name)
    if min(upright.size) < SMALLEST:
        raise GocaError(
            f"{name} is {upright.width} x {upright.height} px: use one with at least {SMALLEST} px per side"
        )
    return upright


def _safe(image: Image.Image) -> Image.Image:
    """The image. Raises GocaError if decoding it, which is still to come, would start another program."""
    if image.format in ("EPS", "IPTC") and isinstance(image, ImageFile.ImageFile) and image.tile:
        raise GocaError(f"the image is {image.format}, which needs another program to decode: convert it to PNG")
    return image


def _content(image: Any) -> io.BytesIO:
    """The content of an image file, given as bytes or as an open file."""
    if hasattr(image, "read"):
        try:
            image = image.read()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise GocaError(f"the image cannot be read ({error}): pass an open file") from None
        if isinstance(image, str):
            raise GocaError('the image is a file opened as text: open it in binary mode, "rb"')
    if not isinstance(image, bytes | bytearray | memoryview):
        kinds = "a path, bytes, a binary file, a PIL image, an array or a tensor"
        raise GocaError(f"{type(image).__name__} is not an image: pass {kinds}")
    return io.BytesIO(image)


def fit(image: Image.Image, size: int, multiple: int, most: int | None = None, longest: int | None = None) -> Grid:
    """(height, width) in pixels of the model's input: about size x size pixels in total, with the image's aspect.

    most: Most pixels, unless it is square; longest: longest side. Raises GocaError for an image so long that, with a
    short side of one multiple, it would exceed four times size x size, or `most`.
    """

    def scaled(factor: float, rounding: Callable[[float], int]) -> Grid:
        height, width = (
            max(multiple, multiple * rounding(side * factor / multiple)) for side in (image.height, image.width)
        )
        return height, width

    area = image.width * image.height
    height, width = scaled(size / math.sqrt(area), round)
    limit = MOST_STRETCHED * max(size, multiple) ** 2
    if most is not None and height != width and height * width > most:
        (height, width), limit = scaled(math.sqrt(most / area), math.floor), most
    if longest is not None and max(height, width) > longest:
        height, width = scaled(longest / max(image.size), math.floor)
    if height * width > limit:
        raise GocaError(f"an image of {image.width} x {image.height} px is too long: crop it into parts")
    return height, width


def squashed(image: Image.Image, side: int) -> Image.Image:
    """The image as a square of `side` px, whatever its aspect."""
    return image.resize((side, side), Image.Resampling.BICUBIC)


def common_grid(latent: Grid, cells: int) -> Grid:
    """The common grid of all layers: about `cells` x `cells` cells, in the latent's aspect."""
    scale = cells / math.sqrt(latent[0] * latent[1])
    return max(1, round(latent[0] * scale)), max(1, round(latent[1] * scale))


def token_grid(latent: Grid, cells: int) -> Grid:
    """The grid of an attention whose tokens are `cells` x `cells` latent cells, fewer at the lower and right ends."""
    return -(-latent[0] // cells), -(-latent[1] // cells)


def needs_windows(image: Image.Image) -> bool:
    """Whether the image is longer than 4:1, too long for a single pass."""
    return max(image.size) > LONGEST_ASPECT * min(image.size)


def windows(image: Image.Image, size: int, cells: int) -> Windows | None:
    """Square windows of size x size px, cells x cells each, over the image at full resolution, enlarged if smaller.

    None if it would take more than 64 of them.
    """
    pixels = size / cells
    scale = max(1.0, size / min(image.size))
    canvas = (round(image.height * scale / pixels), round(image.width * scale / pixels))
    tiled = Windows.tiled(canvas, cells)
    return tiled if len(tiled.boxes) <= MOST_WINDOWS else None


def tiles(image: Image.Image, windows: Windows, pixels: float) -> tuple[Image.Image, ...]:
    """The image under each window, at `pixels` per cell."""
    height, width = (round(cells * pixels) for cells in windows.canvas)
    scaled = image.resize((width, height), Image.Resampling.LANCZOS)
    corners = [(box.left, box.top, box.left + box.width, box.top + box.height) for box in windows.boxes]
    return tuple(scaled.crop(tuple(round(edge * pixels) for edge in corner)) for corner in corners)  # type: ignore
