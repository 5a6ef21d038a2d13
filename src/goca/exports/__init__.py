"""Segmentations as files: one module for each format, listed in `EXPORTERS`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from goca.errors import GocaError

if TYPE_CHECKING:
    from goca.exports.base import Exportable, ExportContext


@dataclass(frozen=True)
class Exporter:
    """An export format.

    Attributes:
        suffix: what follows the image's stem in the name of the file.
        module: the module here whose `write` makes the file; loaded when it is needed, as the command line lists the
            formats without loading any.
        package: what has to be installed for it beside goca's own dependencies.
    """

    suffix: str
    module: str
    package: str | None = None

    def check(self) -> None:
        """Raise GocaError where its package is not installed."""
        if self.package is not None and find_spec(self.package) is None:
            raise GocaError(
                f"{self.suffix} files need {self.package}: pip install {self.package}, or choose other formats",
                hint="formats",
            )

    def write(self, result: "Exportable", context: "ExportContext") -> bytes:
        """The content of a result's file."""
        return import_module(f"goca.exports.{self.module}").write(result, context)


EXPORTERS: Mapping[str, Exporter] = {
    "labels": Exporter(".labels.png", "labels_png"),
    "overlay": Exporter(".overlay.png", "overlay"),
    "coco": Exporter(".coco.json", "coco", "pycocotools"),
    "labelme": Exporter(".labelme.json", "labelme"),
    "json": Exporter(".json", "json_document"),
}
"""Every format by its name. A file of a later format is written after those of earlier ones."""
DEFAULT_FORMATS = ("labels", "overlay", "json")


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
