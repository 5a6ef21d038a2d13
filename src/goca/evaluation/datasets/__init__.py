"""Data sets in the layout in which their authors publish them."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from goca.errors import GocaError

if TYPE_CHECKING:
    from goca.evaluation.datasets.base import Dataset

# Names of modules here and of their functions: the command line lists the data sets without loading any.
DATASETS: Mapping[str, tuple[str, str]] = {
    "scenes": ("scenes", "open_scenes"),
    "voc": ("voc", "open_voc"),
    "context": ("context", "open_context"),
    "coco-object": ("coco", "open_coco_object"),
    "coco-stuff-27": ("coco_stuff", "open_coco_stuff_27"),
    "coco-stuff-171": ("coco_stuff", "open_coco_stuff_171"),
    "cityscapes": ("cityscapes", "open_cityscapes"),
    "ade20k": ("ade20k", "open_ade20k"),
    "folder": ("folder", "open_folder"),
}


def check_name(name: str) -> None:
    """Raise GocaError unless there is such a data set."""
    if name not in DATASETS:
        raise GocaError(f'no data set "{name}": there are {", ".join(DATASETS)}')


def open_dataset(name: str, root: Path | None, split: str | None = None) -> "Dataset":
    """Open a data set. Every listed file must exist; only lists and COCO's JSON are read.

    Args:
        name: one of `DATASETS`.
        root: the folder that it was unpacked in; None for the scenes, which ship with goca.
        split: None for the one for validation.

    Raises:
        GocaError: there is no such data set or split; the root is another or incomplete, with the file that was
            expected; or a package is missing that the data set needs.
    """
    check_name(name)
    module, function = DATASETS[name]
    return getattr(import_module(f"goca.evaluation.datasets.{module}"), function)(root, split)
