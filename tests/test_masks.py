"""Masks as arrays, against SciPy's ndimage, which defines most of what is done to them here."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from goca.errors import GocaError
from goca.imaging.masks import Box, as_image, blur, box_of, boxes_of, components, depth, filled, grow, shrink

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 13))
MASKS = arrays.arrays(bool, SHAPES, fill=st.nothing())
LABELS = arrays.arrays(np.uint16, SHAPES, elements=st.integers(0, 2), fill=st.nothing())
DIAGONAL = np.ones((3, 3))


@given(MASKS, st.booleans())
def test_components_of_a_mask(mask, diagonal):
    expected, _ = ndimage.label(mask, DIAGONAL if diagonal else None)
    np.testing.assert_array_equal(components(mask, diagonal), expected)


@given(LABELS)
def test_components_of_labels_are_those_of_each_label(labels):
    numbers = components(labels)
    assert (numbers[labels == 0] == 0).all()
    for label in (1, 2):
        expected, count = ndimage.label(labels == label)
        parts = numbers[labels == label]
        assert len({*zip(parts.tolist(), expected[labels == label].tolist(), strict=True)}) == count
        assert len(set(parts.tolist())) == count
    firsts = [np.flatnonzero(numbers.ravel() == number)[0] for number in range(1, numbers.max(initial=0) + 1)]
    assert firsts == sorted(firsts)


@given(LABELS)
def test_boxes(labels):
    numbers = components(labels)
    expected = [Box(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(numbers)]
    assert boxes_of(numbers) == expected
    assert [box_of(numbers == number) for number, _ in enumerate(expected, start=1)] == expected


@given(MASKS)
def test_holes_are_what_cannot_be_reached_from_outside(mask):
    np.testing.assert_array_equal(filled(mask), ndimage.binary_fill_holes(mask, DIAGONAL))


@given(MASKS)
def test_depth_counts_steps_to_the_outside(mask):
    expected = ndimage.distance_transform_cdt(np.pad(mask, 1), "taxicab")[1:-1, 1:-1]
    np.testing.assert_array_equal(depth(mask), expected)


@given(MASKS, st.integers(0, 30))
def test_growing_and_shrinking_go_as_far_as_they_say(mask, pixels):
    far = np.full(mask.shape, np.inf)
    to_mask = ndimage.distance_transform_edt(~mask) if mask.any() else far
    to_outside = far if mask.all() else ndimage.distance_transform_edt(mask)
    np.testing.assert_array_equal(grow(mask, pixels), to_mask <= pixels)
    np.testing.assert_array_equal(shrink(mask, pixels), to_outside > pixels)


def test_a_blurred_edge_runs_from_0_to_1():
    mask = np.zeros((40, 40), bool)
    mask[:, 20:] = True
    soft = blur(mask, 4)
    row = soft[20]
    assert (np.diff(row) >= 0).all()
    assert row[0] == 0
    assert row[-1] == 1
    assert 0.4 < row[19] < 0.5 < row[20] < 0.6
    np.testing.assert_array_equal(blur(mask, 0), mask)


def test_a_mask_as_an_image():
    values = np.array([[0, 0.5, 1]], np.float32)
    assert (as_image(values).mode, list(as_image(values).tobytes())) == ("L", [0, 128, 255])
    assert list(as_image(values == 1).tobytes()) == [0, 0, 255]


@pytest.mark.parametrize(
    ("mask", "pixels"), [(np.zeros((3, 3)), 1), (np.zeros(3, bool), 1), (np.zeros((3, 3), bool), -1)]
)
@pytest.mark.parametrize("change", [grow, blur])
def test_what_is_no_mask_is_refused(change, mask, pixels):
    with pytest.raises(GocaError, match=r"a mask is an array of True and False|is not a distance"):
        change(mask, pixels)


def test_a_large_mask_takes_no_time():
    """Ten times what it takes on a slow machine, and a tenth of what a loop over pixels would."""
    mask = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(1024, 1024)), 8) > 0
    start = time.perf_counter()
    components(mask)
    assert time.perf_counter() - start < 0.3
