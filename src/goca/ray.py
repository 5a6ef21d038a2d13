"""Segmentation as a step of the user's own Ray Data job; Ray itself is not imported."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from goca.errors import GocaError
from goca.recipe import AUTO
from goca.request import SegmentationRequest
from goca.segmenter import Segmenter
from goca.text.nouns import Classes


class Segment:
    """A callable class for `Dataset.map_batches`, which creates it once in each actor and calls it with batches.

    Args:
        classes: As for `SegmentationRequest`.
        background_classes: As for `SegmentationRequest`.
        background: As for `SegmentationRequest`.
        column: Column of the images: arrays, or files as bytes or paths, see `goca.imaging.images.ImageLike`.
        model: Arguments of `Segmenter.from_pretrained`, such as {"name": "bundled", "batch": 8}.

    Raises:
        GocaError: The model cannot be loaded, or does not support these classes.
    """

    def __init__(
        self,
        classes: Classes,
        background_classes: Sequence[str] | None = None,
        background: str | float | None = AUTO,
        column: str = "image",
        model: Mapping[str, Any] | None = None,
    ) -> None:
        self._request = SegmentationRequest("", classes, background_classes, background)
        self._column = column
        self._segmenter = Segmenter.from_pretrained(**(model or {}))
        self._session = self._segmenter.check(self._request)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with three more columns: `labels`, `classes` and `error`.

        Labels are (height, width) uint16, in which 0 is background and i is the i-th of the row's classes. If an image
        cannot be segmented, the error says why and its labels are (0, 0); otherwise the error is empty.
        """
        requests = [replace(self._request, image=image) for image in batch[self._column]]
        results = [result for _, result in self._segmenter.stream(requests, self._session)]
        labels = np.empty(len(results), object)  # a column of arrays even if all have the same size
        for row, result in enumerate(results):
            labels[row] = np.zeros((0, 0), np.uint16) if isinstance(result, GocaError) else result.labels
        errors = [str(result) if isinstance(result, GocaError) else "" for result in results]
        return {**batch, "labels": labels, "classes": [list(self._request.classes)] * len(results), "error": errors}
