"""CVAT: what `cvat-cli task auto-annotate --function-module goca.integrations.cvat` runs on each image of a task."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk import models
from cvat_sdk.masks import encode_mask
from PIL import Image

from goca import bundled
from goca.errors import GocaError
from goca.exports.objects import ObjectOptions, regions
from goca.request import SegmentationRequest
from goca.segmenter import Segmenter
from goca.text.class_list import classes_to_find, parse_class_list

_log = logging.getLogger(__name__)


class Function:
    """A segmenter as CVAT's detection function: its labels are classes, what it detects are their masks.

    Args:
        segmenter: labels the images.
        request: what is asked of each; its image does not count.
        objects: how regions become masks.

    Raises:
        GocaError: the model cannot be asked for these classes.
    """

    def __init__(self, segmenter: Segmenter, request: SegmentationRequest, objects: ObjectOptions) -> None:
        self.segmenter, self.request, self.objects = segmenter, request, objects
        self._session = segmenter.check(request)

    @cached_property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        """The classes as labels of masks."""
        labels = [cvataa.label_spec(name, label, type="mask") for label, name in enumerate(self.request.classes, 1)]
        return cvataa.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: Image.Image
    ) -> Sequence[models.LabeledShapeRequest]:
        """The masks in an image, of classes whose evidence reaches the threshold, if there is one.

        An image that cannot be segmented has none, and a warning says why: a task's annotations are uploaded together,
        and one image must not cost those of the others.
        """
        ((_, result),) = self.segmenter.stream([replace(self.request, image=image)], self._session)
        if isinstance(result, GocaError):
            _log.warning("%s: %s", context.frame_name, result)
            return []
        shapes = []
        # A polygon has one outline, so each connected region is one.
        for region in regions(result.labels, self.objects, instances=context.conv_mask_to_poly or None):
            if result.evidence[region.label - 1] < (context.conf_threshold or 0):
                continue
            if context.conv_mask_to_poly:
                (corners,) = region.polygons()
                shapes.append(cvataa.polygon(region.label, [float(value) for corner in corners for value in corner]))
            else:
                mask = encode_mask(region.mask(result.labels.shape), region.box)
                shapes.append(cvataa.mask(region.label, mask))
        return shapes


def create(
    classes: str,
    model: str = bundled.DEFAULT,
    recipe: str = "goca-open",
    background: str | float = "auto",
    background_classes: str | None = None,
    instances: bool = False,
    min_area: int = 1,
    fill_holes: bool = False,
    **options: Any,
) -> Function:
    """The function with the parameters that follow `-p`, such as `-p classes=str:"cat, grass"`.

    Args:
        classes: as `goca segment --classes` takes them; the task's labels are called so.
        model, recipe: of `Segmenter.from_pretrained`.
        background, background_classes: of `SegmentationRequest`; background classes are between commas.
        instances, min_area, fill_holes: see `goca.exports.objects.ObjectOptions`.
        options: further arguments of `Segmenter.from_pretrained`, such as `device`, `floor` and `flip`.

    Raises:
        GocaError: for classes, a model or options that there are not.
    """
    listed = classes_to_find(parse_class_list(classes, "the list"), "the list")
    others = None if background_classes is None else [name for name in background_classes.split(",") if name.strip()]
    request = SegmentationRequest("", listed, others, background)
    objects = ObjectOptions(instances=instances, min_area=min_area, fill_holes=fill_holes)
    return Function(Segmenter.from_pretrained(model, recipe, **options), request, objects)
