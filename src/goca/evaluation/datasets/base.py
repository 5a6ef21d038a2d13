"""The interface of data sets: categories, and samples that are read one at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16

from goca.text.nouns import Category

LabelMap = UInt16[np.ndarray, "height width"]
"""Labels of an image's pixels: 0 is background, i is categories[i - 1], `VOID` is unlabelled."""
VOID = 65535
"""The label of pixels without ground truth, which are not counted."""


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    Attributes:
        id: Unique in the data set, and the same on every machine.
        image: Path of the image.
        truth: Reads the ground truth, in the image's size after EXIF rotation. Raises GocaError for a damaged file.
        captions: {"nouns": its classes as a list, "sentences": a sentence that names them}, if the data set has them.
    """

    id: str
    image: Path
    truth: Callable[[], LabelMap]
    captions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """An opened split of a data set; images and label files are read later, one at a time.

    Attributes:
        categories: Label i is categories[i - 1].
        samples: The images, in a fixed order.
        background: Whether label 0 occurs, for pixels of none of the categories.
        palette: (label, 3) uint8 RGB; row 0 is background, row i is categories[i - 1].
        source: The form of the ground truth, if the data set is published in several.
        merges: (label, the label that it counts as in the paper's protocol), if the protocol merges categories.
    """

    name: str
    split: str
    categories: tuple[Category, ...]
    samples: tuple[Sample, ...]
    background: bool
    palette: UInt8[np.ndarray, "label 3"]
    source: str = ""
    merges: tuple[tuple[int, int], ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The categories' names."""
        return tuple(category.name for category in self.categories)
