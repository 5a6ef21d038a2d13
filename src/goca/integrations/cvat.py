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
from goca.recipe import AUTO
from goca.request import SegmentationRequest
from goca.segmenter import Segmenter
from goca.settings_choice import automatic_settings
from goca.text.class_list import classes_to_find, parse_class_list

_log = logging.getLogger(__name__)
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
"""The types of CVAT's `-p`, in words."""
LOADING = ("device", "dtype", "revision", "variant", "batch")
"""Options that count while settings are chosen."""


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
    """The function with the parameters that follow `-p`, such as `-p classes=str:"cat, grass"`.

    Args:
        classes: as `goca segment --classes` takes them; the task's labels are called so.
        model, recipe: of `Segmenter.from_pretrained`.
        background, background_classes: of `SegmentationRequest`; background classes are between commas.
        instances, min_area, fill_holes: see `goca.exports.objects.ObjectOptions`.
        options: further arguments of `Segmenter.from_pretrained`, such as `device`, `floor` and `flip`. With
            `settings="auto"` they are chosen where that was not done before, see `automatic_settings`.

    Raises:
        GocaError: for classes, a model or options that there are not; it says how `-p` gives a parameter.
    """
    objects: dict[str, Any] = {"instances": instances, "min_area": min_area, "fill_holes": fill_holes}
    background_of = {"background": background, "background_classes": background_classes}
    _check({"classes": classes, "model": model, "recipe": recipe, **background_of, **objects, **options})
    try:
        listed = classes_to_find(parse_class_list(classes, "-p classes=str"), "-p classes=str")
        others = None if background_classes is None else [n for n in background_classes.split(",") if n.strip()]
        request = SegmentationRequest("", listed, others, background)
        how = ObjectOptions(**objects)
        if options.get("settings") == AUTO:
            loading = {name: options[name] for name in LOADING if name in options}
            options["settings"] = automatic_settings(Segmenter.from_pretrained(model, **loading))
        return Function(Segmenter.from_pretrained(model, recipe, **options), request, how)
    except GocaError as error:
        if error.hint is None or error.hint not in _parameters():
            raise
        raise GocaError(f"{error} ({_form(error.hint)})", error.hint) from None


def _parameters() -> dict[str, list[type]]:
    """The types that each parameter of `create` takes, None among them."""
    hints = get_type_hints(create) | get_type_hints(Segmenter.from_pretrained)
    return {
        name: [kind for kind in (get_args(hint) or (hint,)) if kind in (*KINDS, type(None))]
        for name, hint in hints.items()
        if name not in ("cls", "name", "options", "return")
    }


def _form(name: str) -> str:
    """How `-p` gives a parameter."""
    return " or ".join(f"-p {name}={kind.__name__}:..." for kind in _parameters()[name] if kind in KINDS)


def _check(given: Mapping[str, Any]) -> None:
    """Raise GocaError for a parameter that there is not, or a value of another type, which `-p` cannot give it."""
    parameters = _parameters()
    for name, value in given.items():
        if name not in parameters:
            raise GocaError(f"there is no parameter -p {name}: choose from {', '.join(parameters)}")
        kinds = parameters[name]
        if not (type(value) in kinds or (type(value) is int and float in kinds)):
            wanted = " or ".join(KINDS[kind] for kind in kinds if kind in KINDS)
            raise GocaError(f"{name} is {repr(value)[:60]}, not {wanted}: give it as {_form(name)}", name)
