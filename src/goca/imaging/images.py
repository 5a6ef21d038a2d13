"""Images in: read, turned upright, and fitted to the size that a model wants."""

import math
import os
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from goca.errors import GocaError
from goca.maths import Grid
from goca.maths.windows import Windows

SMALLEST = 16
LONGEST_ASPECT = 4.0
MOST_WINDOWS = 64
MOST_STRETCHED = 4

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray
"""A path, a PIL image, or a (height, width, 3) uint8 array."""


def load(image: ImageLike) -> Image.Image:
    """An RGB image, EXIF rotation applied, transparency laid on white.

    Raises GocaError where there is no such file, it is not an image, it is broken, or a side is under 16 px.
    """
    name = "the image"
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise GocaError(
                f"an array of shape {image.shape} and type {image.dtype} is not an image: pass (height, width, 3) uint8"
            )
        image, name = Image.fromarray(image), "the array"
    elif isinstance(image, str | os.PathLike):
        name = str(image)
    elif not isinstance(image, Image.Image):
        raise GocaError(f"{type(image).__name__} is not an image: pass a path, a PIL image or a uint8 array")
    upright = _decode(image, name)
    if min(upright.size) < SMALLEST:
        raise GocaError(f"{name} is {upright.width} x {upright.height} px: a side under {SMALLEST} px shows too little")
    return upright


def _decode(image: str | os.PathLike[str] | Image.Image, name: str) -> Image.Image:
    """Upright and RGB. A PIL image is decoded only when it is first looked at, so it may turn out broken as well."""
    try:
        # An image that the user opened is the user's to close.
        with nullcontext(image) if isinstance(image, Image.Image) else Image.open(image) as opened:
            return _rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise GocaError(f"no such file: {name}") from None
    except IsADirectoryError:
        raise GocaError(f"{name} is a folder: name an image") from None
    except UnidentifiedImageError:
        raise GocaError(f"{name} is not an image that Pillow can read: convert it to PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise GocaError(f"{name} is too large to open safely: scale it down first") from None
    except Exception as error:  # Pillow's decoders raise errors of every kind on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GocaError(f"{name} cannot be read ({reason}): is the file complete?") from None


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit grey keeps its upper 8 bits, transparency is laid on white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        upper = values >> (8 if values.max() > 255 else 0)
        return Image.fromarray(upper.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, size: int, multiple: int, most: int | None = None, longest: int | None = None) -> Grid:
    """(height, width) in pixels at which the model sees the image: about size x size pixels in all, aspect kept.

    most: no more pixels than these, unless it is square; longest: no more on a side. Raises GocaError for an image so
    long that, with a side of one multiple, it would be over four times that many, or over `most`.
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
        raise GocaError(f"an image of {image.width} x {image.height} px is too long to be seen: cut it into parts")
    return height, width


def common_grid(latent: Grid, cells: int) -> Grid:
    """The grid on which all layers meet: as many cells as `cells` x `cells`, in the latent's aspect."""
    scale = cells / math.sqrt(latent[0] * latent[1])
    return max(1, round(latent[0] * scale)), max(1, round(latent[1] * scale))


def needs_windows(image: Image.Image) -> bool:
    """Whether the image is longer than 4:1, too long to be seen at once."""
    return max(image.size) > LONGEST_ASPECT * min(image.size)


def windows(image: Image.Image, size: int, cells: int) -> Windows | None:
    """Square windows of size x size px, cells x cells each, over the image at its own scale, enlarged if smaller.

    None where it would take more than 64 of them.
    """
    pixels = size / cells
    scale = max(1.0, size / min(image.size))
    canvas = (round(image.height * scale / pixels), round(image.width * scale / pixels))
    tiled = Windows.tiled(canvas, cells)
    return tiled if len(tiled.boxes) <= MOST_WINDOWS else None


def tiles(image: Image.Image, windows: Windows, pixels: float) -> tuple[Image.Image, ...]:
    """The image under each window, at `pixels` a cell."""
    height, width = (round(cells * pixels) for cells in windows.canvas)
    scaled = image.resize((width, height), Image.Resampling.LANCZOS)
    corners = [(box.left, box.top, box.left + box.width, box.top + box.height) for box in windows.boxes]
    return tuple(scaled.crop(tuple(round(edge * pixels) for edge in corner)) for corner in corners)  # type: ignore
