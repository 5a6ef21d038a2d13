"""Pascal VOC 2012: 20 objects and background; borders and difficult objects are void."""

from pathlib import Path

from goca.evaluation.datasets.base import VOID, Dataset
from goca.evaluation.datasets.files import choose_split, locate, paired_samples, read_ids
from goca.evaluation.datasets.labels import label_table
from goca.evaluation.datasets.names import categories, published_classes, voc_colours

NAME = "voc"
SPLITS = ("val", "train", "trainval")
HOMES = ("", "VOC2012", "VOCdevkit/VOC2012")


def open_voc(root: Path | None, split: str | None = None) -> Dataset:
    """VOCdevkit/VOC2012 with JPEGImages, SegmentationClass and ImageSets/Segmentation; root is VOC2012 or a parent."""
    split = choose_split(NAME, split, SPLITS)
    home = locate(NAME, root, HOMES, ("JPEGImages", "SegmentationClass", "ImageSets"))
    ids = read_ids(NAME, home / "ImageSets" / "Segmentation" / f"{split}.txt")
    entries = [(name, home / "JPEGImages" / f"{name}.jpg", home / "SegmentationClass" / f"{name}.png") for name in ids]
    classes = published_classes("voc")
    labels = label_table({0: 0, 255: VOID} | {entry.id: label for label, entry in enumerate(classes, start=1)})
    samples = paired_samples(NAME, entries, labels)
    return Dataset(NAME, split, categories(classes), samples, True, voc_colours(len(classes) + 1))
