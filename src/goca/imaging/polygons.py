"""Outlines of masks as polygons on the edges of pixels."""

import bisect
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int8

Point = tuple[int, int]


def polygons(mask: Bool[np.ndarray, "height width"]) -> list[list[Point]]:
    """The outline of each 4-connected region of the mask, clockwise, with its holes joined by seams of zero width.

    Points are x, y in pixels from the upper left corner; a polygon's area is its region's number of pixels.
    """
    corners: list[Point] = []
    following: list[int] = []  # for each corner, the next one in its ring
    outlines: list[int] = []  # a corner of each outline
    holes: list[tuple[int, int]] = []  # (leftmost corner of each, the upper one of several; the corner before it)
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
    latest: dict[int, int] = {}  # {start of an edge: end of its latest seam}
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
