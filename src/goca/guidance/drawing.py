"""Drawings of an image's guidance: its rates as a heat map, its regions as masks with their words."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt16
from PIL import Image

from goca.imaging import draw
from goca.imaging.sheet import Cell

CLAMP = (0.8, 3.0)
"""The authors' bounds of the rate."""


def rate_cell(image: Image.Image, rates: Float[np.ndarray, "height width"]) -> Cell:
    """The mean rate over an image, from the authors' least rate (black) to their most (bright)."""
    least, most = CLAMP
    heat = draw.heatmap(image, ((rates - least) / (most - least)).clip(0, 1))
    return Cell(heat, f"mean rate, {least:g} (black) to {most:g}")


def region_overlay(
    image: Image.Image, regions: UInt16[np.ndarray, "height width"], names: Mapping[int, str], legend: bool = True
) -> Image.Image:
    """The regions that guided an image, with the word of each."""
    numbers, inverse = np.unique(regions, return_inverse=True)
    labels = Image.fromarray((inverse.reshape(regions.shape) + 1).astype(np.uint16))
    enlarged = np.asarray(labels.resize(image.size, Image.Resampling.NEAREST))
    return draw.overlay(image, enlarged, [names.get(int(number), str(number)) for number in numbers], legend)
