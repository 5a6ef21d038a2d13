import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as rle

from goca.errors import GocaError
from goca.exports import EXPORTERS
from goca.exports.coco import coco
from goca.exports.labelme import labelme
from goca.exports.labels_png import labels_png
from goca.imaging.palette import palette

CLASSES = ("cat", "grass", "sky")
# 5 x 7: a cat with a hole of grass and one of background, a pixel of sky in a corner.
LABELS = np.array(
    [
        [0, 0, 0, 0, 0, 0, 3],
        [0, 1, 1, 1, 1, 1, 0],
        [0, 1, 2, 1, 0, 1, 0],
        [0, 1, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ],
    dtype=np.uint16,
)

label_maps = arrays.arrays(
    np.uint16,
    st.tuples(st.integers(1, 11), st.integers(1, 13)),
    elements=st.integers(0, 2),
    fill=st.nothing(),
)


def inside(polygon, height, width):
    """Even-odd: a pixel is inside if the ray from its middle to the left crosses an odd number of edges."""
    crossings = np.zeros((height, width), dtype=int)
    for (x, y), (next_x, next_y) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        assert x == next_x or y == next_y
        crossings[min(y, next_y) : max(y, next_y), x:] += x == next_x
    return crossings % 2 == 1


def doubled_area(polygon):
    following = [*polygon[1:], polygon[0]]
    return sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(polygon, following, strict=True))


class TestLabelsPng:
    def test_up_to_255_classes_it_is_indexed_in_the_colours_of_the_overlay(self):
        image = Image.open(io.BytesIO(labels_png(LABELS, CLASSES)))
        assert (image.format, image.mode, image.size) == ("PNG", "P", (7, 5))
        np.testing.assert_array_equal(np.asarray(image), LABELS)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), palette(3)[LABELS])

    @pytest.mark.parametrize(("classes", "mode"), [(255, "P"), (256, "I;16")])
    def test_the_highest_label_survives(self, classes, mode):
        labels = np.array([[0, classes, 1]], dtype=np.uint16)
        image = Image.open(io.BytesIO(labels_png(labels, [f"class {i}" for i in range(classes)])))
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image), labels)


class TestCoco:
    def test_hand_computed(self):
        dataset = json.loads(json.dumps(coco(LABELS, CLASSES, image_id=11, file_name="a/photo.jpg")))
        assert dataset["images"] == [{"id": 11, "file_name": "a/photo.jpg", "height": 5, "width": 7}]
        assert dataset["categories"] == [
            {"id": 1, "name": "cat"},
            {"id": 2, "name": "grass"},
            {"id": 3, "name": "sky"},
        ]
        boxes = {entry["category_id"]: (entry["area"], entry["bbox"]) for entry in dataset["annotations"]}
        assert boxes == {1: (13, [1, 1, 5, 3]), 2: (1, [2, 2, 1, 1]), 3: (1, [6, 0, 1, 1])}

    @given(label_maps)
    def test_masks_come_back(self, labels):
        dataset = coco(labels, CLASSES, image_id=2, file_name="photo.jpg")
        for entry in dataset["annotations"]:
            np.testing.assert_array_equal(rle.decode(entry["segmentation"]), labels == entry["category_id"])
        assert {entry["category_id"] for entry in dataset["annotations"]} == set(np.unique(labels)) - {0}

    def test_annotation_ids_differ_between_images(self):
        images = [coco(LABELS, CLASSES, image_id=image_id, file_name="photo.jpg") for image_id in range(5)]
        ids = [entry["id"] for image in images for entry in image["annotations"]]
        assert len(ids) == len(set(ids)) == 15

    def test_without_pycocotools_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pycocotools", None)
        with pytest.raises(GocaError, match=r"pip install pycocotools"):
            coco(LABELS, CLASSES, image_id=1, file_name="photo.jpg")


