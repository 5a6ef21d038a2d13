"""A segmenter that is called like transformers' zero-shot object detection and returns what its segmentation does."""

import base64
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from numbers import Integral, Real
from textwrap import shorten
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image

from goca.bundled import DEFAULT
from goca.errors import GocaError
from goca.imaging.files import opened
from goca.imaging.images import BinaryFile, ImageLike
from goca.recipe import AUTO
from goca.request import SegmentationRequest
from goca.segmentation import Segmentation
from goca.segmenter import Segmenter

TASK = "zero-shot-image-segmentation"
ADDRESSES = ("http://", "https://", "data:image/")
"""Beginnings, in any case, of a text that is a URL and not a path."""
LONGEST_PATH = 4096
ALIASES = {"torch_dtype": "dtype", "batch_size": "batch"}
"""{transformers' name of an option: goca's}."""
ONE_IMAGE = (
    *(str, os.PathLike, bytes, bytearray, memoryview, BinaryFile),
    *(Image.Image, np.ndarray, torch.Tensor, Mapping),
)
"""Types that are a single input although they can be iterated over."""
Masks = list[dict[str, Any]]
"""{"score", "label", "mask"} of each label that an image shows."""


class ZeroShotImageSegmentation:
    """The result of `pipeline`: a `segmenter` that is called like a transformers pipeline."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def __call__(
        self,
        image: Any,
        candidate_labels: Any = None,
        *,
        threshold: float = 0.0,
        top_k: int | None = None,
        timeout: float | None = None,
        background: str | float | None = AUTO,
        **others: Any,
    ) -> Masks | list[Masks] | Iterator[Masks]:
        """Find the pixels of each label.

        Args:
            image: A path, a URL, a base64 image, a PIL image, or anything else that `goca.Segmenter` takes; or a list,
                an iterator or a data set of these. Each may also be {"image": ..., "candidate_labels": [...]}.
            candidate_labels: Names in a list, an array or another iterable, or in a comma-separated text; for a list
                of images also a list of such lists.
            threshold: Labels with a lower score are left out, 0 to 1.
            top_k: Most labels to return, 1 or more, those with the highest scores; None for all.
            timeout: Seconds to wait for a URL, above 0; None for no limit.
            background: See `SegmentationRequest`.
            others: Further arguments of transformers, which are refused.

        Returns:
            For each label that has pixels, {"score": 0 to 1, "label": its name, "mask": grey PIL image of the image's
            size, 0 or 255}, the largest first. A list of these lists for a list of images; an iterator of them for an
            iterator or a data set.

        Raises:
            GocaError: An image cannot be read or fetched, the labels are not valid, or an argument is unknown
                or out of range.
        """
        if others:
            _refuse_call(next(iter(others)))
        if not _is_number(threshold) or not 0 <= threshold <= 1:
            raise GocaError(f"threshold {threshold!r} is not a score: give a number from 0 to 1", hint="threshold")
        if top_k is not None and not (isinstance(top_k, Integral) and top_k >= 1):
            raise GocaError(f"top_k {top_k!r} is not a number of labels: give 1 or more", hint="top_k")
        if timeout is not None and not (_is_number(timeout) and timeout > 0):
            raise GocaError(f"timeout {timeout!r} is not a time: give a number of seconds above 0", hint="timeout")
        labels = listed(candidate_labels)

        def stream(inputs: Iterable[tuple[Any, Any]]) -> Iterator[Masks]:
            requests = (request(item, names, timeout, background) for item, names in inputs)
            for _, outcome in self.segmenter.stream(requests):
                if isinstance(outcome, GocaError):
                    raise outcome
                yield masks_of(outcome, threshold, top_k)

        if isinstance(image, list | tuple):
            return list(stream(zip(image, per_image(labels, len(image)), strict=True)))
        if not isinstance(image, ONE_IMAGE) and (hasattr(image, "__iter__") or hasattr(image, "__getitem__")):
            return stream((item, labels) for item in image)
        return next(stream([(image, labels)]))


def pipeline(task: Any = None, model: Any = None, *, device: Any = None, **options: Any) -> ZeroShotImageSegmentation:
    """A pipeline for zero-shot image segmentation, a task that transformers itself lacks.

    Args:
        task: "zero-shot-image-segmentation", or None. The model may be given here instead.
        model: "bundled" (by default), a diffusers folder, a Hub id, or a loaded diffusers pipeline.
            device: As in transformers: the number of a GPU, -1 for the CPU, or a name. A loaded pipeline keeps its own.
            options: Those of `goca.Segmenter.from_pretrained`, such as recipe, dtype, batch and timestep; for a loaded
                pipeline, those of `from_pipeline`. dtype may be called torch_dtype, and batch batch_size.

    Raises:
        GocaError: The model cannot be loaded, or an option is unknown or out of range.
    """
    if model is None and task != TASK:
        task, model = None, task
    if task not in (None, TASK):
        raise GocaError(f'the task "{shorten(str(task), 60)}" is not supported: give "{TASK}"', hint="task")
    model = DEFAULT if model is None else model
    for alias, name in ALIASES.items():
        if alias in options:
            if name in options:
                raise GocaError(f"{alias} and {name} are the same option: give one of them", hint=name)
            options[name] = options.pop(alias)
    if options.get("dtype") == "auto":
        del options["dtype"]
    if device is not None:
        number = isinstance(device, Integral)
        options["device"] = str(device) if not number else f"cuda:{device}" if device >= 0 else "cpu"
    by_name = isinstance(model, str | os.PathLike)
    build = Segmenter.from_pretrained if by_name else Segmenter.from_pipeline
    known, settable = (list(inspect.signature(method).parameters)[1:] for method in (build, Segmenter.from_pretrained))
    for name in options:
        if name not in known:
            if name in settable:
                raise GocaError(
                    f"a loaded pipeline keeps its own {name}: set it there, or give a folder or Hub id", hint=name
                )
            raise GocaError(f"there is no option {name}: choose from {', '.join(known)}")
    return ZeroShotImageSegmentation(build(os.fspath(model) if by_name else model, **options))


def _refuse_call(name: str) -> None:
    """Raise GocaError for an argument that a call does not take, saying where it belongs."""
    if name in ("batch", "batch_size"):
        raise GocaError(f"{name} cannot be set for a single call: give it to pipeline()", hint=name)
    known = ", ".join(list(inspect.signature(ZeroShotImageSegmentation.__call__).parameters)[1:-1])
    raise GocaError(f"there is no argument {name}: choose from {known}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def listed(labels: Any) -> Any:
    """Labels that can be read more than once: text, a mapping, a list or None. Raises GocaError for anything else."""
    if labels is None or isinstance(labels, str | Mapping):
        return labels
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    if isinstance(labels, bytes) or not isinstance(labels, Iterable):
        shown = shorten(repr(labels), 60)
        raise GocaError(f'{shown} is not a list of labels: give one, such as ["cat", "sky"]', hint="candidate_labels")
    return list(labels)


def per_image(labels: Any, count: int) -> list[Any]:
    """The labels of each image. Raises GocaError if the numbers of label lists and images differ."""
    if not isinstance(labels, list) or all(isinstance(item, str) for item in labels):
        return [labels] * count
    if len(labels) != count:
        raise GocaError(
            f"{len(labels)} lists of labels were given for {count} images: give one for each image",
            hint="candidate_labels",
        )
    return labels


def request(image: Any, labels: Any, timeout: float | None, background: str | float | None) -> SegmentationRequest:
    """The request for one image. Raises GocaError for labels that are not valid, or a URL without an image."""
    if isinstance(image, Mapping):
        if "image" not in image:
            raise GocaError('the image is missing: give {"image": ..., "candidate_labels": [...]}', hint="image")
        image, labels = image["image"], image.get("candidate_labels", labels)
    labels = listed(labels)
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    if not labels:
        raise GocaError('there are no labels to look for: give some, such as ["cat", "sky"]', hint="candidate_labels")
    for label in labels:
        if not isinstance(label, str):
            shown = shorten(repr(label), 60)
            remedy = "give a list of names; a list of such lists needs a list of images, one for each"
            raise GocaError(f"{shown} is not the name of a label: {remedy}", hint="candidate_labels")
    return SegmentationRequest(
        source(image, timeout) if isinstance(image, str) else image, labels, background=background
    )


def source(text: str, timeout: float | None) -> ImageLike:
    """The bytes of an image at a URL or in base64; any other text is a path. Raises GocaError if it cannot be read."""
    if text.lower().startswith(ADDRESSES):
        try:
            # Some servers refuse Python's default user agent.
            with urlopen(Request(text, headers={"User-Agent": "goca"}), timeout=timeout) as response:
                return response.read()
        except Exception as error:  # may come from the network, from HTTP or from a malformed URL
            reason = shorten(str(error) or type(error).__name__, 200)
            raise GocaError(f"cannot fetch the image at {text[:100]}: {reason}") from None
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
        with opened(BytesIO(content)):
            return content
    except (ValueError, GocaError):  # a path may consist of base64 letters, and base64 JPEGs begin like one: "/9j/"
        if len(text) > LONGEST_PATH:
            raise GocaError(f'"{text[:60]}..." is neither a path nor a complete base64 image: check it') from None
        return text


def masks_of(result: Segmentation, threshold: float, top_k: int | None) -> Masks:
    """The masks of at most `top_k` labels that score at least `threshold`."""
    masks = [item for item in result.to_transformers() if item["score"] >= threshold]
    return masks if top_k is None else sorted(masks, key=lambda item: -item["score"])[:top_k]
