"""Pascal VOC: JPEGImages/, SegmentationClass/ of indexed PNGs, and lists of the images in ImageSets/Segmentation/."""

import io
from collections.abc import Iterable, Iterator, Sequence

from goca.errors import GocaError
from goca.exports.base import DatasetImage
from goca.exports.labels_png import labels_png
from goca.exports.objects import ObjectOptions
from goca.imaging.palette import palette

MOST_CLASSES = 254
"""VOC's 255 means unlabelled."""


def write(
    images: Iterable[DatasetImage], classes: Sequence[str], objects: ObjectOptions
) -> Iterator[tuple[str, bytes]]:
    """All images are in `train`, `val` and `trainval`; labelmap.txt names the classes, as CVAT's does."""
    if len(classes) > MOST_CLASSES:
        raise GocaError(f"VOC holds at most {MOST_CLASSES} classes, but there are {len(classes)}: choose hf", "formats")
    stems = []
    for image in images:
        suffix, content = image.file()
        if suffix != ".jpg":
            file = io.BytesIO()
            image.pixels().save(file, format="JPEG", quality=95)
            content = file.getvalue()
        yield f"JPEGImages/{image.stem}.jpg", content
        yield f"SegmentationClass/{image.stem}.png", labels_png(image.labels, classes)
        stems.append(image.stem)
    for subset in ("train", "val", "trainval"):
        yield f"ImageSets/Segmentation/{subset}.txt", "".join(f"{stem}\n" for stem in stems).encode()
    colours = [",".join(map(str, colour)) for colour in palette(len(classes)).tolist()]
    lines = [f"{name}:{colour}::\n" for name, colour in zip(("background", *classes), colours, strict=True)]
    yield "labelmap.txt", f"# label:color_rgb:parts:actions\n{''.join(lines)}".encode()
