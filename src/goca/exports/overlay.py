"""The image under its coloured masks, with a legend, as a PNG."""

from goca.exports.base import Exportable, ExportContext
from goca.imaging.draw import png


def write(result: Exportable, context: ExportContext) -> bytes:
    """The overlay of a result."""
    return png(result.overlay())
