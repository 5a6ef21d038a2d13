import contextlib
import io
import json
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from formats import brush_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from scipy import ndimage

from goca.errors import GocaError
from goca.exports import EXPORTERS, check_objects, dataset_formats
from goca.exports.base import DatasetImage
from goca.exports.coco import coco
from goca.exports.label_studio import brush_rle, prediction, write
from goca.exports.labelme import labelme
from goca.exports.labels_png import labels_png
from goca.exports.objects import ObjectOptions, regions
from goca.exports.sam import prompts
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

    @given(label_maps, st.booleans())
    def test_polygons_are_the_same_pixels_to_pycocotools(self, labels, instances):
        """Holes too, although COCO's polygons have none: seams of no width take no pixel."""
        height, width = labels.shape
        drawn = np.zeros_like(labels)
        for entry in coco(labels, CLASSES, 2, "", ObjectOptions(polygons=True, instances=instances))["annotations"]:
            merged = rle.merge(rle.frPyObjects(entry["segmentation"], height, width))
            assert (rle.area(merged), list(rle.toBbox(merged))) == (entry["area"], entry["bbox"])
            drawn += rle.decode(merged) * np.uint16(entry["category_id"])
        np.testing.assert_array_equal(drawn, labels)

    def test_each_connected_region_may_be_an_annotation(self):
        labels = np.array([[1, 0, 1, 1], [0, 1, 0, 2]], np.uint16)
        objects = ObjectOptions(instances=True)
        entries = coco(labels, CLASSES, 1, "", objects)["annotations"]
        assert [(entry["category_id"], entry["area"], entry["bbox"]) for entry in entries] == [
            (1, 1, [0, 0, 1, 1]),
            (1, 2, [2, 0, 2, 1]),
            (1, 1, [1, 1, 1, 1]),
            (2, 1, [3, 1, 1, 1]),
        ]

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


class TestObjects:
    @given(label_maps, st.integers(1, 4), st.booleans(), st.booleans())
    def test_small_regions_are_no_objects_and_holes_may_be_filled(self, labels, min_area, fill_holes, instances):
        objects = ObjectOptions(min_area=min_area, fill_holes=fill_holes, instances=instances)
        masks = {1: [], 2: []}
        for region in regions(labels, objects):
            mask = region.mask(labels.shape)
            assert region.area == mask.sum()
            masks[region.label].append(mask)
        for label, of_label in masks.items():
            numbers, count = ndimage.label(labels == label)
            parts = [numbers == number for number in range(1, count + 1) if (numbers == number).sum() >= min_area]
            if fill_holes:
                parts = [ndimage.binary_fill_holes(part, np.ones((3, 3))) for part in parts]
            expected = parts if instances else [np.any(parts, axis=0)] * bool(parts)
            np.testing.assert_array_equal(of_label, expected)

    @pytest.mark.parametrize("area", [0, -3])
    def test_an_area_is_a_number_of_pixels(self, area):
        with pytest.raises(GocaError, match="is not a number of pixels: give 1 or more"):
            ObjectOptions(min_area=area)

    @pytest.mark.parametrize(
        ("formats", "option", "heeded"),
        [
            (["yolo"], {"instances": True}, "coco or label-studio"),
            (["labels"], {"min_area": 9}, "labelme or sam or coco or yolo"),
            (["hf", "voc"], {"fill_holes": True}, "labelme or sam"),
            (["sam"], {"polygons": True}, "coco"),
        ],
    )
    def test_an_option_that_no_format_heeds_is_refused(self, formats, option, heeded):
        check_objects([*formats, "coco"], ObjectOptions(**option))
        with pytest.raises(GocaError, match=f"{next(iter(option))} has no effect on these formats: add {heeded}"):
            check_objects(formats, ObjectOptions(**option))