class TestLabelme:
    def test_hand_computed(self):
        labels = np.array([[0, 2, 2], [0, 2, 0]], dtype=np.uint16)
        file = json.loads(json.dumps(labelme(labels, CLASSES, "photo.jpg")))
        (shape,) = file["shapes"]
        assert (shape["label"], shape["shape_type"]) == ("grass", "polygon")
        assert shape["points"] == [[1, 0], [3, 0], [3, 1], [2, 1], [2, 2], [1, 2]]
        assert (file["imagePath"], file["imageData"]) == ("photo.jpg", None)
        assert (file["imageHeight"], file["imageWidth"]) == (2, 3)

    def test_holes_are_sewn_in(self):
        shapes = labelme(LABELS, CLASSES, "photo.jpg")["shapes"]
        assert [shape["label"] for shape in shapes] == ["cat", "grass", "sky"]
        cat = shapes[0]["points"]
        # Four corners, and for each hole its four, the first again, and the seam's end twice.
        assert len(cat) == 4 + 7 + 7
        np.testing.assert_array_equal(inside(cat, 5, 7), LABELS == 1)

    def test_pixels_that_touch_at_a_corner_are_regions_of_their_own(self):
        labels = np.eye(3, dtype=np.uint16)
        polygons = [shape["points"] for shape in labelme(labels, CLASSES, "photo.jpg")["shapes"]]
        assert sorted(polygons) == [[[i, i], [i + 1, i], [i + 1, i + 1], [i, i + 1]] for i in range(3)]

    @settings(max_examples=400)
    @given(label_maps)
    def test_polygons_cover_the_labels_exactly(self, labels):
        drawn = np.zeros_like(labels)
        for shape in labelme(labels, CLASSES, "photo.jpg")["shapes"]:
            region = inside(shape["points"], *labels.shape)
            assert doubled_area(shape["points"]) == 2 * region.sum() > 0
            assert not drawn[region].any()
            drawn[region] = 1 + CLASSES.index(shape["label"])
        np.testing.assert_array_equal(drawn, labels)


class TestFormats:
    def test_every_format_is_a_file_that_its_own_reader_reads(self, bundled, image, tmp_path):
        result = bundled(image(), ["cat", "grass"])
        paths = result.save(tmp_path, "photo", formats=tuple(EXPORTERS), file_name="photo.jpg")
        assert [path.name for path in paths] == [f"photo{exporter.suffix}" for exporter in EXPORTERS.values()]
        content = {name: path.read_bytes() for name, path in zip(EXPORTERS, paths, strict=True)}
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content["labels"]))), result.labels)
        assert Image.open(io.BytesIO(content["overlay"])).width >= 160
        assert json.loads(content["coco"])["images"][0]["file_name"] == "photo.jpg"
        assert json.loads(content["labelme"])["imagePath"] == "photo.jpg"
        assert json.loads(content["json"])["plan"]["recipe"] == "goca"

    def test_a_name_that_is_no_text_is_written_and_read_back(self, bundled, image, tmp_path):
        name = "caf\udce9.jpg"
        result = bundled(image(), ["cat", "grass"])
        paths = result.save(tmp_path, "photo", facts={"image": name}, formats=tuple(EXPORTERS), file_name=name)
        coco, drawn, facts = (json.loads(path.read_bytes()) for path in paths[2:])
        assert coco["images"][0]["file_name"] == drawn["imagePath"] == facts["image"] == name

    def test_the_json_is_written_last_whatever_the_order(self, bundled, image, tmp_path):
        paths = bundled(image(), ["cat", "grass"]).save(tmp_path, formats=("json", "labels"))
        assert [path.name for path in paths] == ["image.labels.png", "image.json"]

    def test_an_unknown_format_writes_nothing(self, bundled, image, tmp_path):
        with pytest.raises(GocaError, match='no format "gif": choose from labels, overlay'):
            bundled(image(), ["cat", "grass"]).save(tmp_path, formats=("labels", "gif"))
        assert not list(tmp_path.iterdir())
