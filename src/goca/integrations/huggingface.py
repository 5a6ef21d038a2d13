"""A segmenter with the call and the output of transformers' zero-shot pipelines."""

import os
from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import Any

from PIL import Image

from goca.bundled import DEFAULT
from goca.errors import GocaError
from goca.imaging.images import BinaryFile
from goca.recipe import AUTO
from goca.request import SegmentationRequest
from goca.segmentation import Segmentation
from goca.segmenter import Segmenter

ADDRESSES = ("http://", "https://", "data:image/")
"""How a text begins that is no path."""
LONGEST_PATH = 4096
"""A longer text is an image in base64."""
Masks = list[dict[str, Any]]
"""{"score", "label", "mask"} of each label that an image shows."""


class ZeroShotImageSegmentation:
    """What `pipeline` returns: a `segmenter`, called as transformers calls."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def __call__(
        self,
        image: Any,
        candidate_labels: Any = None,
        *,
        threshold: float = 0.0,
        timeout: float | None = None,
        background: str | float | None = AUTO,
    ) -> Masks | list[Masks] | Iterator[Masks]:
        """Find the pixels of each label.

        Args:
            image: A path, a URL, an image in base64, a PIL image, or what else `goca.Segmenter` takes; a list or an
                iterator of such. In place of each also {"image": it, "candidate_labels": its own}.
            candidate_labels: Names in a list, or in a text with commas between; for a list of images also a list of
                such lists.
            threshold: Labels of a lower score are left out.
            timeout: Seconds to wait for a URL; None for any.
            background: See `SegmentationRequest`.

        Returns:
            For each label that has pixels {"score": 0 to 1, "label": its name, "mask": a grey PIL image of 0 and 255 in
            the image's size}, the largest first. A list of these lists for a list of images, lazily for an iterator.

        Raises:
            GocaError: An image cannot be read or fetched, or the labels cannot be asked for.
        """
        if isinstance(image, list | tuple):
            each = per_image(candidate_labels, len(image))
            return list(self._stream(zip(image, each, strict=True), threshold, timeout, background))
        if isinstance(image, Iterator) and not isinstance(image, BinaryFile):
            return self._stream(((item, candidate_labels) for item in image), threshold, timeout, background)
        return next(self._stream(iter([(image, candidate_labels)]), threshold, timeout, background))

    def _stream(
        self,
        inputs: Iterator[tuple[Any, Any]],
        threshold: float,
        timeout: float | None,
        background: str | float | None,
    ) -> Iterator[Masks]:
        requests = (request(image, labels, timeout, background) for image, labels in inputs)
        for _, outcome in self.segmenter.stream(requests):
            if isinstance(outcome, GocaError):
                raise outcome
            yield masks_of(outcome, threshold)


def pipeline(model: Any = DEFAULT, *, device: Any = None, **options: Any) -> ZeroShotImageSegmentation:
    """A zero-shot image segmentation pipeline, which transformers itself has none of.

    Args:
        model: "bundled", a diffusers folder, a Hub id, or a loaded diffusers pipeline.
        device: As transformers takes it: a number of a GPU, -1 for the CPU, or a name.
        options: Those of `goca.Segmenter.from_pretrained`, such as recipe, dtype, batch and timestep; of
            `from_pipeline` for a loaded pipeline.

    Raises:
        GocaError: The model cannot be loaded, or an option is out of range.
    """
    if not isinstance(model, str | os.PathLike):
        return ZeroShotImageSegmentation(Segmenter.from_pipeline(model, **options))
    if isinstance(device, int):
        device = f"cuda:{device}" if device >= 0 else "cpu"
    name = None if device is None else str(device)
    return ZeroShotImageSegmentation(Segmenter.from_pretrained(os.fspath(model), device=name, **options))


def per_image(labels: Any, count: int) -> list[Any]:
    """The labels of each image. Raises GocaError for lists of labels that are not as many as images."""
    if not isinstance(labels, list | tuple) or not any(isinstance(item, list | tuple | Mapping) for item in labels):
        return [labels] * count
    if len(labels) != count:
        raise GocaError(f"{len(labels)} lists of labels are given for {count} images", hint="candidate_labels")
    return list(labels)


def request(image: Any, labels: Any, timeout: float | None, background: str | float | None) -> SegmentationRequest:
    """The request for one image. Raises GocaError where there are no labels, or a URL gives no image."""
    if isinstance(image, Mapping) and "image" in image:
        image, labels = image["image"], image.get("candidate_labels", labels)
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    if not labels:
        raise GocaError('there are no labels to look for: give some, such as ["cat", "sky"]', hint="candidate_labels")
    if isinstance(image, str) and (image.startswith(ADDRESSES) or len(image) > LONGEST_PATH):
        image = fetched(image, timeout)
    return SegmentationRequest(image, labels, background=background)


def fetched(source: str, timeout: float | None) -> Image.Image:
    """The image at a URL or in base64. Raises GocaError where there is none."""
    from transformers.image_utils import load_image

    try:
        return load_image(source, timeout=timeout)
    except Exception as error:
        reason = shorten(str(error) or type(error).__name__, 200)
        raise GocaError(f"there is no image at {source[:100]}: {reason}") from None


def masks_of(result: Segmentation, threshold: float) -> Masks:
    """The masks of labels that score at least so much."""
    return [item for item in result.to_transformers() if item["score"] >= threshold]