class TestLabelStudio:
    """Label Studio's SDK pins an old numpy, so it is asked only where it is at hand; golden bytes of it always are."""

    def brushed(self):
        """Runs of each number of bits that a length is written in, longer ones too."""
        mask = np.zeros((211, 157), bool)
        mask[0, 0] = mask[1, 3:6] = mask[2, 7:61] = mask[3:5] = mask[5, :2] = True
        return mask

    def test_run_lengths_are_those_of_its_sdk(self):
        # pip install label-studio-sdk==2.1.2, then
        # label_studio_sdk.converter.brush.mask2rle(255 * brushed.astype(np.uint8)) gives
        golden = "0002059c391bfc7ffc09ec02dfff027700dafffc05fc038277fffffff00ff29e00"
        assert bytes(brush_rle(self.brushed())).hex() == golden
        np.testing.assert_array_equal(brush_mask(list(bytes.fromhex(golden)), (211, 157)), self.brushed())

    @given(label_maps)
    def test_masks_come_back(self, labels):
        results = prediction(labels, CLASSES)["result"]
        assert [result["value"]["brushlabels"] for result in results] == [
            [CLASSES[label - 1]] for label in np.unique(labels) if label
        ]
        for result in results:
            label = CLASSES.index(*result["value"]["brushlabels"]) + 1
            np.testing.assert_array_equal(brush_mask(result["value"]["rle"], labels.shape), labels == label)

    def test_scores_are_the_evidence(self):
        made = prediction(LABELS, CLASSES, ObjectOptions(min_area=2, instances=True), evidence=(0.75, 0.5, 0.25))
        assert [result["score"] for result in made["result"]] == [0.75]
        assert made["score"] == 0.75
        assert prediction(LABELS, CLASSES, evidence=(0.75, 0.5, 0.25))["score"] == 0.5
        assert "score" not in prediction(np.zeros((5, 7), np.uint16), CLASSES, evidence=(0.75, 0.5, 0.25))

    def test_its_sdk_reads_masks_and_finds_no_fault(self):
        brush = pytest.importorskip("label_studio_sdk.converter.brush")
        interface = pytest.importorskip("label_studio_sdk.label_interface")
        mask = self.brushed()
        assert brush_rle(mask) == brush.mask2rle(mask.astype(np.uint8) * 255)
        np.testing.assert_array_equal(brush.decode_rle(brush_rle(mask)).reshape(211, 157, 4)[..., 3], mask * 255)
        image = DatasetImage(file_name="a.png", stem="a", source=Image.new("RGB", (7, 5)), read_labels=lambda: LABELS)
        files = dict(write([image], CLASSES, ObjectOptions()))
        config = interface.LabelInterface(files["config.xml"].decode())
        (task,) = json.loads(files["tasks.json"])
        assert config.validate_task({"data": task["data"]})
        assert config.validate_prediction(task["predictions"][0])


class TestSam:
    @given(label_maps)
    def test_points_lie_inside_and_boxes_around_each_region(self, labels):
        numbers = [ndimage.label(labels == label)[0] for label in (1, 2)]
        entries = prompts(labels, CLASSES)
        assert len(entries) == sum(of_label.max() for of_label in numbers)
        for entry in entries:
            of_label = numbers[CLASSES.index(entry["label"])]
            number = of_label[entry["points"][0][1], entry["points"][0][0]]
            assert number
            assert {of_label[y, x] for x, y in entry["points"]} == {number}
            (y, x) = ndimage.find_objects(of_label)[number - 1]
            assert entry["box"] == [x.start, y.start, x.stop, y.stop]
            assert len({tuple(point) for point in entry["points"]}) == min(3, entry["area"])
            assert entry["point_labels"] == [1, 1, 1]

    def test_its_boxes_and_points_are_what_transformers_takes(self, image):
        from transformers import SamProcessor
        from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

        labels = np.zeros((48, 64), np.uint16)
        labels[4:20, 8:40], labels[30, 3] = 1, 2
        entries = prompts(labels, CLASSES)
        inputs = SamProcessor(SamImageProcessorPil())(
            image(64, 48),
            input_boxes=[[entry["box"] for entry in entries]],
            input_points=[[entry["points"] for entry in entries]],
            input_labels=[[entry["point_labels"] for entry in entries]],
            return_tensors="pt",
        )
        assert (inputs["input_boxes"] / 16).tolist() == [[[8, 4, 40, 20], [3, 30, 4, 31]]]
        assert inputs["input_points"].shape == (1, 2, 3, 2)
        assert (inputs["input_points"][0, 1, 0] / 16).tolist() == [3, 30]

    def test_the_first_point_is_the_deepest(self):
        labels = np.ones((9, 21), np.uint16)
        assert prompts(labels, CLASSES)[0]["points"] == [[4, 4], [9, 4], [14, 4]]


