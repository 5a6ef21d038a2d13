"""What an export format is, and what it reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt16
from PIL import Image

from goca.imaging.draw import pixel_counts


@runtime_checkable
class Exportable(Protocol):
    """The part of `goca.Segmentation` that formats read."""

    @property
    def image(self) -> Image.Image: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> UInt16[np.ndarray, "height width"]: ...
    def overlay(self) -> Image.Image: ...
    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class ExportContext:
    """What a file says beside the segmentation.

    Attributes:
        file_name: the image's path from the folder that the file will lie in.
        facts: further entries for the JSON.
    """

    file_name: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def occurring(labels: UInt16[np.ndarray, "height width"], classes: Sequence[str]) -> list[int]:
    """The labels of the classes that a pixel has."""
    counts = pixel_counts(labels, len(classes))
    return [index for index in range(1, len(classes) + 1) if counts[index]]
