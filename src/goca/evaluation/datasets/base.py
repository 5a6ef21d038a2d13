"""What a data set is to the bench: categories, and samples that are read one at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16

LabelMap = UInt16[np.ndarray, "height width"]
"""Labels of an image's pixels: 0 is background, i is categories[i - 1], `VOID` says nothing."""
VOID = 65535
"""The label of pixels of which the ground truth says nothing."""


@dataclass(frozen=True)
class Category:
    """A class of a data set: its name in results, and further words that stand for it in a caption."""

    name: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One image of a data set.

    id: unique in the data set, and the same on every machine. image: the image's file. truth: reads the ground
    truth, in the image's size. captions: {"nouns": its classes as a list, "sentences": a sentence that names them},
    where the data set has them.
    """

    id: str
    image: Path
    truth: Callable[[], LabelMap]
    captions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """A data set's split, opened: nothing but lists of files is held.

    background: whether label 0 occurs, as what is none of the categories. palette: RGB, row 0 is background, row i is
    categories[i - 1]. source: the form in which the ground truth was found, where a data set is published in several.
    merges: (label, the label that it counts as in the paper's protocol), where that merges categories.
    """

    name: str
    split: str
    categories: tuple[Category, ...]
    samples: tuple[Sample, ...]
    background: bool
    palette: UInt8[np.ndarray, "label 3"]
    source: str = ""
    merges: tuple[tuple[int, int], ...] = ()
