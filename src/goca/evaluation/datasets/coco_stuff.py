"""COCO-Stuff: 80 things and 91 stuff classes, or their 27 groups; unlabelled pixels are void.

Both read the stuff maps; without them, the groups read the panoptic ground truth, which merges many of the 171.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Dataset, LabelMap, Sample
from goca.evaluation.datasets.coco import SPLITS, image_folder
from goca.evaluation.datasets.coco_json import CocoFile, read_coco
from goca.evaluation.datasets.files import choose_split, dataset_root, first_of, paired_samples, require_files, stems
from goca.evaluation.datasets.labels import label_table, read_rgb
from goca.evaluation.datasets.names import categories, colours, published_classes
from goca.imaging.palette import palette
from goca.storage.reading import whole
from goca.text.nouns import Category

FINE, COARSE = "coco-stuff-171", "coco-stuff-27"
UNLABELLED = 255
MERGES = ((15, 3), (16, 4))
"""The paper's code counts food-stuff as food and furniture-stuff as furniture, so two of the 27 never occur."""


def open_coco_stuff_171(root: Path | None, split: str | None = None) -> Dataset:
    """Open stuffthingmaps/SPLIT/*.png (or annotations/SPLIT/*.png) and the images in SPLIT or images/SPLIT."""
    split = choose_split(FINE, split, SPLITS)
    home = dataset_root(FINE, root)
    maps = _map_folder(home, split)
    if maps is None:
        expected = home / "stuffthingmaps" / split / "*.png"
        raise GocaError(f"{FINE}: expected {expected}, as panoptic ground truth merges many of the 171: download it")
    classes = published_classes("coco")
    samples = _of_maps(FINE, home, split, maps, {entry.id: label for label, entry in enumerate(classes, start=1)})
    return Dataset(FINE, split, categories(classes), samples, False, colours(classes))


def open_coco_stuff_27(root: Path | None, split: str | None = None) -> Dataset:
    """Open the files of the 171 or, without stuff maps, annotations/panoptic_SPLIT.json with panoptic_SPLIT/*.png
    beside it or in the root.
    """
    split = choose_split(COARSE, split, SPLITS)
    home = dataset_root(COARSE, root)
    groups = {group.name: label for label, group in enumerate(published_classes("coco", "groups"), start=1)}
    maps = _map_folder(home, split)
    if maps is not None:
        source = "stuff maps"
        labels = {entry.id: groups[entry.group] for entry in published_classes("coco")}
        samples = _of_maps(COARSE, home, split, maps, labels)
    else:
        source = "panoptic"
        samples = _of_panoptic(home, split, groups)
    return Dataset(COARSE, split, _coarse(), samples, False, palette(len(groups)), source, MERGES)


def _map_folder(home: Path, split: str) -> Path | None:
    folders = [home / name / split for name in ("stuffthingmaps", "annotations", "stuffthingmaps_trainval2017")]
    return next((folder for folder in folders if _plain(stems(folder, ".png"))), None)


def _plain(names: set[str]) -> set[str]:
    """The names without derived files beside the maps, such as 000000000139_labelTrainIds."""
    return {name for name in names if "_" not in name}


def _of_maps(dataset: str, home: Path, split: str, maps: Path, labels: Mapping[int, int]) -> tuple[Sample, ...]:
    images = image_folder(home, split)
    ids = sorted(_plain(stems(maps, ".png")) | stems(images, ".jpg"))
    entries = [(name, images / f"{name}.jpg", maps / f"{name}.png") for name in ids]
    # A map's values are the categories' ids minus one.
    values = label_table({category - 1: label for category, label in labels.items()} | {UNLABELLED: VOID})
    return paired_samples(dataset, entries, values)


def _of_panoptic(home: Path, split: str, groups: Mapping[str, int]) -> tuple[Sample, ...]:
    path = home / "annotations" / f"panoptic_{split}.json"
    if not path.is_file():
        expected = home / "stuffthingmaps" / split / "*.png"
        raise GocaError(f"{COARSE}: expected {expected} or {path}: download or unpack the rest")
    coco = read_coco(path)
    labels = {}
    for category in coco.categories:
        if not isinstance(category.get("supercategory"), str) or category["supercategory"] not in groups:
            raise GocaError(
                f"{path}: category {category['id']} is in none of the 27 groups: check that the file is COCO's"
            )
        labels[category["id"]] = groups[category["supercategory"]]
    images, masks = image_folder(home, split), first_of([path.with_suffix(""), home / path.stem])
    samples = []
    for number, entry in sorted(coco.images.items()):
        image = images / entry.file_name
        mask = masks / f"{image.stem}.png"
        samples.append(Sample(image.stem, image, partial(_read_panoptic, coco, number, mask, image, labels)))
    require_files(COARSE, [sample.image for sample in samples])
    require_files(COARSE, [masks / f"{sample.id}.png" for sample in samples])
    return tuple(samples)


def _read_panoptic(coco: CocoFile, number: int, mask: Path, image: Path, labels: Mapping[int, int]) -> LabelMap:
    """Each colour is a segment's id, written as red + 256 green + 65536 blue; 0 is unlabelled."""
    segments = {0: VOID}
    for annotation in coco.annotations.get(number, ()):
        try:
            for segment in annotation["segments_info"]:
                name, category = whole(segment["id"], least=1), whole(segment["category_id"])
                if segments.setdefault(name, labels.get(category, VOID)) != labels.get(category):
                    reason = (
                        "does not list the category" if category not in labels else "lists a segment twice, also as"
                    )
                    raise GocaError(f"{coco.path} {reason} {category}: download it again")
        except (KeyError, TypeError, ValueError) as error:
            raise coco.damaged(annotation, image, error) from None
    ids = read_rgb(mask, image).astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])
    present, inverse = np.unique(ids, return_inverse=True)
    unknown = [segment for segment in present.tolist() if segment not in segments]
    if unknown:
        raise GocaError(f"{mask} has the segment {unknown[0]}, which {coco.path} lacks: download both again")
    return np.array([segments[segment] for segment in present.tolist()], np.uint16)[inverse].reshape(ids.shape)


def _coarse() -> tuple[Category, ...]:
    """The groups; the words for their members are their synonyms."""
    groups = published_classes("coco", "groups")
    names = {group.name for group in groups}
    members = list(zip(published_classes("coco"), categories(published_classes("coco")), strict=True))
    out = []
    for group in groups:
        words = [*group.synonyms]
        for entry, category in members:
            if entry.group == group.name:
                words += [category.name, *category.synonyms]
        out.append(Category(group.name, tuple(word for word in dict.fromkeys(words) if word not in names)))
    return tuple(out)
