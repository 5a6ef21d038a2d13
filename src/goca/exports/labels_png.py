"""Labels as an indexed PNG of the image's size."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt16
from PIL import Image

from goca.exports.base import Exportable, ExportContext
from goca.imaging.draw import png
from goca.imaging.files import LABEL_FORMATS, opened
from goca.imaging.palette import MAX_COLOURS, palette


def labels_png(labels: UInt16[np.ndarray, "height width"], classes: Sequence[str]) -> bytes:
    """A PNG whose pixel values are the labels: 8 bits with the palette, or 16-bit grey above 255 classes."""
    if len(classes) <= MAX_COLOURS:
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(palette(len(classes)).tobytes())
    else:
        image = Image.fromarray(labels)
    return png(image)


def write(result: Exportable, context: ExportContext) -> bytes:
    """`labels_png` of a result."""
    return labels_png(result.labels, result.classes)


def read_labels(path: Path) -> UInt16[np.ndarray, "height width"]:
    """The labels of such a file, even if an editor has saved it. Raises GocaError if it cannot be read."""
    with opened(path, formats=LABEL_FORMATS) as image:
        return np.array(image).astype(np.uint16)
