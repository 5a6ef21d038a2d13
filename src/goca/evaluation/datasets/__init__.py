"""Data sets in the layout in which their authors publish them."""

from collections.abc import Callable, Mapping
from pathlib import Path

from goca.errors import GocaError
from goca.evaluation.datasets.ade20k import open_ade20k
from goca.evaluation.datasets.base import Dataset
from goca.evaluation.datasets.cityscapes import open_cityscapes
from goca.evaluation.datasets.coco import open_coco_object
from goca.evaluation.datasets.coco_stuff import open_coco_stuff_27, open_coco_stuff_171
from goca.evaluation.datasets.context import open_context
from goca.evaluation.datasets.folder import open_folder
from goca.evaluation.datasets.scenes import open_scenes
from goca.evaluation.datasets.voc import open_voc

DATASETS: Mapping[str, Callable[[Path | None, str | None], Dataset]] = {
    "voc": open_voc,
    "context": open_context,
    "coco-object": open_coco_object,
    "coco-stuff-27": open_coco_stuff_27,
    "coco-stuff-171": open_coco_stuff_171,
    "cityscapes": open_cityscapes,
    "ade20k": open_ade20k,
    "scenes": open_scenes,
    "folder": open_folder,
}


def open_dataset(name: str, root: Path | None, split: str | None = None) -> Dataset:
    """Open a data set. Every listed file must exist; only lists and COCO's JSON are read.

    Args:
        name: one of `DATASETS`.
        root: the folder that it was unpacked in; None for the scenes, which ship with goca.
        split: None for the one for validation.

    Raises:
        GocaError: there is no such data set or split; the root is another or incomplete, with the file that was
            expected; or a package is missing that the data set needs.
    """
    if name not in DATASETS:
        raise GocaError(f'no data set "{name}": there are {", ".join(DATASETS)}')
    return DATASETS[name](root, split)
