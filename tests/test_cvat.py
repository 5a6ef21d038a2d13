"""The function for CVAT, driven and checked by CVAT's own SDK; only its server is played."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cvat_sdk")

from cvat_sdk import models
from cvat_sdk.auto_annotation import BadFunctionError, annotate_task, driver
from cvat_sdk.core.progress import NullProgressReporter
from cvat_sdk.masks import decode_mask

from goca import settings_choice
from goca.errors import GocaError
from goca.exports.objects import ObjectOptions
from goca.integrations.cvat import Function, create
from goca.request import SegmentationRequest

CLASSES = ["cat", "sky", "water"]
CAT = "examples/cat.png"


@pytest.fixture(scope="module")
def function():
    return create(classes="cat, sky, water", instances=True, min_area=9)


@pytest.fixture(scope="module")
def result(function):
    return function.segmenter(Image.open(CAT), CLASSES)


@pytest.fixture
def annotate(monkeypatch):
    """annotate(function, ...): what the SDK's driver uploads for a task of one image."""

    def run(function, labels=CLASSES, kind="any", image=CAT, **options):
        dataset = SimpleNamespace(
            labels=[
                models.Label(name=name, id=40 + index, type=kind, attributes=[], sublabels=[])
                for index, name in enumerate(labels)
            ],
            samples=[
                SimpleNamespace(
                    frame_name="a.png", frame_index=7, media=SimpleNamespace(load_image=lambda: Image.open(image))
                )
            ],
        )
        monkeypatch.setattr(driver, "TaskDataset", lambda *unused, **options: dataset)
        uploads = []
        api = SimpleNamespace(
            partial_update_annotations=lambda action, task, patched_labeled_data_request: uploads.append(
                patched_labeled_data_request
            )
        )
        client = SimpleNamespace(logger=logging.getLogger("cvat"), tasks=SimpleNamespace(api=api))
        annotate_task(client, 1, function, pbar=NullProgressReporter(), **options)
        (upload,) = uploads
        return upload.shapes

    return run


def decoded(shape, result):
    height, width = result.labels.shape
    return decode_mask(shape.points, image_width=width, image_height=height)


def test_masks_are_the_instances_of_the_classes(function, result, annotate):
    shapes = annotate(function)
    assert {(shape.type.value, shape.frame, shape.source) for shape in shapes} == {("mask", 7, "auto")}
    read = [(CLASSES[shape.label_id - 40], decoded(shape, result)) for shape in shapes]
    expected = result.instances(min_area=9)
    assert [name for name, _ in read] == [instance.class_name for instance in expected]
    for (_, mask), instance in zip(read, expected, strict=True):
        np.testing.assert_array_equal(mask, instance.mask)


def test_a_class_is_one_mask_without_instances(function, result, annotate):
    whole = Function(function.segmenter, function.request, ObjectOptions())
    masks = {CLASSES[shape.label_id - 40]: decoded(shape, result) for shape in annotate(whole)}
    assert masks.keys() == {name for name in CLASSES if result.present[name].share}
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, result[name])


def test_the_confidence_of_a_class_is_its_evidence(function, result, annotate):
    evidence = sorted(result.present[name].evidence for name in CLASSES if result.present[name].share)
    assert evidence[0] < evidence[-1]
    shown = {CLASSES[shape.label_id - 40] for shape in annotate(function, conf_threshold=evidence[-1])}
    assert shown == {name for name in CLASSES if result.present[name].evidence >= evidence[-1]}


def test_masks_become_polygons_of_the_same_area(function, result, annotate):
    whole = Function(function.segmenter, function.request, ObjectOptions(min_area=9))
    shapes = annotate(whole, kind="polygon", conv_mask_to_poly=True)
    expected = result.instances(min_area=9)
    assert [CLASSES[shape.label_id - 40] for shape in shapes] == [instance.class_name for instance in expected]
    for shape, instance in zip(shapes, expected, strict=True):
        x, y = np.reshape(shape.points, (-1, 2)).T
        assert abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 == instance.area


def test_a_task_without_one_of_the_labels_is_refused_by_cvat(function, annotate):
    with pytest.raises(BadFunctionError, match="'water' is not in dataset"):
        annotate(function, labels=CLASSES[:2])


def test_an_image_that_cannot_be_segmented_costs_none_of_the_others(function, annotate, tmp_path, caplog):
    Image.new("RGB", (9, 400)).save(tmp_path / "thin.png")
    assert annotate(function, image=tmp_path / "thin.png") == []
    assert "a.png: the image is 9 x 400 px" in caplog.text


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"classes": " "}, "no classes"),
        ({"classes": "cat", "model": "bundled", "min_area": 0}, "min_area 0 is not a number of pixels"),
        ({"classes": "zebra"}, "zebra"),
        ({}, "-p classes=str has no classes"),
        ({"classes": ["cat"]}, "classes is .* -p classes=str:"),
        ({"classes": 5}, "classes is 5, not text: .* -p classes=str:"),
        ({"classes": "cat", "min_area": "400"}, "min_area is '400', not a whole number: .* -p min_area=int:"),
        ({"classes": "cat", "min_area": True}, "min_area is True"),
        ({"classes": "cat", "min_area": 0}, r"\(-p min_area=int:"),
        ({"classes": "cat", "instances": "yes"}, "instances is 'yes', not true or false: .* -p instances=bool:"),
        ({"classes": "cat", "background": True}, "-p background=str:.* or -p background=float:"),
        ({"classes": "cat", "flip": 1}, "-p flip=bool:"),
        ({"classes": "cat", "floor": 7}, r"\(-p floor=float:"),
        ({"classes": "cat", "foo": 1}, "there is no parameter -p foo: choose from classes, model, "),
        ({"classes": "cat", "name": "bundled"}, "there is no parameter -p name"),
    ],
)
def test_mistakes_are_told_before_any_image_is_read(parameters, message):
    with pytest.raises(GocaError, match=message):
        create(**parameters)


def test_synonyms_are_words_for_a_label(function):
    request = SegmentationRequest("", {"animal": ["cat"], "sky": []})
    assert [label.name for label in Function(function.segmenter, request, ObjectOptions()).spec.labels] == [
        "animal",
        "sky",
    ]


def test_settings_are_chosen_where_they_have_not_been(monkeypatch):
    chosen = []

    def automatic_settings(segmenter):
        chosen.append(replace(segmenter.backbone.settings, timestep=123))
        return chosen[0]

    monkeypatch.setattr(settings_choice, "automatic_settings", automatic_settings)
    function = create(classes="cat, sky", settings="auto", device="cpu")
    assert chosen == [function.segmenter.backbone.settings]
