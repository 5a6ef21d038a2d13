"""Images in a size that suits the page, and tiny images of layers' maps."""

from base64 import b64encode

import numpy as np
from jaxtyping import Float
from PIL import Image

from goca.imaging.draw import png
from goca.imaging.palette import magma

LEAST_SIDE, MOST_SIDE = 640, 1600
"""About the longest side of an image on the page, in pixels."""

SHOWN = {
    **{"interactive": False, "format": "png", "min_width": 260, "elem_classes": "goca-picture"},
    "buttons": ["fullscreen", "download"],
}
"""Arguments of images that are only shown; gradio's default buttons include one that uploads them."""


def factors(image: Image.Image) -> tuple[int, int]:
    """How many times an image is enlarged, and then reduced; one of them is 1."""
    longest = max(image.size)
    return max(1, LEAST_SIDE // longest), max(1, -(-longest // MOST_SIDE))


def scaled(image: Image.Image) -> Image.Image:
    """An image in a size that suits the page."""
    factor, step = factors(image)
    size = image.width * factor, image.height * factor
    return image.reduce(step) if factor == 1 else image.resize(size, Image.Resampling.BICUBIC)


def tiny(scores: Float[np.ndarray, "height width"]) -> str:
    """A map as a data URL of an image with one pixel per cell, from 0 (black) to its maximum (bright)."""
    colours = magma(scores / max(float(scores.max()), 1e-12))
    return f"data:image/png;base64,{b64encode(png(Image.fromarray(colours))).decode('ascii')}"
