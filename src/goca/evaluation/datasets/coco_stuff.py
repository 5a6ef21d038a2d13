"""COCO-Stuff: 80 things and 91 stuffs, or the 27 groups that they fall into; unlabelled pixels are void.

Both read the stuff maps; where there are none, the groups read the panoptic ground truth, which merges many of the 171.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Category, Dataset, Sample
from goca.evaluation.datasets.coco import SPLITS, image_folder
from goca.evaluation.datasets.coco_json import Index, index
from goca.evaluation.datasets.files import choose, first_of, folder, paired, require, stems
from goca.evaluation.datasets.labels import Labels, of_size, read_indexed, read_rgb, table
from goca.evaluation.datasets.names import categories, colours, rows
from goca.imaging.palette import palette

FINE, COARSE = "coco-stuff-171", "coco-stuff-27"
UNLABELLED = 255
MERGES = ((15, 3), (16, 4))
"""The paper's code counts food-stuff as food and furniture-stuff as furniture, so two of the 27 never occur."""


def open_coco_stuff_171(root: Path | None, split: str | None = None) -> Dataset:
    """stuffthingmaps/SPLIT/*.png (or annotations/SPLIT/*.png) and the images in SPLIT or images/SPLIT.

    Raises GocaError naming the file that was expected where the root is another or incomplete.
    """
    chosen = choose(FINE, split, SPLITS)
    home = folder(FINE, root)
    maps = _map_folder(home, chosen)
    if maps is None:
        expected = home / "stuffthingmaps" / chosen / "*.png"
        raise GocaError(f"{FINE}: expected {expected}, for panoptic ground truth merges many of the 171: download it")
    classes = rows("coco")
    samples = _of_maps(FINE, home, chosen, maps, {row.id: label for label, row in enumerate(classes, start=1)})
    return Dataset(FINE, chosen, categories(classes), samples, False, colours(classes))


def open_coco_stuff_27(root: Path | None, split: str | None = None) -> Dataset:
    """As the 171, or annotations/panoptic_SPLIT.json with panoptic_SPLIT/*.png beside it, or in the root, in place of
    the stuff maps.

    Raises GocaError naming the file that was expected where the root is another or incomplete.
    """
    chosen = choose(COARSE, split, SPLITS)
    home = folder(COARSE, root)
    groups = {row.name: label for label, row in enumerate(rows("coco", "groups"), start=1)}
    maps = _map_folder(home, chosen)
    if maps is not None:
        source = "stuff maps"
        samples = _of_maps(COARSE, home, chosen, maps, {row.id: groups[row.group] for row in rows("coco")})
    else:
        source = "panoptic"
        samples = _of_panoptic(home, chosen, groups)
    return Dataset(COARSE, chosen, _coarse(), samples, False, palette(len(groups)), source, MERGES)


def _map_folder(home: Path, split: str) -> Path | None:
    places = [home / place / split for place in ("stuffthingmaps", "annotations", "stuffthingmaps_trainval2017")]
    return next((place for place in places if _plain(stems(place, ".png"))), None)


def _plain(names: set[str]) -> set[str]:
    """Without what others have derived beside the maps, such as 000000000139_labelTrainIds."""
    return {name for name in names if "_" not in name}


def _of_maps(dataset: str, home: Path, split: str, maps: Path, labels: Mapping[int, int]) -> tuple[Sample, ...]:
    images = image_folder(home, split)
    ids = sorted(_plain(stems(maps, ".png")) | stems(images, ".jpg"))
    entries = [(one, images / f"{one}.jpg", maps / f"{one}.png") for one in ids]
    # A map's values are the categories' ids less one.
    values = table({category - 1: label for category, label in labels.items()} | {UNLABELLED: VOID})
    return paired(dataset, entries, partial(read_indexed, labels=values))


def _of_panoptic(home: Path, split: str, groups: Mapping[str, int]) -> tuple[Sample, ...]:
    path = home / "annotations" / f"panoptic_{split}.json"
    if not path.is_file():
        expected = home / "stuffthingmaps" / split / "*.png"
        raise GocaError(f"{COARSE}: expected {expected} or {path}: download or unpack the rest")
    known = index(path)
    labels = {}
    for category in known.categories:
        if category.get("supercategory") not in groups:
            raise GocaError(f"{path}: category {category.get('id')} is in none of the 27 groups: is it COCO's?")
        labels[category["id"]] = groups[category["supercategory"]]
    images, masks = image_folder(home, split), first_of([path.with_suffix(""), home / path.stem])
    samples = []
    for number, entry in sorted(known.images.items()):
        image = images / entry.file_name
        mask = masks / f"{image.stem}.png"
        samples.append(Sample(image.stem, image, partial(_read_panoptic, known, number, mask, image, labels)))
    require(COARSE, [sample.image for sample in samples])
    require(COARSE, [masks / f"{sample.id}.png" for sample in samples])
    return tuple(samples)


def _read_panoptic(known: Index, number: int, mask: Path, image: Path, labels: Mapping[int, int]) -> Labels:
    """Each colour is a segment's id, written as red + 256 green + 65536 blue; 0 is unlabelled."""
    segments = {0: VOID}
    for annotation in known.annotations(number):
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in labels:
                raise GocaError(f"{known.path} does not list the category {segment['category_id']}: download it again")
            segments[segment["id"]] = labels[segment["category_id"]]
    ids = read_rgb(mask).astype(np.int64) @ np.array([1, 1 << 8, 1 << 16])
    found, inverse = np.unique(ids, return_inverse=True)
    strange = [int(one) for one in found if int(one) not in segments]
    if strange:
        raise GocaError(f"{mask} has the segment {strange[0]}, which {known.path} has not: are they of one download?")
    out = np.array([segments[int(one)] for one in found], np.uint16)[inverse].reshape(ids.shape)
    return of_size(mask, image, out)


def _coarse() -> tuple[Category, ...]:
    """The groups; the words for their members stand for them too."""
    groups = rows("coco", "groups")
    taken = {row.name for row in groups}
    out = []
    for group in groups:
        members = zip(rows("coco"), categories(rows("coco")), strict=True)
        words = [word for row, one in members if row.group == group.name for word in (one.name, *one.synonyms)]
        out.append(
            Category(group.name, tuple(word for word in dict.fromkeys((*group.synonyms, *words)) if word not in taken))
        )
    return tuple(out)
