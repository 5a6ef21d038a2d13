"""YOLO: images/, labels/ with a line for each object, and data.yaml, as Ultralytics lays them out for segmentation."""

import json
from collections.abc import Iterable, Iterator, Sequence

from goca.exports.base import DatasetImage
from goca.exports.objects import ObjectOptions, regions


def write(
    images: Iterable[DatasetImage], classes: Sequence[str], objects: ObjectOptions
) -> Iterator[tuple[str, bytes]]:
    """A line has the class, counted from 0, then x and y of each corner as shares of width and height.

    Each connected region is a line. An image without any has an empty file, a negative example.
    """
    for image in images:
        suffix, content = image.file()
        yield f"images/{image.stem}{suffix}", content
        height, width = image.labels.shape
        lines = [
            " ".join([str(region.label - 1), *(f"{x / width:.6g} {y / height:.6g}" for x, y in polygon)])
            for region in regions(image.labels, objects, instances=True)
            for polygon in region.polygons()
        ]
        yield f"labels/{image.stem}.txt", "".join(f"{line}\n" for line in lines).encode()
    # JSON strings are valid YAML. Without a path, the data set is in this file's folder.
    names = "".join(f"  {index}: {json.dumps(name, ensure_ascii=False)}\n" for index, name in enumerate(classes))
    yield "data.yaml", f"train: images\nval: images\nnames:\n{names}".encode()
