"""Pascal VOC 2012: 20 objects and background; borders and difficult objects are void."""

from functools import partial
from pathlib import Path

from goca.evaluation.datasets.base import VOID, Dataset
from goca.evaluation.datasets.files import choose, listed, locate, paired
from goca.evaluation.datasets.labels import read_indexed, table
from goca.evaluation.datasets.names import categories, rows, voc_colours

NAME = "voc"
SPLITS = ("val", "train", "trainval")
HOMES = ("", "VOC2012", "VOCdevkit/VOC2012")


def open_voc(root: Path | None, split: str | None = None) -> Dataset:
    """VOCdevkit/VOC2012 with JPEGImages, SegmentationClass and ImageSets/Segmentation; root is it or lies above it.

    Raises GocaError naming the file that was expected where the root is another or incomplete.
    """
    chosen = choose(NAME, split, SPLITS)
    home = locate(NAME, root, HOMES, ("JPEGImages", "SegmentationClass", "ImageSets"))
    ids = listed(NAME, home / "ImageSets" / "Segmentation" / f"{chosen}.txt")
    entries = [(one, home / "JPEGImages" / f"{one}.jpg", home / "SegmentationClass" / f"{one}.png") for one in ids]
    classes = rows("voc")
    labels = table({0: 0, 255: VOID} | {row.id: label for label, row in enumerate(classes, start=1)})
    samples = paired(NAME, entries, partial(read_indexed, labels=labels))
    return Dataset(NAME, chosen, categories(classes), samples, True, voc_colours(len(classes) + 1))
