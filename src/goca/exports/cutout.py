"""A folder for each class, with every image that shows it, transparent where it does not."""

from collections.abc import Iterable, Iterator, Sequence

from PIL import Image

from goca.exports.base import DatasetImage
from goca.exports.masks import class_masks
from goca.exports.objects import ObjectOptions
from goca.imaging.draw import png
from goca.imaging.masks import Mask, as_image


def cutout(image: Image.Image, mask: Mask) -> Image.Image:
    """The image, RGBA, opaque where the mask is and black and transparent elsewhere."""
    out = Image.new("RGBA", image.size)
    out.paste(image.convert("RGB"), mask=as_image(mask))
    return out


def write(
    images: Iterable[DatasetImage], classes: Sequence[str], objects: ObjectOptions
) -> Iterator[tuple[str, bytes]]:
    """CLASS/NAME.png."""
    for image, name, mask in class_masks(images, classes, objects):
        yield name, png(cutout(image.pixels(), mask))