class TestDatasets:
    """Each data set, read by the library that defines it, or the one that most people read it with."""

    CLASSES = ("cat", "tall grass: green", "sky")
    NAMES = ("a.jpg", "b.png", "sub/a.png", "sub/test-1.png")

    def dataset_image(self, name, stem, path, labels):
        return DatasetImage(file_name=name, stem=stem, source=path, read_labels=lambda: labels)

    @pytest.fixture
    def images(self, image, tmp_path):
        """Three images of two rectangles each, and one that shows nothing."""
        images = []
        for number, name in enumerate(self.NAMES):
            labels = np.zeros((48, 40 + number), np.uint16)
            if number < 3:
                labels[4:20, 3:30] = 1 + number
                labels[24:44, 10:38] = 1 + (number + 1) % 3
            path = tmp_path / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image(40 + number, 48, number).save(path)
            stem = name.replace("/", "__").rpartition(".")[0]
            images.append(self.dataset_image(name, stem, path, labels))
        return images

    @pytest.fixture
    def written(self, images, tmp_path):
        def write(name, **objects):
            target = tmp_path / f"dataset.{name}"
            EXPORTERS[name].write_dataset(target, images, self.CLASSES, ObjectOptions(**objects))
            return target

        return write

    def by_name(self, images):
        return {image.file_name: image.labels for image in images}

    def test_coco_is_read_by_pycocotools(self, images, written):
        with contextlib.redirect_stdout(io.StringIO()):
            read = COCO(written("coco"))
        assert [category["name"] for category in read.loadCats(read.getCatIds())] == list(self.CLASSES)
        assert {entry["file_name"] for entry in read.imgs.values()} == set(self.NAMES)
        assert sorted(read.anns) == list(range(1, 7))
        for image_id, entry in read.imgs.items():
            labels = np.zeros((entry["height"], entry["width"]), np.uint16)
            for annotation in read.loadAnns(read.getAnnIds(image_id)):
                labels += read.annToMask(annotation) * np.uint16(annotation["category_id"])
            np.testing.assert_array_equal(labels, self.by_name(images)[entry["file_name"]])

    @pytest.mark.parametrize("polygons", [False, True])
    def test_coco_is_read_by_supervision(self, images, written, tmp_path, polygons):
        supervision = pytest.importorskip("supervision")
        read = supervision.DetectionDataset.from_coco(
            str(tmp_path / "photos"), str(written("coco", polygons=polygons)), force_masks=True
        )
        self.check_detections(read, {str(tmp_path / "photos" / image.file_name): image for image in images})

    def test_yolo_is_read_by_supervision(self, images, written):
        supervision = pytest.importorskip("supervision")
        folder = written("yolo")
        read = supervision.DetectionDataset.from_yolo(
            str(folder / "images"), str(folder / "labels"), str(folder / "data.yaml"), force_masks=True
        )
        self.check_detections(
            read, {str(folder / "images" / f"{image.stem}{image.source.suffix}"): image for image in images}
        )
        assert (folder / "labels" / "sub__test-1.txt").read_bytes() == b""
        assert (folder / "images" / "a.jpg").read_bytes() == images[0].source.read_bytes()

    def check_detections(self, read, images):
        assert read.classes == list(self.CLASSES)
        assert set(read.image_paths) == set(images)
        for path, pixels, detections in read:
            labels = images[path].labels
            assert pixels.shape[:2] == labels.shape
            assert sorted(detections.class_id + 1) == sorted(set(np.unique(labels)) - {0})
            for index, class_id in enumerate(detections.class_id):
                expected = labels == class_id + 1
                # It draws polygons with the pixels that their edges touch.
                missing = expected & ~detections.mask[index]
                added = detections.mask[index] & ~ndimage.binary_dilation(expected, np.ones((3, 3)))
                assert not missing.any()
                assert not added.any()

    def test_an_imagefolder_is_read_by_datasets(self, images, written, tmp_path):
        datasets = pytest.importorskip("datasets")
        folder = written("hf")
        read = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))
        assert list(read) == ["train"]
        assert len(read["train"]) == len(images)
        for row, image in zip(read["train"], images, strict=True):
            assert row["image"].size == row["mask"].size == image.labels.shape[::-1]
            np.testing.assert_array_equal(np.array(row["mask"]), image.labels)
            np.testing.assert_array_equal(np.array(row["image"].convert("RGB")), np.array(image.pixels()))
        names = json.loads((folder / "id2label.json").read_text())
        assert names == {"0": "background", "1": "cat", "2": "tall grass: green", "3": "sky"}

    def test_tasks_of_label_studio_name_images_as_its_local_storage_serves_them(self, images, written):
        folder = written("label-studio")
        tasks = json.loads((folder / "tasks.json").read_text())
        assert [task["data"]["image"] for task in tasks] == [
            f"/data/local-files/?d=photos/{image.file_name}" for image in images
        ]
        for task, image in zip(tasks, images, strict=True):
            (made,) = task["predictions"]
            read = np.zeros_like(image.labels)
            for result in made["result"]:
                assert (result["original_height"], result["original_width"]) == image.labels.shape
                (name,) = result["value"]["brushlabels"]
                read[brush_mask(result["value"]["rle"], read.shape)] = self.CLASSES.index(name) + 1
            np.testing.assert_array_equal(read, image.labels)
        config = ElementTree.parse(folder / "config.xml")
        brush = config.find("BrushLabels")
        assert [label.get("value") for label in brush] == list(self.CLASSES)
        used = {(result["from_name"], result["to_name"]) for result in tasks[0]["predictions"][0]["result"]}
        assert used == {(brush.get("name"), brush.get("toName"))}
        assert config.find("Image").attrib == {"name": brush.get("toName"), "value": "$image"}

    def test_voc_is_laid_out_as_its_readers_look_for_it(self, images, written):
        folder = written("voc")
        stems = (folder / "ImageSets" / "Segmentation" / "trainval.txt").read_text().split()
        assert stems == [image.stem for image in images]
        for stem, image in zip(stems, images, strict=True):
            with Image.open(folder / "JPEGImages" / f"{stem}.jpg") as picture:
                assert (picture.format, picture.size) == ("JPEG", image.labels.shape[::-1])
            with Image.open(folder / "SegmentationClass" / f"{stem}.png") as mask:
                assert mask.mode == "P"
                np.testing.assert_array_equal(np.array(mask), image.labels)
        lines = (folder / "labelmap.txt").read_text().splitlines()[1:]
        assert lines[:2] == ["background:0,0,0::", f"cat:{','.join(map(str, palette(1)[1]))}::"]

    def test_voc_s_void_is_no_class(self, images, tmp_path):
        names = [f"class {number}" for number in range(255)]
        with pytest.raises(GocaError, match="VOC holds at most 254 classes"):
            EXPORTERS["voc"].write_dataset(tmp_path / "x.voc", images, names, ObjectOptions())
        assert not list(tmp_path.glob("x.voc"))

    @pytest.mark.parametrize("name", ["masks", "cutout"])
    def test_each_class_has_a_folder_of_the_images_that_show_it(self, images, written, name):
        folder = written(name)
        found = {path.relative_to(folder).as_posix(): np.array(Image.open(path)) for path in folder.rglob("*.png")}
        expected = {
            f"{safe}/{image.stem}.png": (image, image.labels == label)
            for label, safe in enumerate(("cat", "tall grass- green", "sky"), start=1)
            for image in images
            if (image.labels == label).any()
        }
        assert found.keys() == expected.keys()
        for path, pixels in found.items():
            image, mask = expected[path]
            opacity = pixels if name == "masks" else pixels[..., 3]
            np.testing.assert_array_equal(opacity, mask * 255)
            if name == "cutout":
                np.testing.assert_array_equal(pixels[mask][:, :3], np.array(image.pixels())[mask])

    def test_classes_that_no_file_can_be_called_have_folders_all_the_same(self, images, tmp_path):
        EXPORTERS["masks"].write_dataset(tmp_path / "x.masks", images, ("../a", "..\\a", "A" * 300), ObjectOptions())
        folders = sorted(path.name for path in (tmp_path / "x.masks").iterdir() if path.is_dir())
        assert len(folders) == 3
        assert {"-a", "-a-2"} < set(folders)

    def test_what_trainers_would_read_in_another_way_is_written_as_it_was_seen(self, image, tmp_path):
        """Sideways by its EXIF data, transparent, and of a format that few read."""
        exif = Image.Exif()
        exif[0x0112] = 6
        clear = image(40, 48).convert("RGBA")
        clear.putalpha(128)
        for name, picture in {"turned.jpg": image(48, 40), "clear.png": clear, "b.webp": image(40, 48)}.items():
            picture.save(tmp_path / name, **({"exif": exif} if name == "turned.jpg" else {}))
            suffix, content = self.dataset_image(name, "x", tmp_path / name, np.zeros((48, 40), np.uint16)).file()
            with Image.open(io.BytesIO(content)) as written:
                assert (suffix, written.mode, written.size, written.getexif()) == (".png", "RGB", (40, 48), {})

    def test_a_folder_of_somebody_else_is_not_replaced(self, written, tmp_path):
        (tmp_path / "dataset.yolo").mkdir()
        (tmp_path / "dataset.yolo" / "mine.txt").touch()
        with pytest.raises(GocaError, match=r"dataset\.yolo is not a data set of goca's"):
            written("yolo")
        assert (tmp_path / "dataset.yolo" / "mine.txt").exists()

    def test_an_earlier_data_set_is_replaced_whole(self, written, images):
        written("masks")
        images.pop(0)
        folder = written("masks")
        assert not (folder / "cat" / "a.png").exists()
        assert not [path for path in folder.parent.iterdir() if path.name.startswith(".goca-")]


