"""ADE20K as its scene parsing challenge publishes it: 150 classes; everything else is void."""

from pathlib import Path

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Dataset
from goca.evaluation.datasets.files import choose_split, locate, paired_samples, stems
from goca.evaluation.datasets.labels import label_table
from goca.evaluation.datasets.names import categories, colours, published_classes

NAME = "ade20k"
SPLITS = ("validation", "training")


def open_ade20k(root: Path | None, split: str | None = None) -> Dataset:
    """ADEChallengeData2016 with images/SPLIT/*.jpg and annotations/SPLIT/*.png; root is that folder or its parent."""
    split = choose_split(NAME, split, SPLITS)
    home = locate(NAME, root, ("", "ADEChallengeData2016"), ("images", "annotations"))
    images, truths = home / "images" / split, home / "annotations" / split
    ids = sorted(stems(images, ".jpg") | stems(truths, ".png"))
    if not ids:
        raise GocaError(f"{NAME}: expected {images / 'ADE_*.jpg'}: download or unpack the rest")
    entries = [(name, images / f"{name}.jpg", truths / f"{name}.png") for name in ids]
    classes = published_classes("ade20k")
    # 0 is "other objects"; values above 150 occur in copies with more classes.
    labels = label_table({entry.id: label for label, entry in enumerate(classes, start=1)}, rest=VOID)
    samples = paired_samples(NAME, entries, labels)
    return Dataset(NAME, split, categories(classes), samples, False, colours(classes))
