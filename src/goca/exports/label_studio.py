"""Label Studio: importable tasks with predictions, whose masks are brush strokes, and the labelling configuration."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import UInt16

from goca.exports.base import DatasetImage
from goca.exports.objects import ObjectOptions, regions
from goca.imaging.masks import Mask
from goca.imaging.palette import palette

CONTROL, IMAGE = "label", "image"
"""Names of the labelling configuration's tags; a task's data has the image under its tag's name."""
_LENGTH_BITS = (3, 4, 8, 16)


def brush_rle(mask: Mask) -> list[int]:
    """The bytes of a mask in Label Studio's run-length encoding, thi.ng/rle-pack, as RGBA with channels 0 or 255.

    Header: 32 bits for the number of values, 5 for the bits per value minus 1, four times 4 for bit widths minus 1,
    one of which encodes each length. Then for each run: a 1, 2 bits for the width, the length minus 1, the value.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    lengths = 4 * np.diff(starts, append=flat.size)
    bits = [f"{4 * flat.size:032b}{8 - 1:05b}", *(f"{count - 1:04b}" for count in _LENGTH_BITS)]
    longest = 1 << _LENGTH_BITS[-1]
    for value, length in zip(flat[starts].tolist(), lengths.tolist(), strict=True):
        full, rest = divmod(length - 1, longest)
        for run in (*[longest] * full, rest + 1):
            choice = next(choice for choice, count in enumerate(_LENGTH_BITS) if run <= 1 << count)
            bits.append(f"1{choice:02b}{run - 1:0{_LENGTH_BITS[choice]}b}{255 * value:08b}")
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def prediction(
    labels: UInt16[np.ndarray, "height width"],
    names: Sequence[str],
    objects: ObjectOptions | None = None,
    *,
    evidence: Sequence[float] | None = None,
    control: str = CONTROL,
    image: str = IMAGE,
    model_version: str = "goca",
) -> dict[str, Any]:
    """A prediction of a task, with a brush stroke for each class that has pixels, or for each of its regions.

    Args:
        labels: 0 for background, i for `names[i - 1]`.
        names: The classes, as in the labelling configuration.
        objects: How regions become strokes; by default one per class.
        evidence: Evidence of each class, 0 to 1, which scores its strokes; their mean scores the prediction.
        control, image: Names of the configuration's BrushLabels and Image tags.
        model_version: Identifies the predictions of one model in Label Studio.
    """
    height, width = labels.shape
    results: list[dict[str, Any]] = []
    for number, region in enumerate(regions(labels, objects or ObjectOptions()), start=1):
        value = {
            "format": "rle",
            "rle": brush_rle(region.mask(labels.shape)),
            "brushlabels": [names[region.label - 1]],
        }
        results.append(
            {
                **{"id": f"goca-{number}", "type": "brushlabels", "from_name": control, "to_name": image},
                **{"original_width": width, "original_height": height, "image_rotation": 0, "value": value},
                **({} if evidence is None else {"score": evidence[region.label - 1]}),
            }
        )
    scores = [result["score"] for result in results if "score" in result]
    score = {"score": sum(scores) / len(scores)} if scores else {}
    return {"model_version": model_version, "result": results, **score}


def write(
    images: Iterable[DatasetImage], classes: Sequence[str], objects: ObjectOptions
) -> Iterator[tuple[str, bytes]]:
    """tasks.json to import, and config.xml to paste into the project's labelling interface first.

    Images have the paths under which Label Studio's local storage serves them if its root is their folder's parent.
    """
    colours = palette(len(classes))[1:]
    tags = "".join(
        f'    <Label value={quoteattr(name)} background="#{bytes(colour).hex()}"/>\n'
        for name, colour in zip(classes, colours, strict=True)
    )
    brush = f'  <BrushLabels name="{CONTROL}" toName="{IMAGE}">\n{tags}  </BrushLabels>\n'
    yield "config.xml", f'<View>\n  <Image name="{IMAGE}" value="${IMAGE}"/>\n{brush}</View>\n'.encode()
    tasks = [
        {"data": {IMAGE: _address(image)}, "predictions": [prediction(image.labels, classes, objects)]}
        for image in images
    ]
    yield "tasks.json", json.dumps(tasks).encode()


def _address(image: DatasetImage) -> str:
    path = PurePath(image.file_name)
    if isinstance(image.source, Path):
        whole = PurePath(os.path.abspath(image.source))  # noqa: PTH100 - `resolve` would follow links
        path = PurePath(*whole.parts[1:][-len(path.parts) - 1 :])
    return f"/data/local-files/?d={quote(os.fsencode(path.as_posix()))}"
