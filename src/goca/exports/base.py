"""What an export format is, and what it reads."""

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
    """What a file says beside the segmentation.

    Attributes:
        file_name: the image's path from the folder that the file will lie in.
        facts: further entries for the JSON.
        objects: how regions become objects.
    """

    file_name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    objects: ObjectOptions = field(default_factory=ObjectOptions)


@dataclass(frozen=True, kw_only=True)
class DatasetImage:
    """An image of a data set. Its pixels and labels are read when they are wanted.

    Attributes:
        file_name: its path from the folder that all images have in common.
        stem: what files that are made of it are called; no other image of the data set has it, whatever its case.
        source: its file, or its pixels, upright.
        read_labels: its label map, in which i is the data set's i-th class.
    """

    file_name: str
    stem: str
    source: Path | Image.Image
    read_labels: Callable[[], UInt16[np.ndarray, "height width"]]

    @cached_property
    def labels(self) -> UInt16[np.ndarray, "height width"]:
        """The label map, from here on in memory."""
        return self.read_labels()

    def pixels(self) -> Image.Image:
        """The image, upright, RGB."""
        if isinstance(self.source, Path):
            from goca.imaging.images import load

            return load(self.source)
        return self.source

    def file(self) -> tuple[str, bytes]:
        """An image file for other programs, and its ending: a plain, upright JPEG or PNG as it is, others as PNG."""
        if isinstance(self.source, Path):
            with opened(self.source) as image:
                plain = image.format in PLAIN and image.mode in ("RGB", "L") and not image.has_transparency_data
                if plain and orientation(image) == 1:
                    return PLAIN[str(image.format)], self.source.read_bytes()
        return ".png", png(self.pixels())
