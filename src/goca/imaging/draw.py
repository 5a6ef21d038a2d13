"""Images of a result: label maps as coloured overlays with a legend, score maps as heat maps.

Works on arrays and class names only. Returned images are new and RGB; inputs are not changed.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt16
from PIL import Image, ImageDraw

from goca.imaging.legend import LegendItem, legible, missing_items, percent, with_legend
from goca.imaging.palette import magma, palette

SHORTEST_LONG_SIDE = 384  # pixels; smaller images are enlarged so that a legend fits
STRIP = 256  # rows that are drawn at once, to bound memory


def png(image: Image.Image) -> bytes:
    """The bytes of an image as a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def overlay(
    image: Image.Image,
    labels: UInt16[np.ndarray, "height width"],
    classes: Sequence[str],
    legend: bool = True,
) -> Image.Image:
    """The image with its regions coloured and outlined, and a legend below, or beside it if upright.

    Args:
        image: Image of the labels' size.
        labels: 0 for background, which stays as photographed, i for `classes[i - 1]`.
        classes: Names; up to 20 without pixels are listed as missing. Pillow's font has no accents, which are dropped,
            and no other scripts: such a name appears as "class i".
        legend: False gives an image of the labels' size. With a legend, an image whose long side is under 384 px is
            enlarged by the smallest whole factor that reaches it.
    """
    if not legend:
        return painted(image, labels, len(classes))
    image, labels = enlarged(image, labels)
    colours = palette(len(classes))
    shares = pixel_counts(labels, len(classes)) / labels.size
    names = {index: legible(name, f"class {index}") for index, name in enumerate(classes, start=1)}
    present, missing = [], []
    for index, name in names.items():
        if shares[index]:
            present.append(LegendItem(name, percent(shares[index]), tuple(colours[index].tolist())))
        else:
            missing.append(name)
    return with_legend(painted(image, labels, len(classes)), present, missing_items(missing))


def enlarged(
    image: Image.Image, labels: UInt16[np.ndarray, "height width"]
) -> tuple[Image.Image, UInt16[np.ndarray, "high wide"]]:
    """An image and its labels, enlarged by the smallest whole factor that gives a long side of 384 px or more."""
    factor = math.ceil(SHORTEST_LONG_SIDE / max(image.size))
    if factor == 1:
        return image, labels
    size = image.width * factor, image.height * factor
    larger = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return larger, labels.repeat(factor, axis=0).repeat(factor, axis=1)


def painted(
    image: Image.Image,
    labels: UInt16[np.ndarray, "height width"],
    classes: int,
    colours: UInt8[np.ndarray, "label 3"] | None = None,
    opacity: Float[np.ndarray, " label"] | None = None,
) -> Image.Image:
    """The regions coloured and outlined, in the image's size.

    Args:
        image: Image of the labels' size.
        labels: 0 for background, which stays as photographed.
        classes: Number of classes.
        colours: RGB of the background, which is not used, and of each class; by default `palette`.
        opacity: Opacity of the same inside outlines, 0 to 1; classes with 0 have no outline. By default a half.
    """
    if labels.shape != (image.height, image.width):
        raise ValueError(f"labels of shape {labels.shape} do not match an image of {image.width} x {image.height} px")
    canvas = image.convert("RGB")
    colours = palette(classes) if colours is None else colours
    weights = np.full(classes + 1, 0.5) if opacity is None else np.array(opacity)
    weights[0] = 0
    # As with a legend's type, the short side of a long image decides.
    thickness = max(1, round(min(max(canvas.size), 4 * min(canvas.size)) / 300))
    for start in range(0, canvas.height, STRIP):
        stop = min(start + STRIP, canvas.height)
        # Overlap by a contour's reach, so that strip borders do not show.
        margin = min(thickness, start)
        contours = _contours(labels[start - margin : stop + thickness], thickness)[margin : margin + stop - start]
        shown = labels[start:stop]
        paint = Image.fromarray(colours[shown])
        strip = canvas.crop((0, start, canvas.width, stop))
        for weight in np.unique(weights[weights > 0]):
            strip.paste(Image.blend(strip, paint, weight), mask=Image.fromarray((weights == weight)[shown]))
        strip.paste(paint, mask=Image.fromarray(contours & (weights > 0)[shown]))
        canvas.paste(strip, (0, start))
    return canvas


def pixel_counts(labels: UInt16[np.ndarray, "height width"], classes: int) -> Int[np.ndarray, " label"]:
    """Number of pixels of each label: the background, then the classes."""
    # Some rows at a time, because NumPy makes copies with eight bytes per pixel.
    strips = (labels[start : start + STRIP].ravel() for start in range(0, len(labels), STRIP))
    return sum((np.bincount(strip, minlength=classes + 1) for strip in strips), np.zeros(classes + 1, np.int64))


def heatmap(image: Image.Image, scores: Float[np.ndarray, "height width"]) -> Image.Image:
    """The image in grey under the scores in colour: black is 0, pale yellow 1; a coarse grid is resized bilinearly."""
    smooth = Image.fromarray(scores.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    canvas = image.convert("L").convert("RGB")
    for start in range(0, canvas.height, STRIP):
        box = (0, start, canvas.width, min(start + STRIP, canvas.height))
        colours = Image.fromarray(magma(np.asarray(smooth.crop(box))))
        canvas.paste(Image.blend(canvas.crop(box), colours, 0.65), box)
    return canvas


def ringed(image: Image.Image, x: int | float, y: int | float) -> Image.Image:
    """The image with a white ring around a pixel, edged in black to be visible on white."""
    canvas, radius = image.copy(), max(2, round(max(image.size) / 60))
    width = max(1, radius // 3)
    for reach, thickness, colour in ((radius + width, 3 * width, (0, 0, 0)), (radius, width, (255, 255, 255))):
        box = (x - reach, y - reach, x + reach, y + reach)
        ImageDraw.Draw(canvas).ellipse(box, outline=colour, width=thickness)
    return canvas


def _contours(labels: UInt16[np.ndarray, "height width"], thickness: int) -> Bool[np.ndarray, "height width"]:
    """The pixels of a class that lie within `thickness` pixels of another label, up, down, left or right."""
    return (_near_change(labels, thickness) | _near_change(labels.T, thickness).T) & (labels > 0)


def _near_change(labels: UInt16[np.ndarray, "line pixel"], distance: int) -> Bool[np.ndarray, "line pixel"]:
    """The pixels that lie within `distance` of another label along their line."""
    near = np.pad(labels[:, 1:] != labels[:, :-1], ((0, 0), (distance, distance)))
    seen = 1
    while seen < 2 * distance:  # the reach doubles, because outlines of large images are thick
        step = min(seen, 2 * distance - seen)
        near = near[:, :-step] | near[:, step:]
        seen += step
    return near
