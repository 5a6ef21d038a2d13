"""Cityscapes: the 19 evaluated classes; all other ids are void."""

from pathlib import Path

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Dataset
from goca.evaluation.datasets.files import choose_split, locate, paired_samples, stems
from goca.evaluation.datasets.labels import label_table
from goca.evaluation.datasets.names import categories, colours, published_classes

NAME = "cityscapes"
CITIES = {
    "val": "frankfurt lindau munster",
    "train": "aachen bochum bremen cologne darmstadt dusseldorf erfurt hamburg hanover jena krefeld monchengladbach "
    "strasbourg stuttgart tubingen ulm weimar zurich",
}
IDS = 34  # 0 to 33; licence plates are -1, stored in 8 bits as 255
IMAGES, TRUTHS = "leftImg8bit", "gtFine"


def open_cityscapes(root: Path | None, split: str | None = None) -> Dataset:
    """Open leftImg8bit/SPLIT/CITY/*_leftImg8bit.png with gtFine/SPLIT/CITY/*_gtFine_labelIds.png, for every city."""
    split = choose_split(NAME, split, tuple(CITIES))
    home = locate(NAME, root, ("cityscapes", ""), (IMAGES, TRUTHS))
    entries = []
    for city in CITIES[split].split():
        images, truths = home / IMAGES / split / city, home / TRUTHS / split / city
        ids = stems(images, "_leftImg8bit.png") | stems(truths, "_gtFine_labelIds.png")
        if not ids:
            expected = images / f"{city}_*_leftImg8bit.png"
            raise GocaError(f"{NAME}: expected {expected}: download or unpack the rest")
        entries += [
            (name, images / f"{name}_leftImg8bit.png", truths / f"{name}_gtFine_labelIds.png") for name in sorted(ids)
        ]
    classes = published_classes("cityscapes")
    ignored = dict.fromkeys((*range(IDS), 255), VOID)
    labels = label_table(ignored | {entry.id: label for label, entry in enumerate(classes, start=1)})
    samples = paired_samples(NAME, entries, labels)
    return Dataset(NAME, split, categories(classes), samples, False, colours(classes))
