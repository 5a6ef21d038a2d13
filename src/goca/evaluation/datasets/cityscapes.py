"""Cityscapes: the 19 classes that are evaluated; what its ids ignore is void."""

from functools import partial
from pathlib import Path

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Dataset
from goca.evaluation.datasets.files import choose, locate, paired, stems
from goca.evaluation.datasets.labels import read_indexed, table
from goca.evaluation.datasets.names import categories, colours, rows

NAME = "cityscapes"
CITIES = {
    "val": "frankfurt lindau munster",
    "train": "aachen bochum bremen cologne darmstadt dusseldorf erfurt hamburg hanover jena krefeld monchengladbach "
    "strasbourg stuttgart tubingen ulm weimar zurich",
}
IDS = 34  # 0 to 33; a licence plate is -1, which 8 bits hold as 255
IMAGES, TRUTHS = "leftImg8bit", "gtFine"


def open_cityscapes(root: Path | None, split: str | None = None) -> Dataset:
    """leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png, of every city of the split.

    Raises GocaError naming the file that was expected where the root is another or incomplete.
    """
    chosen = choose(NAME, split, tuple(CITIES))
    home = locate(NAME, root, ("cityscapes", ""), (IMAGES, TRUTHS))
    entries = []
    for city in CITIES[chosen].split():
        images, truths = home / IMAGES / chosen / city, home / TRUTHS / chosen / city
        ids = stems(images, "_leftImg8bit.png") | stems(truths, "_gtFine_labelIds.png")
        if not ids:
            expected = images / f"{city}_*_leftImg8bit.png"
            raise GocaError(f"{NAME}: expected {expected}: download or unpack the rest")
        entries += [
            (one, images / f"{one}_leftImg8bit.png", truths / f"{one}_gtFine_labelIds.png") for one in sorted(ids)
        ]
    classes = rows("cityscapes")
    ignored = dict.fromkeys((*range(IDS), 255), VOID)
    labels = table(ignored | {row.id: label for label, row in enumerate(classes, start=1)})
    samples = paired(NAME, entries, partial(read_indexed, labels=labels))
    return Dataset(NAME, chosen, categories(classes), samples, False, colours(classes))
