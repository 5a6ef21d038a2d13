"""Conversion of Pillow's modes, arrays and tensors to 8-bit RGB."""

from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image
from torch import Tensor

from goca.errors import GocaError
from goca.imaging.files import orientation

ROUNDING = 1e-4
"""Tolerance of floats outside [0, 1], for rounding errors; less than one 8-bit level."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE_IS_ZERO = 0  # of the TIFF tag PhotometricInterpretation


def rgb(image: Image.Image, name: str) -> Image.Image:
    """A new RGB image: upright, transparency laid on white, 16-bit grey and floats scaled as in `of_array`.

    Raises GocaError for 32-bit integers and for floats outside [0, 1]; name: the image's name in messages.
    """
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        plain = _deep(image, name).convert("RGB")
    elif image.has_transparency_data:
        plain = _on_white(image)
    else:
        plain = image.convert("RGB")
    turn = _TURNS.get(orientation(image))
    if turn is not None:
        plain = plain.transpose(turn)
    # Other metadata no longer apply, such as the orientation, or belong to another mode.
    profile = image.info.get("icc_profile") if image.mode == "RGB" else None
    plain.info = {"icc_profile": profile} if profile else {}
    return plain


def of_array(array: np.ndarray | Tensor) -> Image.Image:
    """An RGB image of an array or tensor; see `goca.imaging.images.ImageLike` for what each of them may be.

    Raises GocaError for another shape, type or range.
    """
    name = f"{'a tensor' if isinstance(array, Tensor) else 'an array'} of shape {tuple(array.shape)}"
    values = _channels_last(array)
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim == 4:
        raise GocaError(f"{name} is a batch: pass a list of its images, or one image")
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4):
        layouts = "(height, width) or (height, width, 1, 3 or 4)", "(height, width) or (1, 3 or 4, height, width)"
        raise GocaError(f"{name} is not an image: pass {layouts[isinstance(array, Tensor)]}")
    if not values.size:
        raise GocaError(f"{name} is empty: pass one with pixels")
    levels = _levels(values, name)
    image = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    return rgb(image, name)


def _channels_last(array: np.ndarray | Tensor) -> np.ndarray:
    if not isinstance(array, Tensor):
        return np.asarray(array)
    array = array.detach().cpu()
    # NumPy has no bfloat16.
    values: np.ndarray = (array.float() if array.is_floating_point() else array).numpy()
    return np.moveaxis(values, -3, -1) if values.ndim in (3, 4) else values


def _levels(values: np.ndarray, name: str, most: int = 65535) -> UInt8[np.ndarray, "*shape"]:
    """Values scaled to 0 ... 255 by their type only, never by their range. most: white of 16-bit integers."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return ((values.astype(np.uint32) * 255 + most // 2) // most).clip(max=255).astype(np.uint8)
    if values.dtype.kind != "f":
        kinds = "uint8, uint16, bool, or floats from 0 to 1"
        raise GocaError(f"{name} has values of type {values.dtype}, whose white is unknown: convert them to {kinds}")
    low, high = float(values.min()), float(values.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise GocaError(f"{name} has values from {low:g} to {high:g}: scale them so that black is 0 and white is 1")
    return np.rint(values.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)


def _deep(image: Image.Image, name: str) -> Image.Image:
    """16-bit, integer or float grey as 8-bit grey."""
    values: np.ndarray = np.asarray(image)
    key = image.info.get("transparency")
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        values = values.astype(np.uint16)  # these formats have 16 bits, whatever Pillow stores them in
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    levels = _levels(values, name, most=2**bits - 1 if bits < 16 else 65535)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == _WHITE_IS_ZERO:
        levels = 255 - levels
    if isinstance(key, int):
        levels = np.where(values == key, np.uint8(255), levels)
    return Image.fromarray(levels)


def _on_white(image: Image.Image) -> Image.Image:
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        # The transparent value has 16 bits, of which Pillow keeps the upper eight in the pixels.
        image = image.copy()
        image.info["transparency"] = tuple(level >> 8 for level in key)
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
