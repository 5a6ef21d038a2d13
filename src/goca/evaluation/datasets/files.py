"""What the data sets share in finding files: which folder, which split, and that nothing listed is missing."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from jaxtyping import UInt16
from numpy import ndarray

from goca.errors import GocaError
from goca.evaluation.datasets.base import Sample

Read = Callable[[Path, Path], UInt16[ndarray, "height width"]]
"""Reads a file of ground truth; its second argument is the image that it belongs to."""


def choose(dataset: str, split: str | None, splits: Sequence[str]) -> str:
    """The split asked for, or the first; GocaError for one that there is not."""
    if split is None:
        return splits[0]
    if split not in splits:
        raise GocaError(f'{dataset} has no split "{split}": there are {", ".join(splits)}')
    return split


def folder(dataset: str, root: Path | None) -> Path:
    """The root, where it is a folder; GocaError where it is not."""
    if root is None:
        raise GocaError(f"{dataset} does not ship with goca: say where it lies (--root)")
    if not root.is_dir():
        raise GocaError(f"{dataset}: no such folder: {root}; give the one that the data set was unpacked in (--root)")
    return root


def locate(dataset: str, root: Path | None, homes: Sequence[str], marks: Sequence[str]) -> Path:
    """The first of root / home that has one of the marks in it.

    Raises GocaError naming what was expected, the first mark in the last home, which is the published place.
    """
    given = folder(dataset, root)
    for home in homes:
        if any((given / home / mark).exists() for mark in marks):
            return given / home
    expected = given / homes[-1] / marks[0]
    raise GocaError(f"{dataset}: expected {expected}; give the folder that the data set was unpacked in (--root)")


def first_of(folders: Sequence[Path]) -> Path:
    """The first that exists; where none does, the first, to be missed by its published name."""
    return next((one for one in folders if one.is_dir()), folders[0])


def listed(dataset: str, path: Path) -> tuple[str, ...]:
    """The ids that a split's list names, one a line; GocaError where the list is missing or empty."""
    if not path.is_file():
        raise GocaError(f"{dataset}: expected {path}: download or unpack the rest, or choose another split")
    ids = dict.fromkeys(line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not ids:
        raise GocaError(f"{dataset}: {path} lists no image: is the file complete?")
    return tuple(ids)


def stems(folder: Path, ending: str) -> set[str]:
    """The names of a folder's files that end so, without the ending; nothing where there is no such folder."""
    if not folder.is_dir():
        return set()
    names = (path.name for path in folder.iterdir())
    return {name.removesuffix(ending) for name in names if name.endswith(ending) and not name.startswith(".")}


def require(dataset: str, paths: Iterable[Path]) -> None:
    """GocaError naming the first file that is not there, and how many are not; each folder is listed once."""
    wanted = list(paths)
    there: dict[Path, set[str]] = {}
    missing = []
    for path in wanted:
        if path.parent not in there:
            there[path.parent] = stems(path.parent, "")
        if path.name not in there[path.parent]:
            missing.append(path)
    if missing:
        count = f"{len(missing)} of {len(wanted)} files are missing"
        raise GocaError(f"{dataset}: {count}, the first is {missing[0]}: download or unpack the rest")


def paired(dataset: str, entries: Sequence[tuple[str, Path, Path]], read: Read) -> tuple[Sample, ...]:
    """Samples from (id, image, ground truth), all of which must be there."""
    require(dataset, (path for _, *paths in entries for path in paths))
    return tuple(Sample(name, image, partial(read, truth, image)) for name, image, truth in entries)
