"""A folder of one's own: images, for each an indexed PNG or a labelme file, and classes.txt."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Category, Dataset, Sample
from goca.evaluation.datasets.files import choose_split, dataset_root
from goca.evaluation.datasets.labelme import read_labelme
from goca.evaluation.datasets.labels import LabelTable, label_table, read_indexed
from goca.imaging.palette import palette
from goca.text.nouns import parse_nouns

NAME = "folder"
SPLITS = ("all",)
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
OURS = (".labels.png", ".overlay.png")  # what `goca segment` writes beside an image
SPECIAL = {"background": 0, "_background_": 0, "void": VOID, "ignore": VOID, "__ignore__": VOID}


@dataclass(frozen=True)
class FolderClasses:
    """What classes.txt says: labels by value in a PNG, and by name or synonym in lower case."""

    categories: tuple[Category, ...]
    labels: LabelTable
    words: dict[str, int]
    background: bool


def open_folder(root: Path | None, split: str | None = None) -> Dataset:
    """Images with PHOTO.labels.png, PHOTO.png or PHOTO.json for PHOTO.jpg, and classes.txt; subfolders are searched.

    The ground truth lies beside the images, or in labels/ if they lie in images/.
    """
    split = choose_split(NAME, split, SPLITS)
    home = dataset_root(NAME, root)
    classes = read_classes(home / "classes.txt")
    apart = (home / "images").is_dir()
    images = home / "images" if apart else home
    truths = home / "labels" if apart else home
    files = sorted(path for path in home.rglob("*") if path.is_file() and not path.name.startswith("."))
    present = set(files)
    samples, missing = [], []
    for image in _images(files, images):
        name = image.relative_to(images)
        paths = [truths / name.with_suffix(ending) for ending in (".labels.png", ".png", ".json")]
        truth = next((path for path in paths if path in present and path != image), None)
        if truth is None:
            missing.append((image, truths / name.with_suffix("")))
            continue
        if truth.suffix == ".json":
            read = partial(read_labelme, truth, image, classes.words, 0 if classes.background else VOID)
        else:
            read = partial(read_indexed, truth, image, classes.labels)
        samples.append(Sample(name.as_posix(), image, read))
    if missing:
        (image, expected), total = missing[0], len(missing) + len(samples)
        raise GocaError(
            f"{NAME}: {len(missing)} of {total} images have no ground truth, the first is {image}: expected "
            f"{expected}.png, .labels.png or .json (labelme)"
        )
    if not samples:
        raise GocaError(f"{NAME}: no images in {images}: put some there, or give another folder", "root")
    colours = palette(len(classes.categories))
    return Dataset(NAME, split, classes.categories, tuple(samples), classes.background, colours)


def _images(files: Sequence[Path], home: Path) -> Iterator[Path]:
    """Of the files, the images below home; a PNG beside an image of its name is ground truth."""
    others = {path.with_suffix("") for path in files if path.suffix.lower() in IMAGES and path.suffix != ".png"}
    for path in files:
        truth = path.suffix == ".png" and (path.name.endswith(OURS) or path.with_suffix("") in others)
        if path.is_relative_to(home) and path.suffix.lower() in IMAGES and not truth:
            yield path


def read_classes(path: Path) -> FolderClasses:
    """One class a line: "cat", "cat, kitty" with synonyms, or "7: cat" with its value in the PNGs.

    Without a value it is one more than the line before, from 1. "background" and "void" are not classes; 0 is
    background, and 255 and 65535 are void, unless a line says otherwise.

    Raises:
        GocaError: the file is missing, or a value or name stands twice.
    """
    if not path.is_file():
        raise GocaError(f"{NAME}: expected {path}: write it, one class a line, the first being 1 in the label files")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise GocaError(f"{path} is not in UTF-8: save it as such") from None
    categories: list[Category] = []
    labels: dict[int, int] = {}
    words = dict(SPECIAL)
    value = 0
    for line in lines:
        numbered = re.fullmatch(r"\s*(\d+)\s*:(.*)", line)
        names = [word.strip() for word in (numbered[2] if numbered else line).split(",") if word.strip()]
        if not names:
            continue
        name, *synonyms = names
        special = SPECIAL.get(name.lower())
        if special is None:
            categories.append(Category(name, tuple(synonyms)))
        label = len(categories) if special is None else special
        for word in names:
            if words.setdefault(word.lower(), label) != label:
                raise GocaError(f'{path} names "{word}" twice: every name and synonym may stand there once')
        if special is not None and not numbered:
            continue
        value = int(numbered[1]) if numbered else value + 1
        if value in labels or value > VOID:
            raise GocaError(f"{path} gives {value} to two classes, or it is above {VOID}: give each its own value")
        labels[value] = label
    parse_nouns({category.name: category.synonyms for category in categories})
    labels = {0: 0, 255: VOID, VOID: VOID} | labels
    return FolderClasses(tuple(categories), label_table(labels, VOID + 1), words, 0 in labels.values())
