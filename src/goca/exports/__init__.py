"""Segmentations as files: one module for each format, listed in `EXPORTERS`."""

from collections.abc import Mapping

from goca.exports import coco, json_document, labelme, labels_png, overlay
from goca.exports.base import Exportable, ExportContext, Exporter

__all__ = ["DEFAULT_FORMATS", "EXPORTERS", "ExportContext", "Exportable", "Exporter"]

EXPORTERS: Mapping[str, Exporter] = {
    "labels": Exporter(".labels.png", labels_png.write),
    "overlay": Exporter(".overlay.png", overlay.write),
    "coco": Exporter(".coco.json", coco.write),
    "labelme": Exporter(".labelme.json", labelme.write),
    "json": Exporter(".json", json_document.write),
}
"""Every format by its name. A file of a later format is written after those of earlier ones."""
DEFAULT_FORMATS = ("labels", "overlay", "json")
