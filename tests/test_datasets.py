"""Data sets in their published layouts, on tiny folders built like them, and what is said of broken ones."""

import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import dataset_folders as folders
import numpy as np
import pytest
from dataset_folders import Truths
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as rle

from goca import GocaError, bundled
from goca.evaluation.datasets import DATASETS, open_dataset
from goca.evaluation.datasets.base import VOID, Dataset
from goca.evaluation.datasets.coco_json import decode_mask
from goca.evaluation.datasets.coco_stuff import MERGES
from goca.evaluation.datasets.labelme import fill
from goca.evaluation.datasets.names import categories, published_classes, voc_colours
from goca.exports.labelme import labelme
from goca.imaging.palette import palette
from goca.text.nouns import parse_nouns

Make = Callable[[Path], Truths]

# Name, what builds it, how many classes, whether there is background, where the ground truth was found.
LAYOUTS = {
    "voc": ("voc", folders.make_voc, 20, True, ""),
    "context as PNG": ("context", folders.make_context_png, 59, True, "PNG, 59 classes"),
    "context as .mat": ("context", folders.make_context_mat, 59, True, ".mat, 459 classes"),
    "coco-object": ("coco-object", folders.make_coco_object, 80, True, ""),
    "coco-stuff-171": ("coco-stuff-171", folders.make_coco_stuff, 171, False, ""),
    "coco-stuff-27": (
        "coco-stuff-27",
        lambda root: folders.make_coco_stuff(root, folders.STUFF_27_PAIRS),
        27,
        False,
        "stuff maps",
    ),
    "panoptic": ("coco-stuff-27", folders.make_coco_panoptic, 27, False, "panoptic"),
    "cityscapes": ("cityscapes", folders.make_cityscapes, 19, False, ""),
    "ade20k": ("ade20k", folders.make_ade20k, 150, False, ""),
    "folder": ("folder", folders.make_folder, 3, True, ""),
}
layouts = pytest.mark.parametrize(("name", "make", "classes", "background", "source"), LAYOUTS.values(), ids=LAYOUTS)


def check(dataset: Dataset, truths: dict[str, np.ndarray]) -> None:
    """The samples are these, in this order, with images of their sizes."""
    assert [sample.id for sample in dataset.samples] == list(truths)
    for sample in dataset.samples:
        truth = sample.truth()
        assert truth.dtype == np.uint16
        np.testing.assert_array_equal(truth, truths[sample.id])
        with Image.open(sample.image) as image:
            assert (image.height, image.width) == truth.shape


@layouts
def test_every_split_is_read(
    tmp_path: Path, name: str, make: Make, classes: int, background: bool, source: str
) -> None:
    truths = make(tmp_path)
    default, *_ = truths
    for split in (None, *truths):
        dataset = open_dataset(name, tmp_path, split)
        assert (dataset.name, dataset.split, dataset.source) == (name, split or default, source)
        check(dataset, truths[split or default])
        assert len(dataset.categories) == classes
        assert dataset.background is background
        assert dataset.palette.shape == (classes + 1, 3)
        assert dataset.palette.dtype == np.uint8
        assert not dataset.palette[0].any()
        # Every name and synonym can be asked for, and belongs to one class.
        parse_nouns({category.name: category.synonyms for category in dataset.categories})


@layouts
def test_opening_reads_no_image(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Make,
    classes: int,
    background: bool,
    source: str,
) -> None:
    make(tmp_path)

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(Image, "open", refuse)
    assert open_dataset(name, tmp_path).samples


