"""Data sets in their authors' published layouts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from goca.errors import GocaError
from goca.storage.reading import escaped

if TYPE_CHECKING:
    from goca.evaluation.datasets.base import Dataset

# Names of modules and functions, so that the command line can list the data sets without loading any.
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
    """Raise GocaError for an unknown data set."""
    if name not in DATASETS:
        raise GocaError(f'no data set "{name}": choose from {", ".join(DATASETS)}')


def open_dataset(name: str, root: Path | str | None, split: str | None = None) -> "Dataset":
    """Open a data set. Every listed file must exist; only lists and COCO's JSON are read.

    Args:
        name: One of `DATASETS`.
        root: The folder into which it was unpacked; None for the scenes, which ship with goca.
        split: The split; None for the validation split.

    Raises:
        GocaError: The data set or split is unknown; the root is wrong or incomplete (the message has the expected
            file); a list cannot be read, or two images have the same id; or a required package is not installed.
    """
    check_name(name)
    module, function = DATASETS[name]
    root = None if root is None else Path(root)
    try:
        dataset: Dataset = getattr(import_module(f"goca.evaluation.datasets.{module}"), function)(root, split)
    except OSError as error:
        raise GocaError(f"{name}: cannot read {error.filename or root}: {error.strerror}; check the folder") from None
    samples = tuple(replace(sample, id=escaped(sample.id)) for sample in dataset.samples)
    ids = Counter(sample.id for sample in samples)
    if len(ids) < len(samples):
        ((twice, _),) = ids.most_common(1)
        raise GocaError(f'{name}: two images have the id "{twice}": rename one')
    return replace(dataset, samples=samples)