class TestResult:
    """What `Segmentation` offers of its masks in Python."""

    @pytest.fixture
    def result(self, bundled, image):
        return bundled(image(), ["cat", "grass"])

    def test_instances(self, result):
        instances = result.instances()
        for name in result:
            numbers, count = ndimage.label(result[name])
            of_class = [instance for instance in instances if instance.class_name == name]
            assert len(of_class) == count > 0
            for number, instance in enumerate(of_class, start=1):
                np.testing.assert_array_equal(instance.mask, numbers == number)
                scores = result.scores.at(result.labels.shape)[result.classes.index(name)]
                assert instance.score == pytest.approx(scores[instance.mask].mean(), abs=1e-5)
                assert instance.area == instance.mask.sum()
        assert {name: [box for *_, box, _, _ in group] for name, group in self.grouped(instances).items()} == {
            name: list(boxes) for name, boxes in result.boxes().items()
        }
        largest = max(instance.area for instance in instances)
        assert [instance.area for instance in result.instances(min_area=largest)] == [largest]

    def grouped(self, instances):
        return {
            name: [instance for instance in instances if instance.class_name == name]
            for name in dict.fromkeys(instance.class_name for instance in instances)
        }

    def test_a_cutout_is_the_class_and_nothing_else(self, result):
        cut = np.array(result.cutout("cat"))
        np.testing.assert_array_equal(cut[..., 3], result["cat"] * 255)
        np.testing.assert_array_equal(cut[result["cat"]][:, :3], np.array(result.image)[result["cat"]])
        assert not cut[~result["cat"]].any()

    def test_detections_of_supervision(self, result):
        pytest.importorskip("supervision")
        detections, instances = result.to_supervision(), result.instances()
        assert len(detections) == len(instances)
        np.testing.assert_array_equal(detections.mask, [instance.mask for instance in instances])
        assert [tuple(box) for box in detections.xyxy] == [instance.box for instance in instances]
        assert [result.classes[index] for index in detections.class_id] == list(detections["class_name"])
        assert (detections.area == [instance.area for instance in instances]).all()
        assert len(result.to_supervision(min_area=10**6)) == 0

    def test_without_supervision_it_says_what_to_install(self, result, monkeypatch):
        monkeypatch.setitem(sys.modules, "supervision", None)
        with pytest.raises(GocaError, match="pip install supervision"):
            result.to_supervision()

    def test_the_list_of_transformers(self, result):
        shares = {name: presence.share for name, presence in result.present.items()}
        entries = result.to_transformers()
        assert [entry["label"] for entry in entries] == sorted(shares, key=lambda name: -shares[name])
        for entry in entries:
            assert entry.keys() == {"score", "label", "mask"}
            assert entry["score"] == result.present[entry["label"]].evidence
            assert (entry["mask"].mode, entry["mask"].size) == ("L", result.image.size)
            np.testing.assert_array_equal(np.array(entry["mask"]) == 255, result[entry["label"]])

    def test_coco_of_instances(self, result):
        entries = result.to_coco(7, "photo.jpg", instances=True, min_area=3, polygons=True)["annotations"]
        assert [entry["area"] for entry in entries] == [instance.area for instance in result.instances(min_area=3)]


