"""The interfaces of export formats and of what they read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt16
from PIL import Image

from goca.exports.objects import ObjectOptions
from goca.imaging.draw import png
from goca.imaging.files import opened, orientation

PLAIN = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}
"""Formats of image files that every program reads, as Pillow names them."""


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
    def arrays(self) -> Mapping[str, np.ndarray]: ...


@dataclass(frozen=True, kw_only=True)
class ExportContext:
    """The content of a file besides the segmentation.

    Attributes:
        file_name: The image's path relative to the folder of the file.
        facts: Further entries for the JSON.
        objects: How regions become objects.
    """

    file_name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    objects: ObjectOptions = field(default_factory=ObjectOptions)


@dataclass(frozen=True, kw_only=True)
class DatasetImage:
    """An image of a data set. Its pixels and labels are read on demand.

    Attributes:
        file_name: Its path relative to the folder that all images have in common.
        stem: Stem of the files made from it; unique in the data set, ignoring case.
        source: Its file, or its pixels, upright.
        read_labels: Reads its label map, in which i is the data set's i-th class.
    """

    file_name: str
    stem: str
    source: Path | Image.Image
    read_labels: Callable[[], UInt16[np.ndarray, "height width"]]

    @cached_property
    def labels(self) -> UInt16[np.ndarray, "height width"]:
        """The label map; it stays in memory."""
        return self.read_labels()

    def pixels(self) -> Image.Image:
        """The image, upright, RGB."""
        if isinstance(self.source, Path):
            from goca.imaging.images import load

            return load(self.source)
        return self.source

    def file(self) -> tuple[str, bytes]:
        """(suffix, content) of a file for other programs: plain upright JPEGs and PNGs unchanged, others as PNG."""
        if isinstance(self.source, Path):
            with opened(self.source) as image:
                plain = image.format in PLAIN and image.mode in ("RGB", "L") and not image.has_transparency_data
                if plain and orientation(image) == 1:
                    return PLAIN[str(image.format)], self.source.read_bytes()
        return ".png", png(self.pixels())
