"""Segmentations as files: one module for each format, listed in `EXPORTERS`."""

from collections.abc import Iterable, Mapping

from goca.errors import GocaError
from goca.exports import coco, json_document, labelme, labels_png, overlay
from goca.exports.base import Exportable, ExportContext, Exporter

__all__ = ["DEFAULT_FORMATS", "EXPORTERS", "ExportContext", "Exportable", "Exporter", "exporters"]

EXPORTERS: Mapping[str, Exporter] = {
    "labels": Exporter(".labels.png", labels_png.write),
    "overlay": Exporter(".overlay.png", overlay.write),
    "coco": Exporter(".coco.json", coco.write),
    "labelme": Exporter(".labelme.json", labelme.write),
    "json": Exporter(".json", json_document.write),
}
"""Every format by its name. A file of a later format is written after those of earlier ones."""
DEFAULT_FORMATS = ("labels", "overlay", "json")


def exporters(formats: Iterable[str]) -> dict[str, Exporter]:
    """The exporters of some formats, in the order in which their files are written; GocaError for an unknown one."""
    wanted = set(formats)
    unknown = sorted(wanted - EXPORTERS.keys())
    if unknown or not wanted:
        problem = f'no format "{unknown[0]}"' if unknown else "no format"
        raise GocaError(f"{problem}: choose from {', '.join(EXPORTERS)}", hint="formats")
    return {name: exporter for name, exporter in EXPORTERS.items() if name in wanted}