class TestFormats:
    def test_every_format_is_a_file_that_its_own_reader_reads(self, bundled, image, tmp_path):
        result = bundled(image(), ["cat", "grass"])
        paths = result.save(tmp_path, "photo", formats=tuple(EXPORTERS), file_name="photo.jpg")
        assert [path.name for path in paths] == [f"photo{exporter.suffix}" for exporter in EXPORTERS.values()]
        content = {name: path.read_bytes() for name, path in zip(EXPORTERS, paths, strict=True) if path.is_file()}
        assert content.keys() | dataset_formats(EXPORTERS).keys() == set(EXPORTERS)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content["labels"]))), result.labels)
        assert Image.open(io.BytesIO(content["overlay"])).width >= 160
        assert json.loads(content["coco"])["images"][0]["file_name"] == "photo.jpg"
        assert json.loads(content["labelme"])["imagePath"] == "photo.jpg"
        assert json.loads(content["json"])["plan"]["recipe"] == "goca"
        assert json.loads(content["sam"])["prompts"] == prompts(result.labels, result.classes)
        with Image.open(tmp_path / "photo.hf" / "train" / "masks" / "photo.png") as mask:
            np.testing.assert_array_equal(np.array(mask), result.labels)
        with np.load(io.BytesIO(content["npz"]), allow_pickle=False) as arrays:
            np.testing.assert_array_equal(arrays["labels"], result.labels)
            np.testing.assert_array_equal(arrays["scores"], result.scores.grid)
            assert tuple(arrays["classes"]) == result.classes
            assert json.loads(str(arrays["json"])) == json.loads(content["json"])

    def test_labelme_is_read_by_supervision(self, bundled, image, tmp_path):
        supervision = pytest.importorskip("supervision")
        result = bundled(image(), ["cat", "grass"])
        result.save(tmp_path / "labels", "photo", formats=["labelme"], objects=ObjectOptions(min_area=20))
        (tmp_path / "labels" / "photo.labelme.json").rename(tmp_path / "labels" / "photo.json")
        result.image.save(tmp_path / "photo.png")
        read = supervision.DetectionDataset.from_labelme(str(tmp_path), str(tmp_path / "labels"), force_masks=True)
        ((_, _, detections),) = read
        instances = result.instances(min_area=20)
        assert [read.classes[index] for index in detections.class_id] == [part.class_name for part in instances]
        assert all((part.mask <= mask).all() for part, mask in zip(instances, detections.mask, strict=True))

    def test_a_name_that_is_no_text_is_written_and_read_back(self, bundled, image, tmp_path):
        name, formats = "caf\udce9.jpg", ("coco", "labelme", "json")
        result = bundled(image(), ["cat", "grass"])
        paths = result.save(tmp_path, "photo", facts={"image": name}, formats=formats, file_name=name)
        drawn, facts, coco = (json.loads(path.read_bytes()) for path in paths)
        assert coco["images"][0]["file_name"] == drawn["imagePath"] == facts["image"] == name

    def test_the_json_is_written_last_whatever_the_order(self, bundled, image, tmp_path):
        paths = bundled(image(), ["cat", "grass"]).save(tmp_path, formats=("json", "labels"))
        assert [path.name for path in paths] == ["image.labels.png", "image.json"]

    def test_an_unknown_format_writes_nothing(self, bundled, image, tmp_path):
        with pytest.raises(GocaError, match='no format "gif": choose from labels, overlay'):
            bundled(image(), ["cat", "grass"]).save(tmp_path, formats=("labels", "gif"))
        assert not list(tmp_path.iterdir())
