"""Label maps in the formats of others: label PNG, COCO, labelme."""

import bisect
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int8, UInt16
from PIL import Image

from goca.errors import GocaError
from goca.imaging.draw import palette

MOST_INDEXED = 255  # classes that 8 bits hold next to the background

Point = tuple[int, int]


def png(image: Image.Image) -> bytes:
    """An image as a PNG file holds it."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def labels_png(labels: UInt16[np.ndarray, "height width"], classes: Sequence[str]) -> bytes:
    """A PNG whose pixel values are the labels: 8 bits with the palette, or 16-bit grey above 255 classes."""
    if len(classes) <= MOST_INDEXED:
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(palette(len(classes)).tobytes())
    else:
        image = Image.fromarray(labels)
    return png(image)


def coco(
    labels: UInt16[np.ndarray, "height width"], classes: Sequence[str], image_id: int, file_name: str
) -> dict[str, Any]:
    """A COCO dataset of this one image: one annotation, as compressed RLE, for each class that occurs.

    Category ids are the labels, from 1. Annotation ids are unique across images with the same classes and
    different `image_id`. Boxes are x, y, width, height; areas are counts; both in pixels.

    Raises:
        GocaError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask as rle
    except ImportError:
        raise GocaError('COCO export needs pycocotools: pip install "goca[export]"') from None

    height, width = labels.shape
    annotations = []
    for category_id in _present(labels, classes):
        segmentation = rle.encode(np.asfortranarray(labels == category_id, dtype=np.uint8))
        annotations.append(
            {
                "id": image_id * (len(classes) + 1) + category_id,
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": {"size": [height, width], "counts": segmentation["counts"].decode("ascii")},
                "area": int(rle.area(segmentation)),
                "bbox": rle.toBbox(segmentation).tolist(),
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes, start=1)],
    }


def labelme(labels: UInt16[np.ndarray, "height width"], classes: Sequence[str], file_name: str) -> dict[str, Any]:
    """A labelme file: for each class, one polygon around each of its connected regions.

    Points are x, y in pixels from the image's upper left corner, on the outlines of pixels: a polygon's
    area is its region's number of pixels. labelme knows no holes: a hole is joined to the outline by a seam
    of no width. `file_name` is the image's path from the folder that the file will lie in.
    """
    height, width = labels.shape
    shapes: list[dict[str, Any]] = [
        {
            "label": classes[index - 1],
            "points": [list(point) for point in polygon],
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for index in _present(labels, classes)
        for polygon in _polygons(labels == index)
    ]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": file_name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _present(labels: UInt16[np.ndarray, "height width"], classes: Sequence[str]) -> list[int]:
    counts = np.bincount(labels.ravel(), minlength=len(classes) + 1)
    return [index for index in range(1, len(classes) + 1) if counts[index]]


def _polygons(mask: Bool[np.ndarray, "height width"]) -> list[list[Point]]:
    """The outline of each 4-connected region of the mask, clockwise, its holes sewn in."""
    corners: list[Point] = []
    following: list[int] = []  # of each corner, the next one of its ring
    outlines: list[int] = []  # a corner of each
    holes: list[tuple[int, int]] = []  # the leftmost corner of each (of several the upper), the one before it
    for ring in _rings(mask):
        first, past = len(corners), len(corners) + len(ring)
        corners += ring
        following += [*range(first + 1, past), first]
        if _doubled_area(ring) > 0:
            outlines.append(first)
        else:
            leftmost = first + ring.index(min(ring))
            holes.append((leftmost, leftmost - 1 if leftmost > first else past - 1))

    # A seam runs from a hole's leftmost corner left along a row of the mask, to the upward edge it meets.
    # Lower holes go first, as the edge meets their seams first.
    edges = ((*corners[start], *corners[end], start) for start, end in enumerate(following))
    upward = sorted((x, end_y, start) for x, y, end_x, end_y, start in edges if x == end_x and end_y < y)
    latest: dict[int, int] = {}  # of an edge, by its start: where its latest seam ends
    for hole, before_hole in sorted(holes, key=lambda hole: -corners[hole[0]][1]):
        x, y = corners[hole]
        seam = (int(np.flatnonzero(np.r_[True, ~mask[y, :x]])[-1]), y)
        edge = upward[bisect.bisect_right(upward, (*seam, len(corners))) - 1][2]
        before_seam = latest.get(edge, edge)
        arrival, closing, departure = range(len(corners), len(corners) + 3)
        corners += [seam, corners[hole], seam]
        following += [hole, departure, following[before_seam]]
        following[before_seam], following[before_hole] = arrival, closing
        latest[edge] = departure
    return [[corners[corner] for corner in _ring_from(outline, following)] for outline in outlines]


def _rings(mask: Bool[np.ndarray, "height width"]) -> list[list[Point]]:
    """The corners of every boundary, clockwise around the mask and so counter-clockwise around its holes.

    Every edge has the mask on its right hand (y points down); where two pixels of it touch only at a corner,
    turning right keeps them apart.
    """
    padded = np.pad(mask, 1).astype(np.int8)
    ends: dict[tuple[Point, Point], Point] = {}  # (start, heading) -> end
    for y, left, right, enters in _runs(np.diff(padded, axis=0)[:, 1:-1]):
        start, end = (left, right) if enters else (right, left)
        ends[(start, y), (1 if enters else -1, 0)] = (end, y)
    for x, top, bottom, enters in _runs(np.diff(padded, axis=1)[1:-1].T):
        start, end = (bottom, top) if enters else (top, bottom)
        ends[(x, start), (0, -1 if enters else 1)] = (x, end)

    rings, seen = [], set()
    for edge in ends:
        ring = []
        while edge not in seen:
            seen.add(edge)
            corner, (east, south) = edge
            ring.append(corner)
            to_the_right = (ends[edge], (-south, east))
            edge = to_the_right if to_the_right in ends else (ends[edge], (south, -east))
        if ring:
            rings.append(ring)
    return rings


def _runs(step: Int8[np.ndarray, "line position"]) -> Iterator[tuple[int, int, int, bool]]:
    """Line, start, end and "enters" of each longest stretch of equal steps into or out of the mask."""
    before, after = np.pad(step, ((0, 0), (1, 0)))[:, :-1], np.pad(step, ((0, 0), (0, 1)))[:, 1:]
    line, start = np.nonzero((step != 0) & (step != before))
    _, last = np.nonzero((step != 0) & (step != after))
    return zip(line.tolist(), start.tolist(), (last + 1).tolist(), (step[line, start] > 0).tolist(), strict=True)


def _ring_from(first: int, following: Sequence[int]) -> Iterator[int]:
    yield first
    node = following[first]
    while node != first:
        yield node
        node = following[node]


def _doubled_area(ring: Sequence[Point]) -> int:
    edges = itertools.pairwise([*ring, ring[0]])
    return sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in edges)