def test_what_there_is_not() -> None:
    with pytest.raises(GocaError, match=r'no data set "coco": choose from scenes, voc, .*, folder'):
        open_dataset("coco", None)
    with pytest.raises(GocaError, match='no split "test": choose from val, train, trainval'):
        open_dataset("voc", None, "test")
    for name in DATASETS:
        with pytest.raises(GocaError, match=r'no split "x": choose from'):
            open_dataset(name, None, "x")


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "scenes"])
def test_a_root_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(GocaError, match=f"{name} does not ship with goca") as caught:
        open_dataset(name, None)
    assert caught.value.hint == "root"
    with pytest.raises(GocaError, match=rf"{name}: no such folder: .*nowhere"):
        open_dataset(name, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("voc", "VOCdevkit/VOC2012/JPEGImages"),
        ("context", "VOCdevkit/VOC2010/JPEGImages"),
        ("coco-object", "annotations/instances_val2017.json"),
        ("coco-stuff-27", "stuffthingmaps/val2017/*.png"),
        ("coco-stuff-171", "stuffthingmaps/val2017/*.png"),
        ("cityscapes", "leftImg8bit"),
        ("ade20k", "ADEChallengeData2016/images"),
        ("folder", "classes.txt"),
    ],
)
def test_another_root_is_told_what_was_expected(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(GocaError) as caught:
        open_dataset(name, tmp_path)
    assert str(tmp_path / expected) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "make", "gone", "count"),
    [
        ("voc", folders.make_voc, "VOCdevkit/VOC2012/JPEGImages/2007_000042.jpg", "1 of 4 files"),
        ("voc", folders.make_voc, "VOCdevkit/VOC2012/SegmentationClass/2007_000033.png", "1 of 4 files"),
        ("voc", folders.make_voc, "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "expected"),
        ("context", folders.make_context_mat, "trainval/2008_000008.mat", "1 of 2 files"),
        ("context", folders.make_context_mat, "labels.txt", "expected"),
        ("coco-object", folders.make_coco_object, "val2017/000000000285.jpg", "1 of 3 files"),
        ("coco-stuff-171", folders.make_coco_stuff, "stuffthingmaps/val2017/000000000285.png", "1 of 4 files"),
        ("coco-stuff-171", folders.make_coco_stuff, "val2017/000000000285.jpg", "1 of 4 files"),
        ("coco-stuff-27", folders.make_coco_panoptic, "annotations/panoptic_val2017/000000000139.png", "1 of 1 files"),
        ("cityscapes", folders.make_cityscapes, "gtFine/val/lindau/lindau_000000_000294_gtFine_labelIds.png", "1 of 6"),
        ("ade20k", folders.make_ade20k, "ADEChallengeData2016/images/validation/ADE_val_00000002.jpg", "1 of 4 files"),
        ("ade20k", folders.make_ade20k, "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png", "1 of 4"),
        ("folder", folders.make_folder, "one.png", "1 of 3 images"),
    ],
)
def test_half_a_download_names_the_file(tmp_path: Path, name: str, make: Make, gone: str, count: str) -> None:
    make(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(GocaError) as caught:
        open_dataset(name, tmp_path)
    assert str(tmp_path / gone) in str(caught.value)
    assert count in str(caught.value)


class TestLabelFiles:
    """On ADE20K, whose files hold every kind of value; the other sets read theirs with the same functions."""

    def broken(self, root: Path, change: Callable[[Path], object]) -> str:
        folders.make_ade20k(root)
        path = root / "ADEChallengeData2016" / "annotations" / "validation" / "ADE_val_00000001.png"
        change(path)
        dataset = open_dataset("ade20k", root)
        with pytest.raises(GocaError) as caught:
            dataset.samples[0].truth()
        dataset.samples[1].truth()
        assert str(path) in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize("left", [0, 20, 60])
    def test_cut_short(self, tmp_path: Path, left: int) -> None:
        message = self.broken(tmp_path, lambda path: path.write_bytes(path.read_bytes()[:left]))
        assert message.count("is the file complete?")

    def test_of_another_size(self, tmp_path: Path) -> None:
        message = self.broken(tmp_path, lambda path: folders.grey(path, np.ones((23, 19), np.uint8)))
        assert "is 19 x 23 px and" in message
        assert "ADE_val_00000001.jpg 23 x 19" in message

    def test_in_colour(self, tmp_path: Path) -> None:
        assert "mode RGB" in self.broken(tmp_path, lambda path: folders.image(path, (19, 23)))

    def test_of_more_bits_than_the_data_set_has(self, tmp_path: Path) -> None:
        values = np.full((19, 23), 257, np.uint16)
        assert "the value 257" in self.broken(tmp_path, lambda path: folders.grey(path, values))

    def test_a_value_that_no_class_has(self, tmp_path: Path) -> None:
        folders.make_voc(tmp_path)
        values = np.zeros((19, 23), np.uint8)
        values[3, 5] = 21
        folders.indexed(tmp_path / "VOCdevkit/VOC2012/SegmentationClass/2007_000033.png", values)
        with pytest.raises(GocaError, match=r"2007_000033\.png has the value 21, which no class has"):
            open_dataset("voc", tmp_path).samples[0].truth()

    def test_a_jpeg_is_not_a_label_file(self, tmp_path: Path) -> None:
        def as_jpeg(path: Path) -> None:
            Image.open(path).convert("L").save(path, "JPEG")

        assert "is not an image that can be read as PNG" in self.broken(tmp_path, as_jpeg)

    def test_the_image_is_broken(self, tmp_path: Path) -> None:
        folders.make_ade20k(tmp_path)
        path = tmp_path / "ADEChallengeData2016" / "images" / "validation" / "ADE_val_00000001.jpg"
        path.write_bytes(b"half")
        with pytest.raises(GocaError, match=r"ADE_val_00000001\.jpg is not an image .*: is the file complete\?"):
            open_dataset("ade20k", tmp_path).samples[0].truth()

    @pytest.mark.parametrize("bits", [1, 2, 4])
    def test_few_bits_of_grey_are_values_not_brightness(self, tmp_path: Path, bits: int) -> None:
        # One row of two pixels, 0 and 1, in the upper bits of a byte.
        row = bytes([0, 1 << (8 - 2 * bits)])
        head = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(row)), (b"IEND", b""))
        packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
        folders.image(tmp_path / "photo.jpg", (1, 2))
        (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
        folders.write_lines(tmp_path / "classes.txt", ["cat"])
        assert open_dataset("folder", tmp_path).samples[0].truth().tolist() == [[0, 1]]

    def test_indices_of_few_bits(self, tmp_path: Path) -> None:
        values = np.array([[0, 1, 2], [2, 0, 1]], np.uint8)
        image = Image.fromarray(values)
        image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
        image.save(tmp_path / "photo.png", bits=2)
        folders.image(tmp_path / "photo.jpg", (2, 3))
        folders.write_lines(tmp_path / "classes.txt", ["cat", "dog"])
        np.testing.assert_array_equal(open_dataset("folder", tmp_path).samples[0].truth(), values)


class TestVoc:
    @pytest.mark.parametrize("root", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
    def test_the_root_may_be_the_kit_or_above_it(self, tmp_path: Path, root: str) -> None:
        truths = folders.make_voc(tmp_path)
        check(open_dataset("voc", tmp_path / root), truths["val"])

    def test_an_empty_list(self, tmp_path: Path) -> None:
        folders.make_voc(tmp_path)
        (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("\n")
        with pytest.raises(GocaError, match=r"val\.txt lists no image"):
            open_dataset("voc", tmp_path)

    def test_colours(self) -> None:
        # As the development kit documents them.
        colours = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
        table = voc_colours(256)
        assert {label: tuple(table[label].tolist()) for label in colours} == colours
        assert tuple(table[255].tolist()) == (224, 224, 192)
        assert len(np.unique(table, axis=0)) == 256


class TestContext:
    @pytest.mark.parametrize("folder", ["33_context_labels/trainval", "VOC2010/trainval"])
    def test_where_the_mats_may_lie(self, tmp_path: Path, folder: str) -> None:
        truths = folders.make_context_mat(tmp_path)
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        (tmp_path / "trainval").rename(tmp_path / folder)
        (tmp_path / "labels.txt").rename((tmp_path / folder).parent / "labels.txt")
        check(open_dataset("context", tmp_path), truths["val"])

    def test_without_any_ground_truth(self, tmp_path: Path) -> None:
        folders.make_context_mat(tmp_path)
        (tmp_path / "trainval").rename(tmp_path / "elsewhere")
        with pytest.raises(GocaError, match=r"expected .*VOC2010/SegmentationClassContext or .*VOC2010/trainval"):
            open_dataset("context", tmp_path)

    def test_names_of_another_list(self, tmp_path: Path) -> None:
        folders.make_context_mat(tmp_path)
        path = tmp_path / "labels.txt"
        path.write_text(path.read_text().replace(": table\n", ": diningtable\n"))
        with pytest.raises(GocaError, match=r'labels\.txt does not name "table"'):
            open_dataset("context", tmp_path)

    @pytest.mark.parametrize("content", [b"", b"half a file", None])
    def test_a_broken_mat(self, tmp_path: Path, content: bytes | None) -> None:
        folders.make_context_mat(tmp_path)
        path = tmp_path / "trainval" / "2008_000008.mat"
        path.write_bytes(path.read_bytes()[:150] if content is None else content)
        with pytest.raises(GocaError, match=r"2008_000008\.mat cannot be read \(.*\): check that the file is complete"):
            open_dataset("context", tmp_path).samples[0].truth()

    def test_without_scipy_it_says_what_to_install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folders.make_context_mat(tmp_path)
        monkeypatch.setitem(sys.modules, "scipy.io", None)
        with pytest.raises(GocaError, match=r"pip install scipy"):
            open_dataset("context", tmp_path)


class TestContextPngs:
    def test_void_may_be_kept_apart(self, tmp_path: Path) -> None:
        folders.make_context_png(tmp_path)
        values = np.full((19, 23), 255, np.uint8)
        values[3, 5:7] = 0, 59
        folders.grey(tmp_path / "VOCdevkit" / "VOC2010" / "SegmentationClassContext" / "2008_000008.png", values)
        truth = open_dataset("context", tmp_path).samples[0].truth()
        assert truth[3, 4:8].tolist() == [VOID, 0, 59, VOID]
        assert (truth == VOID).sum() == 19 * 23 - 2


class TestCocoObject:
    def change(self, root: Path, **members: object) -> None:
        folders.make_coco_object(root)
        path = root / "annotations" / "instances_val2017.json"
        path.write_text(json.dumps(folders.instances() | members))

    def test_images_in_images(self, tmp_path: Path) -> None:
        truths = folders.make_coco_object(tmp_path)
        (tmp_path / "images").mkdir()
        (tmp_path / "val2017").rename(tmp_path / "images" / "val2017")
        check(open_dataset("coco-object", tmp_path), truths["val2017"])

    def test_a_name_in_more_than_ascii(self, tmp_path: Path) -> None:
        truths = folders.make_coco_object(tmp_path)["val2017"]
        path = tmp_path / "annotations" / "instances_val2017.json"
        path.write_text(path.read_text(encoding="utf-8").replace("000000000632", "caf\u00e9"), encoding="utf-8")
        (tmp_path / "val2017" / "000000000632.jpg").rename(tmp_path / "val2017" / "caf\u00e9.jpg")
        truths["caf\u00e9"] = truths.pop("000000000632")
        check(open_dataset("coco-object", tmp_path), truths)

    @pytest.mark.parametrize("left", [0, 1, 40, 700, -1])
    def test_cut_short(self, tmp_path: Path, left: int) -> None:
        folders.make_coco_object(tmp_path)
        path = tmp_path / "annotations" / "instances_val2017.json"
        path.write_bytes(path.read_bytes()[:left])
        with pytest.raises(GocaError, match=r"instances_val2017\.json is not JSON .*: check that it is complete"):
            open_dataset("coco-object", tmp_path)

    def test_in_another_encoding(self, tmp_path: Path) -> None:
        truths = folders.make_coco_object(tmp_path)
        path = tmp_path / "annotations" / "instances_val2017.json"
        path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
        check(open_dataset("coco-object", tmp_path), truths["val2017"])

    @pytest.mark.parametrize(
        "members",
        [
            {"images": []},
            {"images": [{"id": 1}]},
            {"images": [{"id": 1, "file_name": "../secret.png", "height": 19, "width": 23}]},
            {"images": [{"id": 1, "file_name": "/etc/secret.png", "height": 19, "width": 23}]},
            {"images": [{"id": 1, "file_name": "a.png", "height": "19", "width": 23}]},
            {"annotations": [3]},
        ],
    )
    def test_json_of_another_kind(self, tmp_path: Path, members: dict[str, object]) -> None:
        self.change(tmp_path, **members)
        with pytest.raises(GocaError, match="does not list images and categories as COCO does"):
            open_dataset("coco-object", tmp_path)

    @pytest.mark.parametrize(
        ("category", "segmentation", "message"),
        [
            (12, [[0, 0, 3, 0, 3, 3]], "has the category 12, which COCO lacks"),
            (
                1,
                {"size": [13, 11], "counts": [0, 143]},
                r"annotation 1 of 0+139\.jpg cannot be drawn \(its size",
            ),
            (1, {"size": [19, 23], "counts": [0, 44]}, "its runs do not add up"),
            (1, {"size": [19, 23], "counts": [-1, 438]}, "its runs do not add up"),
            (1, {"size": [19, 23], "counts": [0.5, 436.5]}, "its runs do not add up"),
            # Ended early: the rest would be uninitialised memory.
            (1, {"size": [19, 23], "counts": "04"}, "its runs do not add up"),
            (1, {"size": [19, 23], "counts": "0o"}, "its last run has no end"),
            (1, {"size": [19, 23], "counts": "0\u00e9"}, "cannot be drawn"),
            # Each of these would end the process, or be drawn as something.
            (1, [[0, 0, 1e9, 0, 1e9, 1e9]], "far outside the image"),
            (1, [[0, 0, float("nan"), 0, 3, 3]], "far outside the image"),
            (1, [[0, 0, float("inf"), 0, 3, 3]], "far outside the image"),
            (1, [[0, 0, 3, 0, 3, 3, 4]], "a point without two coordinates"),
            (1, [[0, 0, "3", 0, 3, 3]], "cannot be drawn"),
            (1, 7, "cannot be drawn"),
            ([1], [[0, 0, 3, 0, 3, 3]], "cannot be drawn"),
        ],
    )
    def test_an_annotation_that_cannot_be(
        self, tmp_path: Path, category: object, segmentation: object, message: str
    ) -> None:
        self.change(tmp_path, annotations=[folders.entry(1, 139, category, segmentation)])
        with pytest.raises(GocaError, match=message):
            open_dataset("coco-object", tmp_path).samples[0].truth()

    def test_without_pycocotools_it_says_what_to_install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folders.make_coco_object(tmp_path)
        monkeypatch.setitem(sys.modules, "pycocotools", None)
        with pytest.raises(GocaError, match=r"pip install pycocotools"):
            open_dataset("coco-object", tmp_path)

    @given(
        arrays.arrays(
            np.uint8,
            st.tuples(st.integers(1, 40), st.integers(1, 40)),
            elements=st.integers(0, 1),
            fill=st.integers(0, 1),
        )
    )
    def test_compressed_runs_are_read_as_pycocotools_does(self, mask: np.ndarray) -> None:
        encoded = rle.encode(np.asfortranarray(mask))
        segmentation = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
        np.testing.assert_array_equal(decode_mask(segmentation, *mask.shape), mask)


class TestCocoStuff:
    def test_the_layout_of_the_authors(self, tmp_path: Path) -> None:
        truths = folders.make_coco_stuff(tmp_path)
        (tmp_path / "images").mkdir()
        (tmp_path / "val2017").rename(tmp_path / "images" / "val2017")
        (tmp_path / "stuffthingmaps").rename(tmp_path / "annotations")
        # What others derive beside the maps is not read.
        derived = tmp_path / "annotations" / "val2017" / "000000000139_labelTrainIds.png"
        folders.grey(derived, np.zeros((11, 13), np.uint8))
        check(open_dataset("coco-stuff-171", tmp_path), truths["val2017"])

    def test_panoptic_pngs_may_lie_in_the_root(self, tmp_path: Path) -> None:
        truths = folders.make_coco_panoptic(tmp_path)
        (tmp_path / "annotations" / "panoptic_val2017").rename(tmp_path / "panoptic_val2017")
        check(open_dataset("coco-stuff-27", tmp_path), truths["val2017"])

    def test_colours_are_those_of_the_panoptic_categories(self, tmp_path: Path) -> None:
        folders.make_coco_stuff(tmp_path)
        dataset = open_dataset("coco-stuff-171", tmp_path)
        names = [category.name for category in dataset.categories]
        colours = {"person": [220, 20, 60], "toothbrush": [191, 162, 208], "banner": [255, 255, 128], "snow": [255] * 3}
        for name, colour in colours.items():
            assert dataset.palette[names.index(name) + 1].tolist() == colour
        # Merged there into "cabinet-merged".
        assert dataset.palette[names.index("cabinet") + 1].tolist() == palette(171)[names.index("cabinet") + 1].tolist()

    def test_the_171_are_not_read_from_panoptic(self, tmp_path: Path) -> None:
        folders.make_coco_panoptic(tmp_path)
        with pytest.raises(GocaError, match="panoptic ground truth merges"):
            open_dataset("coco-stuff-171", tmp_path)

    @pytest.mark.parametrize(
        ("member", "value", "message"),
        [("id", 4, "the segment 3"), ("category_id", 2, "category 2"), ("category_id", [1], "cannot be drawn")],
    )
    def test_a_segment_that_is_not_listed(self, tmp_path: Path, member: str, value: object, message: str) -> None:
        folders.make_coco_panoptic(tmp_path)
        path = tmp_path / "annotations" / "panoptic_val2017.json"
        file = json.loads(path.read_text())
        file["annotations"][0]["segments_info"][0][member] = value
        path.write_text(json.dumps(file))
        with pytest.raises(GocaError, match=message):
            open_dataset("coco-stuff-27", tmp_path).samples[0].truth()

    def test_a_category_in_none_of_the_groups(self, tmp_path: Path) -> None:
        folders.make_coco_panoptic(tmp_path)
        path = tmp_path / "annotations" / "panoptic_val2017.json"
        path.write_text(path.read_text().replace('"plant"', '"plants"'))
        with pytest.raises(GocaError, match="category 184 is in none of the 27 groups"):
            open_dataset("coco-stuff-27", tmp_path)

    def test_the_papers_merges(self, tmp_path: Path) -> None:
        folders.make_coco_stuff(tmp_path)
        dataset = open_dataset("coco-stuff-27", tmp_path)
        names = [category.name for category in dataset.categories]
        assert dataset.merges == MERGES
        assert [(names[a - 1], names[b - 1]) for a, b in MERGES] == [
            ("food-stuff", "food"),
            ("furniture-stuff", "furniture"),
        ]

    def test_a_groups_members_stand_for_it(self, tmp_path: Path) -> None:
        folders.make_coco_stuff(tmp_path)
        words = {category.name: category.synonyms for category in open_dataset("coco-stuff-27", tmp_path).categories}
        assert {"cat", "kitten", "giraffe"} <= set(words["animal"])
        assert {"sofa", "dining table"} <= set(words["furniture"])
        # "table" is a class of its own among the 171, and of the other group.
        assert "table" not in words["furniture"]
        assert "table" in words["furniture-stuff"]

    def test_names(self) -> None:
        classes = published_classes("coco")
        assert [entry.id for entry in classes if entry.id <= 90] == sorted(
            set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
        )
        assert [entry.id for entry in classes if entry.id > 90] == list(range(92, 183))
        assert {entry.group for entry in classes} == {entry.name for entry in published_classes("coco", "groups")}
        words = {category.name: category.synonyms for category in categories(classes)}
        assert words["dining table"] == ()
        objects = {category.name: category.synonyms for category in categories(classes[:80])}
        assert objects["dining table"] == ("table",)


class TestCityscapes:
    def test_a_city_that_is_missing(self, tmp_path: Path) -> None:
        folders.make_cityscapes(tmp_path)
        for kind in ("leftImg8bit", "gtFine"):
            (tmp_path / kind / "val" / "munster").rename(tmp_path / kind / "munster")
        with pytest.raises(GocaError, match=r"expected .*leftImg8bit/val/munster/munster_\*_leftImg8bit\.png"):
            open_dataset("cityscapes", tmp_path)

    def test_colours_and_ids(self, tmp_path: Path) -> None:
        folders.make_cityscapes(tmp_path)
        dataset = open_dataset("cityscapes", tmp_path)
        assert dataset.palette[1].tolist() == [128, 64, 128]
        assert dataset.palette[19].tolist() == [119, 11, 32]
        assert [entry.id for entry in published_classes("cityscapes")] == [
            7,
            8,
            11,
            12,
            13,
            17,
            *range(19, 29),
            31,
            32,
            33,
        ]
        assert (dataset.categories[0].name, dataset.categories[18].name) == ("road", "bicycle")


def test_ade20ks_colours_and_names(tmp_path: Path) -> None:
    folders.make_ade20k(tmp_path)
    dataset = open_dataset("ade20k", tmp_path)
    colours = {1: ("wall", [120, 120, 120]), 13: ("person", [150, 5, 61]), 150: ("flag", [92, 0, 255])}
    for label, (name, colour) in colours.items():
        assert dataset.categories[label - 1].name == name
        assert dataset.palette[label].tolist() == colour


class TestScenes:
    def test_they_are_the_bundled_ones(self) -> None:
        dataset = open_dataset("scenes", None)
        names = [category.name for category in dataset.categories]
        assert names == sorted({name for scene in bundled.scenes() for name in scene.classes})
        assert (dataset.split, dataset.background) == ("all", False)
        for sample, scene in zip(dataset.samples, bundled.scenes(), strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(sample.image).convert("RGB")), np.asarray(scene.image))
            truth = sample.truth()
            for value, name in enumerate(scene.classes, start=1):
                np.testing.assert_array_equal(truth == names.index(name) + 1, scene.labels == value)

    def test_a_root_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(GocaError, match="ships with goca: leave out"):
            open_dataset("scenes", tmp_path)


class TestFolder:
    def one(self, root: Path, classes: list[str], values: np.ndarray) -> list[list[int]]:
        """The truth of one image with these lines in classes.txt and these values in its PNG."""
        folders.write_lines(root / "classes.txt", classes)
        folders.image(root / "photo.jpg", values.shape)
        folders.grey(root / "photo.png", values)
        return open_dataset("folder", root).samples[0].truth().tolist()

    def drawn(self, root: Path, classes: list[str], *shapes: dict[str, object], **members: object) -> np.ndarray:
        """The truth of one image of 5 x 7 with these shapes in its labelme file."""
        folders.write_lines(root / "classes.txt", classes)
        folders.image(root / "photo.jpg", (5, 7))
        (root / "photo.json").write_text(json.dumps({"shapes": list(shapes)} | members))
        return open_dataset("folder", root).samples[0].truth()

    def test_images_and_labels_apart(self, tmp_path: Path) -> None:
        folders.write_lines(tmp_path / "classes.txt", ["cat,", "", "grass, "])
        folders.image(tmp_path / "images" / "a" / "photo.png", (5, 7))
        folders.indexed(tmp_path / "labels" / "a" / "photo.png", np.full((5, 7), 2))
        dataset = open_dataset("folder", tmp_path)
        check(dataset, {"a/photo.png": np.full((5, 7), 2)})
        assert [category.name for category in dataset.categories] == ["cat", "grass"]

    def test_labels_apart_from_images_that_are_in_no_folder(self, tmp_path: Path) -> None:
        # What is in labels/ is no image, though it has an image's name.
        folders.write_lines(tmp_path / "classes.txt", ["cat", "grass"])
        folders.image(tmp_path / "one.png", (5, 7))
        folders.indexed(tmp_path / "labels" / "one.png", np.full((5, 7), 2))
        folders.image(tmp_path / "a" / "two.jpg", (3, 11))
        folders.indexed(tmp_path / "labels" / "a" / "two.png", np.full((3, 11), 1))
        truths = {"a/two.jpg": np.full((3, 11), 1), "one.png": np.full((5, 7), 2)}
        check(open_dataset("folder", tmp_path), truths)

    @pytest.mark.parametrize("home", ["", "images"])
    def test_labels_apart_are_read_and_not_what_is_beside_the_image(self, tmp_path: Path, home: str) -> None:
        # Such as the results of `goca segment` on these images, which would be taken for the truth about themselves.
        folders.write_lines(tmp_path / "classes.txt", ["cat", "grass"])
        folders.image(tmp_path / home / "one.jpg", (5, 7))
        folders.indexed(tmp_path / home / "one.labels.png", np.full((5, 7), 1))
        folders.indexed(tmp_path / "labels" / "one.png", np.full((5, 7), 2))
        check(open_dataset("folder", tmp_path), {"one.jpg": np.full((5, 7), 2)})
        (tmp_path / "labels" / "one.png").unlink()
        with pytest.raises(GocaError, match=r"expected .*labels/one\.labels\.png"):
            open_dataset("folder", tmp_path)

    def test_the_image_is_not_proposed_as_its_own_ground_truth(self, tmp_path: Path) -> None:
        folders.write_lines(tmp_path / "classes.txt", ["cat"])
        folders.image(tmp_path / "one.png", (5, 7))
        with pytest.raises(GocaError) as caught:
            open_dataset("folder", tmp_path)
        expected = f"{tmp_path / 'one.labels.png'} or {tmp_path / 'one.json'} (labelme)"
        assert str(caught.value).endswith(f"expected {expected}")

    def test_16_bits_hold_more_than_255_classes(self, tmp_path: Path) -> None:
        values = np.array([[0, 1, 255], [256, 300, 65535]], np.uint16)
        assert self.one(tmp_path, [f"class {i}" for i in range(1, 301)], values) == [[0, 1, 255], [256, 300, VOID]]

    def test_values_of_ones_own(self, tmp_path: Path) -> None:
        classes = ["0: void", "7: road, street", "8: sidewalk", "200: ignore", "19: sky"]
        values = np.array([[0, 7, 8], [200, 19, 255]], np.uint8)
        assert self.one(tmp_path, classes, values) == [[VOID, 1, 2], [VOID, 3, VOID]]
        dataset = open_dataset("folder", tmp_path)
        assert dataset.background is False
        assert dataset.categories[0].synonyms == ("street",)

    def test_named_background_counts_as_0(self, tmp_path: Path) -> None:
        classes = ["__ignore__", "_background_", "cat", "dog", "9: background"]
        assert self.one(tmp_path, classes, np.array([[0, 1, 2, 9, 255]], np.uint8)) == [[0, 1, 2, 0, VOID]]
        assert open_dataset("folder", tmp_path).background is True

    def test_a_value_that_is_not_listed(self, tmp_path: Path) -> None:
        with pytest.raises(GocaError, match=r"photo\.png has the value 3, which no class has"):
            self.one(tmp_path, ["cat", "dog"], np.array([[0, 3]], np.uint8))

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            (["cat", "dog, Cat"], 'names "Cat" twice'),
            (["3: cat", "3: dog"], "gives 3 to two classes"),
            (["70000: cat"], "above 65535"),
            (["background"], "no classes"),
            (["cat", "dog, !"], "is not a name"),
            (["caf\u00e9"], "is not text in UTF-8"),
        ],
    )
    def test_classes_that_are_unclear(self, tmp_path: Path, classes: list[str], message: str) -> None:
        self.one(tmp_path, ["cat"], np.zeros((2, 3), np.uint8))
        (tmp_path / "classes.txt").write_text("\n".join(classes), encoding="latin-1")
        with pytest.raises(GocaError, match=message):
            open_dataset("folder", tmp_path)

    def test_without_images(self, tmp_path: Path) -> None:
        folders.write_lines(tmp_path / "classes.txt", ["cat"])
        with pytest.raises(GocaError, match="no images in"):
            open_dataset("folder", tmp_path)

    def test_an_image_that_is_stored_on_its_side(self, tmp_path: Path) -> None:
        values = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
        self.one(tmp_path, ["cat"], values)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.zeros((3, 2, 3), np.uint8)).save(tmp_path / "photo.jpg", exif=exif)
        np.testing.assert_array_equal(open_dataset("folder", tmp_path).samples[0].truth(), values)

    def test_later_shapes_lie_over_earlier_ones(self, tmp_path: Path) -> None:
        shapes: list[dict[str, object]] = [
            {"label": "Cat", "points": [[1, 1], [6, 1], [6, 4], [1, 4]], "shape_type": "polygon"},
            {"label": "kitty", "points": [[0, 4], [2, 5]], "shape_type": "rectangle"},
            # Its middle decides whether a pixel is inside.
            {"label": "sky", "points": [[3.4, 1.4], [5.4, 1.4], [5.4, 2.6], [3.4, 2.6]]},
            {"label": "void", "points": [[0, 0], [1, 0], [1, 1], [0, 1]]},
        ]
        truth = self.drawn(tmp_path, ["cat, kitty", "sky"], *shapes, imageHeight=5, imageWidth=7)
        assert truth.tolist() == [
            [VOID, 0, 0, 0, 0, 0, 0],
            [0, 1, 1, 2, 2, 1, 0],
            [0, 1, 1, 2, 2, 1, 0],
            [0, 1, 1, 1, 1, 1, 0],
            [1, 1, 0, 0, 0, 0, 0],
        ]
        folders.write_lines(tmp_path / "classes.txt", ["0: void", "1: cat, kitty", "sky"])
        assert open_dataset("folder", tmp_path).samples[0].truth()[0].tolist() == [VOID] * 7

    @pytest.mark.parametrize(
        ("shape", "members", "message"),
        [
            (
                {"label": "dog", "points": [[0, 0], [1, 0], [1, 1]]},
                {},
                'the label "dog", which classes.txt lacks',
            ),
            ({"label": "cat", "points": [[0, 0], [1, 0]], "shape_type": "circle"}, {}, 'a shape of type "circle"'),
            ({"label": "cat"}, {}, "a shape without a label or points"),
            (None, {"shapes": None}, "no list of shapes"),
            (None, {"imageHeight": 7, "imageWidth": 5}, "is 5 x 7 px and"),
        ],
    )
    def test_labelme_files_that_cannot_be(
        self, tmp_path: Path, shape: dict[str, object] | None, members: dict[str, object], message: str
    ) -> None:
        with pytest.raises(GocaError, match=message):
            self.drawn(tmp_path, ["cat"], *([shape] if shape else []), **members)

    def test_half_a_labelme_file(self, tmp_path: Path) -> None:
        self.drawn(tmp_path, ["cat"])
        (tmp_path / "photo.json").write_text('{"shapes": [')
        with pytest.raises(GocaError, match=r"photo\.json is not JSON .*: check that it is complete"):
            open_dataset("folder", tmp_path).samples[0].truth()

    @given(
        arrays.arrays(
            np.uint16,
            st.tuples(st.integers(1, 11), st.integers(1, 13)),
            elements=st.integers(0, 2),
            fill=st.nothing(),
        )
    )
    def test_polygons_of_our_own_come_back_exactly(self, labels: np.ndarray) -> None:
        out = np.zeros_like(labels)
        for shape in labelme(labels, ("1", "2"), "photo.jpg")["shapes"]:
            out[fill([(float(x), float(y)) for x, y in shape["points"]], *labels.shape)] = int(shape["label"])
        np.testing.assert_array_equal(out, labels)

    def test_shapes_may_reach_over_the_edge(self) -> None:
        inside = fill([(-3.0, -2.0), (2.0, -2.0), (2.0, 99.0), (-3.0, 99.0)], 3, 5)
        np.testing.assert_array_equal(inside, np.tile(np.arange(5) < 2, (3, 1)))
