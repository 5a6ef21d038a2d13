"""Pascal Context: 59 classes of things and stuff; the rest is background.

Published as .mat files with 459 classes; also distributed as PNGs of the 59. Both read alike: everything outside the
59, annotated or not, is background; only PNGs may have void as well.
"""

import re
from pathlib import Path

import numpy as np

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Dataset, LabelMap
from goca.evaluation.datasets.files import choose_split, first_of, locate, paired_samples, read_ids
from goca.evaluation.datasets.labels import LabelTable, check_size, label_table, read_indexed, translate
from goca.evaluation.datasets.names import categories, published_classes, voc_colours
from goca.storage.reading import read_text, require_regular

NAME = "context"
SPLITS = ("val", "train")
HOMES = ("", "VOC2010", "VOCdevkit/VOC2010")
UNLISTED = 1000  # higher than the number of any of the 459
UNLABELLED = 255
"""Void, in PNGs that distinguish it from background."""
PNGS = "SegmentationClassContext"


def open_context(root: Path | None, split: str | None = None) -> Dataset:
    """Open VOC2010 with JPEGImages, and SegmentationClassContext/*.png or trainval/*.mat with labels.txt.

    The list is ImageSets/SegmentationContext/SPLIT.txt or, as the authors split it, ImageSets/Main/SPLIT.txt. trainval
    may be in VOC2010 or in the root.
    """
    split = choose_split(NAME, split, SPLITS)
    home = locate(NAME, root, HOMES, ("JPEGImages", "ImageSets", PNGS))
    lists = [home / "ImageSets" / kind / f"{split}.txt" for kind in ("SegmentationContext", "Main")]
    ids = read_ids(NAME, first_of(lists))
    classes = published_classes("context")
    if (home / PNGS).is_dir():
        source, truths, ending, read = "PNG, 59 classes", home / PNGS, "png", read_indexed
        labels = label_table({0: 0, UNLABELLED: VOID} | {entry.id: entry.id for entry in classes})
    else:
        source, truths, ending, read = ".mat, 459 classes", _mat_folder(root or home, home), "mat", _read_mat
        labels = _of_459(truths)
    entries = [(name, home / "JPEGImages" / f"{name}.jpg", truths / f"{name}.{ending}") for name in ids]
    samples = paired_samples(NAME, entries, labels, read)
    return Dataset(NAME, split, categories(classes), samples, True, voc_colours(len(classes) + 1), source)


def _mat_folder(root: Path, home: Path) -> Path:
    folders = [base / inner / "trainval" for base in (home, root) for inner in ("", "33_context_labels")]
    folder = first_of(folders)
    if not folder.is_dir():
        raise GocaError(
            f"{NAME}: expected {home / PNGS} or {folders[0]} with the ground truth: download or unpack the rest"
        )
    try:
        import scipy.io  # noqa: F401
    except ImportError:
        raise GocaError("Pascal Context as .mat files needs scipy: pip install scipy") from None
    return folder


def _of_459(truths: Path) -> LabelTable:
    """The table from the 459 classes to the 59, by the names in labels.txt, with lines like "2: aeroplane"."""
    paths = [truths.parent / "labels.txt", truths / "labels.txt"]
    path = first_of(paths)
    if not path.is_file():
        raise GocaError(f"{NAME}: expected {paths[0]} with the names of the 459 classes: download or unpack the rest")
    lines = re.findall(r"^\s*([0-9]{1,9})\s*:(.*)$", "\n".join(read_text(path).splitlines()), re.MULTILINE)
    ids = {"".join(name.split()): int(number) for number, name in lines}
    if len(set(ids.values())) < len(lines) or max(ids.values(), default=0) >= UNLISTED:
        raise GocaError(f"{path} gives a number or name twice, or a number that is too high: download it again")
    labels = dict.fromkeys(range(max(ids.values(), default=0) + 1), 0)
    for entry in published_classes("context"):
        name = entry.name.replace(" ", "")
        if name not in ids:
            raise GocaError(f'{path} does not name "{name}", one of the 59: it should be that of the 459 classes')
        labels[ids[name]] = entry.id
    return label_table(labels, len(labels))


def _read_mat(path: Path, image: Path, labels: LabelTable) -> LabelMap:
    from scipy.io import loadmat, whosmat

    require_regular(path)
    try:
        shape = next((shape for name, shape, _ in whosmat(path) if name == "LabelMap"), ())
        if len(shape) != 2:
            raise ValueError("no LabelMap of two dimensions in it")
        check_size(path, shape, image)  # before memory is allocated for a wrong size
        values = loadmat(path, variable_names=["LabelMap"])["LabelMap"]
        if values.dtype.kind == "f" and (values == np.rint(values)).all() and (np.abs(values) < 2**31).all():
            values = values.astype(np.int64)  # MATLAB may store whole numbers as floats
        if values.dtype.kind not in "ui":
            raise ValueError("its LabelMap has other values than labels")
    except GocaError:
        raise
    except Exception as error:  # scipy may raise anything for broken files
        reason = str(error) or type(error).__name__
        raise GocaError(f"{path} cannot be read ({reason}): check that the file is complete") from None
    return translate(path, values, labels)
