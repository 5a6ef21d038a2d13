"""Segmentations as files: one module for each format, listed in `EXPORTERS`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from goca.errors import GocaError
from goca.storage.atomic import replacing

if TYPE_CHECKING:
    from goca.exports.base import DatasetImage, Exportable, ExportContext
    from goca.exports.objects import ObjectOptions


@dataclass(frozen=True)
class Exporter:
    """An export format.

    Attributes:
        suffix: What follows the image's stem in the file name.
        module: The module here whose `write` makes the file; only loaded when needed, so that the command line can
            list the formats without loading any.
        package: Package that is needed besides goca's own dependencies.
        dataset: Whether it is one file or folder for all images, made from their label images when all exist; a single
            image gets a data set of its own.
        objects: Whether it uses `ObjectOptions`.
    """

    suffix: str
    module: str
    package: str | None = None
    dataset: bool = False
    objects: bool = False

    def check(self) -> None:
        """Raise GocaError if its package is not installed."""
        if self.package is not None and find_spec(self.package) is None:
            raise GocaError(
                f"{self.suffix} files need {self.package}: pip install {self.package}, or choose other formats",
                hint="formats",
            )

    def write(self, result: "Exportable", context: "ExportContext") -> bytes:
        """The content of a result's file, for a format with a file per image."""
        return import_module(f"goca.exports.{self.module}").write(result, context)

    def write_dataset(
        self, target: Path, images: Iterable["DatasetImage"], classes: Sequence[str], objects: "ObjectOptions"
    ) -> None:
        """Write a data set, whole or not at all, replacing an earlier one; one image at a time is in memory.

        Raises:
            GocaError: The target exists and is not goca's, see `check_target`, or it cannot be written.
        """
        self.check_target(target)
        files: Iterator[tuple[str, bytes]] = import_module(f"goca.exports.{self.module}").write(
            images, classes, objects
        )
        with replacing(target) as scratch:
            for name, content in files:
                path = scratch / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            if scratch.is_dir():
                (scratch / MARKER).touch()

    def check_target(self, target: Path) -> None:
        """Raise GocaError if a data set would replace a folder that is not goca's, whose content would be lost."""
        if target.is_dir() and not (target / MARKER).is_file():
            raise GocaError(
                f"{target} is not a data set of goca's, and would be replaced: move it, or choose another output "
                "folder",
                "out",
            )


EXPORTERS: Mapping[str, Exporter] = {
    "labels": Exporter(".labels.png", "labels_png"),
    "overlay": Exporter(".overlay.png", "overlay"),
    "labelme": Exporter(".labelme.json", "labelme", objects=True),
    "sam": Exporter(".sam.json", "sam", objects=True),
    "npz": Exporter(".npz", "npz"),
    "json": Exporter(".json", "json_document"),
    "coco": Exporter(".coco.json", "coco", "pycocotools", dataset=True, objects=True),
    "yolo": Exporter(".yolo", "yolo", dataset=True, objects=True),
    "voc": Exporter(".voc", "voc", dataset=True),
    "hf": Exporter(".hf", "hf", dataset=True),
    "label-studio": Exporter(".label-studio", "label_studio", dataset=True, objects=True),
    "masks": Exporter(".masks", "masks", dataset=True, objects=True),
    "cutout": Exporter(".cutout", "cutout", dataset=True, objects=True),
}
"""{name: format}. Files are written in this order."""
DEFAULT_FORMATS = ("labels", "overlay", "json")
DATASET_SOURCES = ("labels", "json")
"""Formats that each image needs so that data sets can be made from it, also later."""
MARKER = ".goca"
"""An empty file that marks a data set's folder: it may be replaced, and is not searched for images."""


def exporters(formats: Iterable[str]) -> dict[str, Exporter]:
    """The exporters of some formats, in the order of writing. Raises GocaError for unknown ones."""
    if isinstance(formats, str) or not isinstance(formats, Iterable):
        raise GocaError(f'formats are a list of names: write ["labels", "json"] instead of {formats!r}', hint="formats")
    wanted = set(formats)
    unknown = [f'"{name}"' for name in sorted(wanted - EXPORTERS.keys())]
    if unknown or not wanted:
        problem = f"no format {', '.join(unknown)}" if unknown else "no format"
        raise GocaError(f"{problem}: choose from {', '.join(EXPORTERS)}", hint="formats")
    return {name: exporter for name, exporter in EXPORTERS.items() if name in wanted}


def image_formats(formats: Iterable[str]) -> tuple[str, ...]:
    """The formats of each image's files, including those from which data sets are made."""
    wanted = exporters(formats)
    sources = DATASET_SOURCES if any(exporter.dataset for exporter in wanted.values()) else ()
    return tuple(exporters([*sources, *(name for name, exporter in wanted.items() if not exporter.dataset)]))


def dataset_formats(formats: Iterable[str]) -> dict[str, Exporter]:
    """The exporters of those formats that are a data set."""
    return {name: exporter for name, exporter in exporters(formats).items() if exporter.dataset}


def check_objects(formats: Iterable[str], objects: "ObjectOptions") -> None:
    """Raise GocaError for an option of objects that none of these formats uses."""
    chosen = exporters(formats)
    for name in objects.changed():
        heeding = [form for form, exporter in EXPORTERS.items() if exporter.objects]
        if name == "polygons":
            heeding = ["coco"]
        elif name == "instances":
            heeding = ["coco", "label-studio"]
        if not chosen.keys() & set(heeding):
            raise GocaError(f"{name} has no effect on these formats: add {' or '.join(heeding)}", name)
