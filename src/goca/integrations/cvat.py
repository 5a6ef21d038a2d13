"""CVAT: what `cvat-cli task auto-annotate --function-module goca.integrations.cvat` runs on each image of a task."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, get_args, get_type_hints

import cvat_sdk.auto_annotation as cvataa
from cvat_sdk import models
from cvat_sdk.masks import encode_mask
from PIL import Image

from goca import bundled
from goca.errors import GocaError
from goca.exports.objects import ObjectOptions, regions
from goca.request import SegmentationRequest
from goca.segmenter import Segmenter
from goca.settings_choice import load_segmenter
from goca.text.class_list import classes_to_find, parse_class_list

_log = logging.getLogger(__name__)
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
"""The types that CVAT's `-p` takes, in words."""


class Function:
    """A segmenter as CVAT's detection function: classes are labels, and their masks the detected shapes.

    Args:
        segmenter: Labels the images.
        request: What is asked of each image; its own image is ignored.
        objects: How regions become masks.

    Raises:
        GocaError: The model does not support these classes.
    """

    def __init__(self, segmenter: Segmenter, request: SegmentationRequest, objects: ObjectOptions) -> None:
        self.segmenter, self.request, self.objects = segmenter, request, objects
        self._session = segmenter.check(request)

    @cached_property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        """The specification: a mask label for each class."""
        labels = [cvataa.label_spec(name, label, type="mask") for label, name in enumerate(self.request.classes, 1)]
        return cvataa.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: Image.Image
    ) -> Sequence[models.LabeledShapeRequest]:
        """The masks of an image, for classes whose evidence reaches CVAT's threshold if one is set.

        An image that cannot be segmented gets none, and a warning says why: the annotations of a task are uploaded
        together, and one bad image must not cost the others theirs.
        """
        ((_, result),) = self.segmenter.stream([replace(self.request, image=image)], self._session)
        if isinstance(result, GocaError):
            _log.warning("%s: %s", context.frame_name, result)
            return []
        shapes = []
        # A polygon has a single outline, so each connected region becomes a polygon.
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
    classes: str = "",
    model: str = bundled.DEFAULT,
    recipe: str = "goca-open",
    background: str | float | None = "auto",
    background_classes: str | None = None,
    instances: bool = False,
    min_area: int = 1,
    fill_holes: bool = False,
    **options: Any,
) -> Function:
    """Create the function from parameters given by `-p`, such as `-p classes=str:"cat, grass"`.

    Args:
        classes: As for `goca segment --classes`; the task's labels must have these names.
        model, recipe: As for `Segmenter.from_pretrained`.
        background, background_classes: As for `SegmentationRequest`; background classes are comma-separated.
        instances, min_area, fill_holes: See `goca.exports.objects.ObjectOptions`.
        options: Further arguments of `Segmenter.from_pretrained`, such as `device`, `floor` and `flip`. With
            `settings="auto"`, settings are chosen unless that was done before; see `automatic_settings`.

    Raises:
        GocaError: Classes, model or options are not valid; the message says how to give the parameter with `-p`.
    """
    objects: dict[str, Any] = {"instances": instances, "min_area": min_area, "fill_holes": fill_holes}
    background_of = {"background": background, "background_classes": background_classes}
    _check({"classes": classes, "model": model, "recipe": recipe, **background_of, **objects, **options})
    try:
        listed = classes_to_find(parse_class_list(classes, "-p classes=str"), "-p classes=str")
        others = None if background_classes is None else [n for n in background_classes.split(",") if n.strip()]
        request = SegmentationRequest("", listed, others, background)
        how = ObjectOptions(**objects)
        return Function(load_segmenter(model, recipe, **options), request, how)
    except GocaError as error:
        if error.hint is None or error.hint not in _parameters():
            raise
        raise GocaError(f"{error} ({_form(error.hint)})", error.hint) from None


def _parameters() -> dict[str, list[type]]:
    """{parameter of `create`: the types that it takes}, which may include NoneType."""
    hints = get_type_hints(create) | get_type_hints(Segmenter.from_pretrained)
    return {
        name: [kind for kind in (get_args(hint) or (hint,)) if kind in (*KINDS, type(None))]
        for name, hint in hints.items()
        if name not in ("cls", "name", "options", "return")
    }


def _form(name: str) -> str:
    """The form of a parameter for `-p`."""
    return " or ".join(f"-p {name}={kind.__name__}:..." for kind in _parameters()[name] if kind in KINDS)


def _check(given: Mapping[str, Any]) -> None:
    """Raise GocaError for an unknown parameter, or a value of the wrong type."""
    parameters = _parameters()
    for name, value in given.items():
        if name not in parameters:
            raise GocaError(f"there is no parameter -p {name}: choose from {', '.join(parameters)}")
        kinds = parameters[name]
        if not (type(value) in kinds or (type(value) is int and float in kinds)):
            wanted = " or ".join(KINDS[kind] for kind in kinds if kind in KINDS)
            raise GocaError(f"{name} is {repr(value)[:60]}, not {wanted}: give it as {_form(name)}", name)
