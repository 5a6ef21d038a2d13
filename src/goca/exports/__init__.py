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
        suffix: what follows the image's stem in the name of the file.
        module: the module here whose `write` makes the file; loaded when it is needed, as the command line lists the
            formats without loading any.
        package: what has to be installed for it beside goca's own dependencies.
        dataset: whether it is one file or folder for all images, made of their label images when all are there; an
            image alone has a data set of its own.
        objects: whether it heeds `ObjectOptions`.
    """

    suffix: str
    module: str
    package: str | None = None
    dataset: bool = False
    objects: bool = False

    def check(self) -> None:
        """Raise GocaError where its package is not installed."""
        if self.package is not None and find_spec(self.package) is None:
            raise GocaError(
                f"{self.suffix} files need {self.package}: pip install {self.package}, or choose other formats",
                hint="formats",
            )

    def write(self, result: "Exportable", context: "ExportContext") -> bytes:
        """The content of a result's file; of a format for each image."""
        return import_module(f"goca.exports.{self.module}").write(result, context)

    def write_dataset(
        self, target: Path, images: Iterable["DatasetImage"], classes: Sequence[str], objects: "ObjectOptions"
    ) -> None:
        """Write a data set, whole or not at all, in the place of an earlier one; one image at a time is in memory.

        Raises:
            GocaError: what is there is not a data set of goca's, see `check_target`, or it cannot be written.
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
        """Raise GocaError where a data set would take the place of a folder that is none, and lose what is in it."""
        if target.is_dir() and not (target / MARKER).is_file():
            raise GocaError(
                f"{target} is a folder of something else, and would be replaced: move it, or choose another output "
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
"""Every format by its name. A file of a later format is written after those of earlier ones."""
DEFAULT_FORMATS = ("labels", "overlay", "json")
DATASET_SOURCES = ("labels", "json")
"""What each image needs, so that a data set can be made of it, later too."""
MARKER = ".goca"
"""An empty file in each data set's folder: it may be replaced, and its images are not searched for."""


def exporters(formats: Iterable[str]) -> dict[str, Exporter]:
    """The exporters of some formats, in the order in which their files are written; GocaError for unknown ones."""
    if isinstance(formats, str) or not isinstance(formats, Iterable):
        raise GocaError(f'formats are a list of names: write ["labels", "json"] instead of {formats!r}', hint="formats")
    wanted = set(formats)
    unknown = [f'"{name}"' for name in sorted(wanted - EXPORTERS.keys())]
    if unknown or not wanted:
        problem = f"no format {', '.join(unknown)}" if unknown else "no format"
        raise GocaError(f"{problem}: choose from {', '.join(EXPORTERS)}", hint="formats")
    return {name: exporter for name, exporter in EXPORTERS.items() if name in wanted}


def image_formats(formats: Iterable[str]) -> tuple[str, ...]:
    """The formats of which each image gets a file, with what data sets among them are made of."""
    wanted = exporters(formats)
    sources = DATASET_SOURCES if any(exporter.dataset for exporter in wanted.values()) else ()
    return tuple(exporters([*sources, *(name for name, exporter in wanted.items() if not exporter.dataset)]))


def dataset_formats(formats: Iterable[str]) -> dict[str, Exporter]:
    """The exporters of those formats that are a data set."""
    return {name: exporter for name, exporter in exporters(formats).items() if exporter.dataset}


def check_objects(formats: Iterable[str], objects: "ObjectOptions") -> None:
    """Raise GocaError for an option of objects that no format of these would heed."""
    chosen = exporters(formats)
    for name in objects.changed():
        heeding = [form for form, exporter in EXPORTERS.items() if exporter.objects]
        if name == "polygons":
            heeding = ["coco"]
        elif name == "instances":
            heeding = ["coco", "label-studio"]
        if not chosen.keys() & set(heeding):
            raise GocaError(f"{name} changes nothing in these formats: add {' or '.join(heeding)}", name)
