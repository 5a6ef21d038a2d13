"""A user's folder: images, an indexed PNG or a labelme file for each, and classes.txt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Dataset, Sample
from goca.evaluation.datasets.files import choose_split, dataset_root, walk
from goca.evaluation.datasets.labelme import read_labelme
from goca.evaluation.datasets.labels import LabelTable, label_table, read_indexed
from goca.imaging.palette import palette
from goca.storage.reading import read_text
from goca.text.class_list import SPECIAL, parse_class_list
from goca.text.nouns import Category, parse_nouns

NAME = "folder"
SPLITS = ("all",)
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
OURS = (".labels.png", ".overlay.png")  # what `goca segment` writes beside an image
SPECIAL_LABELS = {"background": 0, "void": VOID}


@dataclass(frozen=True)
class FolderClasses:
    """The content of classes.txt: labels by value in a PNG, and by name or synonym in lower case."""

    categories: tuple[Category, ...]
    labels: LabelTable
    words: dict[str, int]
    background: bool


def open_folder(root: Path | None, split: str | None = None) -> Dataset:
    """Open images with PHOTO.labels.png, PHOTO.png or PHOTO.json for PHOTO.jpg, and classes.txt, searching subfolders.

    The ground truth is in labels/, with the same subfolders, if there is such a folder; else beside the images, which
    may be in images/.
    """
    split = choose_split(NAME, split, SPLITS)
    home = dataset_root(NAME, root)
    classes = read_classes(home / "classes.txt")
    images = home / "images" if (home / "images").is_dir() else home
    # Beside the images there may also be what `goca segment` made of them.
    apart = home / "labels"
    truths = apart if apart.is_dir() else images
    files = sorted(walk(home))
    present = set(files)
    samples, missing = [], []
    for image in _images([path for path in files if not path.is_relative_to(apart)], images):
        name = image.relative_to(images)
        paths = [
            path for ending in (".labels.png", ".png", ".json") if (path := truths / name.with_suffix(ending)) != image
        ]
        truth = next((path for path in paths if path in present), None)
        if truth is None:
            missing.append((image, paths))
            continue
        if truth.suffix == ".json":
            read = partial(read_labelme, truth, image, classes.words, 0 if classes.background else VOID)
        else:
            read = partial(read_indexed, truth, image, classes.labels)
        samples.append(Sample(name.as_posix(), image, read))
    if missing:
        (image, paths), total = missing[0], len(missing) + len(samples)
        *pngs, labelme = map(str, paths)
        raise GocaError(
            f"{NAME}: {len(missing)} of {total} images have no ground truth, the first is {image}: expected "
            f"{', '.join(pngs)} or {labelme} (labelme)"
        )
    if not samples:
        raise GocaError(f"{NAME}: no images in {images}: put some there, or give another folder", "root")
    colours = palette(len(classes.categories))
    return Dataset(NAME, split, classes.categories, tuple(samples), classes.background, colours)


def _images(files: Sequence[Path], home: Path) -> Iterator[Path]:
    """The images among the files below home; a PNG beside an image with its name is ground truth."""
    others = {path.with_suffix("") for path in files if path.suffix.lower() in IMAGES and path.suffix != ".png"}
    for path in files:
        truth = path.suffix == ".png" and (path.name.endswith(OURS) or path.with_suffix("") in others)
        if path.is_relative_to(home) and path.suffix.lower() in IMAGES and not truth:
            yield path


def read_classes(path: Path) -> FolderClasses:
    """Read classes.txt, in the grammar of `goca.text.class_list`: a class's label is its value in the PNGs.

    0 is background, 255 and 65535 are void, unless a line says otherwise.

    Raises:
        GocaError: The file is missing, or cannot be read as a list of classes.
    """
    if not path.is_file():
        raise GocaError(f"{NAME}: expected {path}: write it, one class per line; the first has label 1 in the PNGs")
    categories: list[Category] = []
    labels = {0: 0, 255: VOID, VOID: VOID}
    words = {word: SPECIAL_LABELS[meaning] for word, meaning in SPECIAL.items()}
    for entry in parse_class_list(read_text(path), str(path)):
        if entry.special is None:
            categories.append(Category(entry.name, entry.synonyms))
        label = len(categories) if entry.special is None else SPECIAL_LABELS[entry.special]
        words |= {word.lower(): label for word in (entry.name, *entry.synonyms)}
        if entry.label is not None:
            labels[entry.label] = label
    try:
        parse_nouns({category.name: category.synonyms for category in categories})
    except GocaError as error:
        raise GocaError(f"{path}: {error}") from None
    return FolderClasses(tuple(categories), label_table(labels, VOID + 1), words, 0 in labels.values())
