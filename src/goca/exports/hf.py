"""Hugging Face: an imagefolder, whose metadata.jsonl pairs each image with its mask."""

import json
from collections.abc import Iterable, Iterator, Sequence

from goca.exports.base import DatasetImage
from goca.exports.json_document import document
from goca.exports.labels_png import labels_png
from goca.exports.objects import ObjectOptions


def write(
    images: Iterable[DatasetImage], classes: Sequence[str], objects: ObjectOptions
) -> Iterator[tuple[str, bytes]]:
    """`load_dataset("imagefolder", data_dir=...)` gives columns `image` and `mask`; id2label.json names the labels.

    Everything is in train/: without that folder, an image's own name could be mistaken for a split.
    """
    lines = []
    for image in images:
        suffix, content = image.file()
        row = {"file_name": f"images/{image.stem}{suffix}", "mask_file_name": f"masks/{image.stem}.png"}
        yield f"train/{row['file_name']}", content
        yield f"train/{row['mask_file_name']}", labels_png(image.labels, classes)
        lines.append(json.dumps(row) + "\n")
    yield "train/metadata.jsonl", "".join(lines).encode()
    yield "id2label.json", document({str(label): name for label, name in enumerate(("background", *classes))})
