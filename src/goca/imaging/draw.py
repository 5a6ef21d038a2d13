"""Images of a result: label maps as coloured overlays with a legend, score maps as heat maps.

Knows arrays and class names, nothing of models. Images returned are new and RGB; the input stays as it was.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt16
from PIL import Image

from goca.imaging.legend import LegendItem, legible, missing_items, percent, with_legend
from goca.imaging.palette import magma, palette

SHORTEST_LONG_SIDE = 384  # pixels: smaller images are enlarged, or no legend fits


def png(image: Image.Image) -> bytes:
    """An image as a PNG file holds it."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def overlay(image: Image.Image, labels: UInt16[np.ndarray, "height width"], classes: Sequence[str]) -> Image.Image:
    """The image with its regions coloured and outlined, and a legend below, or beside it if upright.

    Args:
        image: of the labels' size; one with a long side under 384 px is shown at the least whole multiple that is not.
        labels: 0 for background, which stays as photographed, i for `classes[i - 1]`.
        classes: names; up to 20 that no pixel has are listed as not found. Pillow's font has no accents, which are
            dropped, and no other scripts: such a name appears as "class i".
    """
    colours = palette(len(classes))
    shares = np.bincount(labels.ravel(), minlength=len(classes) + 1) / labels.size
    names = {index: legible(name, f"class {index}") for index, name in enumerate(classes, start=1)}
    present, missing = [], []
    for index, name in names.items():
        if shares[index]:
            present.append(LegendItem(name, percent(shares[index]), tuple(colours[index].tolist())))
        else:
            missing.append(name)
    return with_legend(painted(image, labels, len(classes)), present, missing_items(missing))


def painted(image: Image.Image, labels: UInt16[np.ndarray, "height width"], classes: int) -> Image.Image:
    """`overlay` without its legend."""
    canvas = image.convert("RGB")
    factor = math.ceil(SHORTEST_LONG_SIDE / max(canvas.size))
    if factor > 1:
        canvas = canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.BICUBIC)
        labels = labels.repeat(factor, axis=0).repeat(factor, axis=1)
    paint = Image.fromarray(palette(classes)[labels])
    canvas.paste(Image.blend(canvas, paint, 0.5), mask=Image.fromarray(labels > 0))
    thickness = max(1, round(max(canvas.size) / 300))
    canvas.paste(paint, mask=Image.fromarray(_contours(labels, thickness)))
    return canvas


def heatmap(image: Image.Image, scores: Float[np.ndarray, "height width"]) -> Image.Image:
    """The image in grey under the scores in colour: black is 0, pale yellow 1; a coarse grid is resized bilinearly."""
    smooth = Image.fromarray(scores.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    colours = Image.fromarray(magma(np.asarray(smooth)))
    return Image.blend(image.convert("L").convert("RGB"), colours, 0.65)


def _contours(labels: UInt16[np.ndarray, "height width"], thickness: int) -> Bool[np.ndarray, "height width"]:
    """The pixels of a class that lie within `thickness` pixels of another label, up, down, left or right."""
    edge = np.zeros(labels.shape, dtype=bool)
    for step in range(1, thickness + 1):
        across = labels[:, step:] != labels[:, :-step]
        down = labels[step:] != labels[:-step]
        edge[:, step:] |= across
        edge[:, :-step] |= across
        edge[step:] |= down
        edge[:-step] |= down
    return edge & (labels > 0)
