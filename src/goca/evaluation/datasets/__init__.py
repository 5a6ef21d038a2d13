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
    """A data set's split, for validation unless another is named; root: where it lies, None for scenes.

    That every listed file is there is checked, and none is read but lists and COCO's JSON. Raises GocaError for a data
    set or split that there is not, and for a root that is another or incomplete, naming the file that was expected.
    """
    if name not in DATASETS:
        raise GocaError(f'no data set "{name}": there are {", ".join(DATASETS)}')
    return DATASETS[name](root, split)
