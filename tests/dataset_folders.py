"""Tiny data sets in the exact layout of the published ones, for tests: files' names, bit depths, palettes, formats.

Each `make_...(root)` fills the folder and returns what goca should read from it: {split: {id: labels}}.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from scipy.io import savemat

from goca.evaluation.datasets.base import VOID
from goca.exports.labelme import labelme

Truths = dict[str, dict[str, np.ndarray]]
Size = tuple[int, int]

VOC_PAIRS = [(0, 0), (1, 1), (15, 15), (20, 20), (255, VOID)]
CONTEXT_PAIRS = [(0, 0), (1, 1), (37, 37), (59, 59)]
# Of the 459: unlabelled, accordion, aeroplane, motorbike, table, tvmonitor, unknown, wood, the last.
CONTEXT_MAT_PAIRS = [(0, 0), (1, 0), (2, 1), (258, 34), (397, 50), (427, 55), (431, 0), (458, 59), (459, 0)]
CITYSCAPES_PAIRS = [(0, VOID), (6, VOID), (7, 1), (8, 2), (9, VOID), (11, 3), (23, 11), (29, VOID), (31, 17), (33, 19)]
ADE20K_PAIRS = [(0, VOID), (1, 1), (90, 90), (150, 150), (151, VOID), (255, VOID)]
# Values are ids less one: person, bus, stop sign, toothbrush, banner, cabinet, food-other, wood.
STUFF_PAIRS = [(0, 1), (5, 6), (12, 12), (89, 80), (91, 81), (97, 87), (120, 110), (181, 171), (255, VOID)]
STUFF_27_PAIRS = [(0, 10), (5, 12), (12, 9), (89, 5), (91, 18), (97, 16), (120, 15), (181, 25), (255, VOID)]

# Where the 59 stand among the 459, both in alphabetical order.
CONTEXT_IDS = (
    "2 9 18 19 22 23 25 31 33 34 44 45 46 59 65 68 72 80 85 98 104 105 113 115 144 158 159 162 187 189 207 220 232 258 "
    "259 260 284 295 296 308 324 326 347 349 354 355 360 366 368 397 415 416 420 424 427 440 445 454 458"
)
CONTEXT_NAMES = (
    "aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling chair cloth "
    "computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light motorbike mountain "
    "mouse person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow sofa table track train "
    "tree truck tvmonitor wall water window wood"
)
CITIES = {
    "val": "frankfurt lindau munster",
    "train": "aachen bochum bremen cologne darmstadt dusseldorf erfurt hamburg hanover jena krefeld monchengladbach "
    "strasbourg stuttgart tubingen ulm weimar zurich",
}


def image(path: Path, size: Size) -> Path:
    """An image of (height, width) in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def grey(path: Path, values: np.ndarray) -> Path:
    """A grey PNG of 8 or 16 bits, as the values' type is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def indexed(path: Path, values: np.ndarray) -> Path:
    """An 8-bit PNG with a palette of 256 colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette(np.random.default_rng(3).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(path)
    return path


def mixed(pairs: Sequence[tuple[int, int]], size: Size, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels in which every (value, label) occurs, shuffled."""
    chosen = np.arange(size[0] * size[1]) % len(pairs)
    np.random.default_rng(seed).shuffle(chosen)
    values, labels = np.array(pairs)[chosen].reshape(*size, 2).transpose(2, 0, 1)
    return values, labels.astype(np.uint16)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def make_voc(root: Path) -> Truths:
    """VOCdevkit/VOC2012 with two images for validation and one for training."""
    home = root / "VOCdevkit" / "VOC2012"
    out: Truths = {"val": {}, "train": {}, "trainval": {}}
    for split, name, size in [
        ("val", "2007_000033", (19, 23)),
        ("val", "2007_000042", (29, 17)),
        ("train", "2007_000032", (17, 31)),
    ]:
        values, labels = mixed(VOC_PAIRS, size, seed=size[0])
        image(home / "JPEGImages" / f"{name}.jpg", size)
        indexed(home / "SegmentationClass" / f"{name}.png", values)
        out[split][name] = out["trainval"][name] = labels
    for split, truths in out.items():
        write_lines(home / "ImageSets" / "Segmentation" / f"{split}.txt", truths)
    return out


def make_context_png(root: Path) -> Truths:
    """VOCdevkit/VOC2010 with SegmentationClassContext and ImageSets/SegmentationContext."""
    home = root / "VOCdevkit" / "VOC2010"
    out: Truths = {}
    for split, name, size in [("val", "2008_000008", (19, 23)), ("train", "2008_000002", (17, 29))]:
        values, labels = mixed(CONTEXT_PAIRS, size)
        image(home / "JPEGImages" / f"{name}.jpg", size)
        indexed(home / "SegmentationClassContext" / f"{name}.png", values)
        write_lines(home / "ImageSets" / "SegmentationContext" / f"{split}.txt", [name])
        out[split] = {name: labels}
    return out


def make_context_mat(root: Path) -> Truths:
    """VOC2010 with ImageSets/Main, and beside it trainval/*.mat and labels.txt."""
    home = root / "VOC2010"
    names = [f"filler{number}" for number in range(460)]
    for number, name in zip(CONTEXT_IDS.split(), CONTEXT_NAMES.split(), strict=True):
        names[int(number)] = name
    write_lines(root / "labels.txt", (f"{number}: {names[number]}" for number in range(1, 460)))
    (root / "trainval").mkdir()
    out: Truths = {}
    for split, name, size in [("val", "2008_000008", (19, 23)), ("train", "2008_000002", (17, 29))]:
        values, labels = mixed(CONTEXT_MAT_PAIRS, size)
        image(home / "JPEGImages" / f"{name}.jpg", size)
        savemat(root / "trainval" / f"{name}.mat", {"LabelMap": values.astype(np.uint16)}, do_compression=True)
        write_lines(home / "ImageSets" / "Main" / f"{split}.txt", [name])
        out[split] = {name: labels}
    return out


def make_cityscapes(root: Path) -> Truths:
    """One image for each city; gtFine has the other files of its kind too."""
    out: Truths = {split: {} for split in CITIES}
    for split, cities in CITIES.items():
        for city in cities.split():
            name = f"{city}_000000_000294"
            values, labels = mixed(CITYSCAPES_PAIRS, (17, 23), seed=len(city))
            image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", (17, 23))
            truth = root / "gtFine" / split / city / f"{name}_gtFine"
            grey(truth.with_name(f"{truth.name}_labelIds.png"), values.astype(np.uint8))
            grey(truth.with_name(f"{truth.name}_instanceIds.png"), (values * 1000).astype(np.uint16))
            out[split][name] = labels
    return out


def make_ade20k(root: Path) -> Truths:
    """ADEChallengeData2016 with two images for validation and one for training."""
    home = root / "ADEChallengeData2016"
    out: Truths = {"validation": {}, "training": {}}
    for split, name, size in [
        ("validation", "ADE_val_00000001", (19, 23)),
        ("validation", "ADE_val_00000002", (29, 17)),
        ("training", "ADE_train_00000001", (17, 31)),
    ]:
        values, labels = mixed(ADE20K_PAIRS, size)
        image(home / "images" / split / f"{name}.jpg", size)
        grey(home / "annotations" / split / f"{name}.png", values.astype(np.uint8))
        out[split][name] = labels
    return out


def instances() -> dict[str, Any]:
    """A COCO file of three images: polygons, both kinds of run lengths, a crowd, overlaps, nothing at all."""
    brush = np.zeros((29, 17), np.uint8)
    brush[2:5, 3] = 1
    encoded = rle.encode(np.asfortranarray(brush))
    annotations = [
        # A car of 4 x 3 pixels inside the person of 7 x 7, listed first; two points are no area.
        entry(1, 139, 3, [[4, 2, 8, 2, 8, 5, 4, 5]]),
        entry(2, 285, 90, {"size": [29, 17], "counts": encoded["counts"].decode()}),
        entry(3, 139, 1, [[0, 0, 12, 10], [2, 1, 9, 1, 9, 8, 2, 8]]),
        # Cows, as runs down the columns; smaller than the person, and yet below.
        entry(4, 139, 21, {"size": [19, 23], "counts": [0, 76, 361]}, crowd=1),
    ]
    return {
        "info": {"description": "COCO 2017 Dataset", "year": 2017},
        "licenses": [{"id": 1, "name": "a licence \u00e9"}],
        "images": [
            {"license": 1, "file_name": "000000000285.jpg", "height": 29, "width": 17, "id": 285},
            {"license": 1, "file_name": "000000000139.jpg", "height": 19, "width": 23, "id": 139},
            {"license": 1, "file_name": "000000000632.jpg", "height": 17, "width": 31, "id": 632},
        ],
        "annotations": annotations,
        "categories": [{"supercategory": "person", "id": 1, "name": "person"}],
    }


def entry(number: int, image: int, category: object, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {
        "segmentation": segmentation,
        "iscrowd": crowd,
        "image_id": image,
        "category_id": category,
        "id": number,
    }


def make_coco_object(root: Path) -> Truths:
    """val2017 and annotations/instances_val2017.json, which is not in ASCII."""
    file = instances()
    for entry in file["images"]:
        image(root / "val2017" / entry["file_name"], (entry["height"], entry["width"]))
    (root / "annotations").mkdir()
    text = json.dumps(file, ensure_ascii=False)
    (root / "annotations" / "instances_val2017.json").write_text(text, encoding="utf-8")
    first, second = np.zeros((19, 23), np.uint16), np.zeros((29, 17), np.uint16)
    first[:, 0:4] = 20
    first[1:8, 2:9] = 1
    first[2:5, 4:8] = 3
    second[2:5, 3] = 80
    empty = np.zeros((17, 31), np.uint16)
    return {"val2017": {"000000000139": first, "000000000285": second, "000000000632": empty}}


def make_coco_stuff(root: Path, pairs: Sequence[tuple[int, int]] = STUFF_PAIRS) -> Truths:
    """val2017 and train2017 with stuffthingmaps; pairs: `STUFF_PAIRS` or `STUFF_27_PAIRS`."""
    out: Truths = {"val2017": {}, "train2017": {}}
    for split, name, size in [
        ("val2017", "000000000139", (19, 23)),
        ("val2017", "000000000285", (29, 17)),
        ("train2017", "000000000009", (17, 31)),
    ]:
        values, labels = mixed(pairs, size)
        image(root / split / f"{name}.jpg", size)
        grey(root / "stuffthingmaps" / split / f"{name}.png", values.astype(np.uint8))
        out[split][name] = labels
    return out


def make_coco_panoptic(root: Path) -> Truths:
    """val2017 with annotations/panoptic_val2017.json and its PNGs; labels are those of the 27 groups."""
    # Segment, category, label: a person, a tree, a cabinet; the ids need all three bytes.
    segments = [(3, 1, 10), (256 * 7 + 5, 184, 23), (65536 * 11 + 2, 188, 16)]
    ids = np.zeros((19, 23), np.int64)
    labels = np.full((19, 23), VOID, np.uint16)
    for row, (segment, _, label) in enumerate(segments):
        ids[2 * row : 2 * row + 2], labels[2 * row : 2 * row + 2] = segment, label
    image(root / "val2017" / "000000000139.jpg", (19, 23))
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    folder = root / "annotations" / "panoptic_val2017"
    folder.mkdir(parents=True)
    Image.fromarray(colours).save(folder / "000000000139.png")
    infos = [{"id": segment, "category_id": category, "iscrowd": 0} for segment, category, _ in segments]
    file = {
        "images": [{"file_name": "000000000139.jpg", "height": 19, "width": 23, "id": 139}],
        "annotations": [{"segments_info": infos, "file_name": "000000000139.png", "image_id": 139}],
        "categories": [
            {"supercategory": "person", "isthing": 1, "id": 1, "name": "person"},
            {"supercategory": "plant", "isthing": 0, "id": 184, "name": "tree-merged"},
            {"supercategory": "furniture-stuff", "isthing": 0, "id": 188, "name": "cabinet-merged"},
        ],
    }
    folder.with_suffix(".json").write_text(json.dumps(file))
    return {"val2017": {"000000000139": labels}}


def make_folder(root: Path) -> Truths:
    """Three images: an indexed PNG beside one, one with what `goca segment` writes, labelme in a subfolder."""
    write_lines(root / "classes.txt", ["cat, kitty", "grass", "sky"])
    pairs = [(0, 0), (1, 1), (2, 2), (3, 3), (255, VOID)]
    values, labels = mixed(pairs, (19, 23))
    image(root / "one.jpg", (19, 23))
    indexed(root / "one.png", values)
    others, other_labels = mixed(pairs, (17, 29))
    image(root / "two.png", (17, 29))
    indexed(root / "two.labels.png", others)
    image(root / "two.overlay.png", (17, 29))
    drawn = np.zeros((17, 31), np.uint16)
    drawn[1:4, 2:11] = 1
    drawn[2, 4:7] = 3
    image(root / "more" / "three.jpeg", (17, 31))
    (root / "more" / "three.json").write_text(json.dumps(labelme(drawn, ("cat", "grass", "sky"), "three.jpeg")))
    return {"all": {"more/three.jpeg": drawn, "one.jpg": labels, "two.png": other_labels}}
