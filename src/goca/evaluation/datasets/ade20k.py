"""ADE20K as its scene parsing challenge publishes it: 150 classes; what is none of them is void."""

from functools import partial
from pathlib import Path

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Dataset
from goca.evaluation.datasets.files import choose, locate, paired, stems
from goca.evaluation.datasets.labels import read_indexed, table
from goca.evaluation.datasets.names import categories, colours, rows

NAME = "ade20k"
SPLITS = ("validation", "training")


def open_ade20k(root: Path | None, split: str | None = None) -> Dataset:
    """ADEChallengeData2016 with images/SPLIT/*.jpg and annotations/SPLIT/*.png; root is it or lies above it.

    Raises GocaError naming the file that was expected where the root is another or incomplete.
    """
    chosen = choose(NAME, split, SPLITS)
    home = locate(NAME, root, ("", "ADEChallengeData2016"), ("images", "annotations"))
    images, truths = home / "images" / chosen, home / "annotations" / chosen
    ids = sorted(stems(images, ".jpg") | stems(truths, ".png"))
    if not ids:
        raise GocaError(f"{NAME}: expected {images / 'ADE_*.jpg'}: download or unpack the rest")
    entries = [(one, images / f"{one}.jpg", truths / f"{one}.png") for one in ids]
    classes = rows("ade20k")
    # 0 is "other objects"; values above 150 occur in copies that keep more classes.
    labels = table({row.id: label for label, row in enumerate(classes, start=1)}, rest=VOID)
    samples = paired(NAME, entries, partial(read_indexed, labels=labels))
    return Dataset(NAME, chosen, categories(classes), samples, False, colours(classes))
