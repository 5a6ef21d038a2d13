"""Finding a data set's files: its folder, its split, and whether all listed files exist."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from goca.errors import GocaError
from goca.evaluation.datasets.base import LabelMap, Sample
from goca.evaluation.datasets.labels import LabelTable, read_indexed
from goca.storage.reading import inside, read_text


def choose_split(dataset: str, split: str | None, splits: Sequence[str]) -> str:
    """The split, or the first one for None. Raises GocaError if the data set has no such split."""
    if split is not None and split not in splits:
        raise GocaError(f'{dataset} has no split "{split}": choose from {", ".join(splits)}', "split")
    return split or splits[0]


def dataset_root(dataset: str, root: Path | None) -> Path:
    """The root. Raises GocaError if it is not a folder."""
    if root is None:
        raise GocaError(f"{dataset} does not ship with goca: give the folder that it was unpacked in", "root")
    if not root.is_dir():
        raise GocaError(f"{dataset}: no such folder: {root}; give the one that the data set was unpacked in", "root")
    return root


def locate(dataset: str, root: Path | None, homes: Sequence[str], members: Sequence[str]) -> Path:
    """The first root / home that contains one of the members. Raises GocaError that names what is expected."""
    folder = dataset_root(dataset, root)
    for home in homes:
        if any((folder / home / member).exists() for member in members):
            return folder / home
    expected = folder / homes[-1] / members[0]
    raise GocaError(f"{dataset}: expected {expected}; give the folder that the data set was unpacked in", "root")


def first_of(paths: Sequence[Path]) -> Path:
    """The first path that exists, or else the first, whose published name is then in the error."""
    return next((path for path in paths if path.exists()), paths[0])


def read_ids(dataset: str, path: Path) -> tuple[str, ...]:
    """The ids in a split's list, one per line. Raises GocaError if it is missing, empty or names other folders."""
    if not path.is_file():
        raise GocaError(f"{dataset}: expected {path}: download or unpack the rest, or choose another split")
    ids = dict.fromkeys(line.split()[0] for line in read_text(path).splitlines() if line.strip())
    if not ids:
        raise GocaError(f"{dataset}: {path} lists no image: check that the file is complete")
    try:
        for name in ids:
            inside(name)
    except ValueError as error:
        raise GocaError(
            f"{dataset}: {path} is not a list of images ({error}): check that it is this data set's"
        ) from None
    return tuple(ids)


def stems(folder: Path, ending: str) -> set[str]:
    """The names of a folder's files with this ending, without it; empty if the folder does not exist."""
    if not folder.is_dir():
        return set()
    names = (path.name for path in folder.iterdir())
    return {name.removesuffix(ending) for name in names if name.endswith(ending) and not name.startswith(".")}


def walk(folder: Path) -> Iterator[Path]:
    """All files in and below a folder that are not hidden, following links. Raises OSError.

    Includes pipes and dangling links: an entry that is named like an image but cannot be read must not be skipped.
    """
    seen = set()

    def fail(error: OSError) -> None:
        raise error

    for base, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(base)
        # A link may lead back to a parent.
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        yield from (Path(base, name) for name in names if real not in seen and not name.startswith("."))
        seen.add(real)


def require_files(dataset: str, paths: Iterable[Path]) -> None:
    """Raise GocaError with the first missing file and their number; each folder is listed only once."""
    paths = list(paths)
    present = {folder: stems(folder, "") for folder in {path.parent for path in paths}}
    missing = [path for path in paths if path.name not in present[path.parent]]
    if missing:
        count = f"{len(missing)} of {len(paths)} files are missing"
        raise GocaError(f"{dataset}: {count}, the first is {missing[0]}: download or unpack the rest")


def paired_samples(
    dataset: str,
    entries: Sequence[tuple[str, Path, Path]],
    labels: LabelTable,
    read: Callable[[Path, Path, LabelTable], LabelMap] = read_indexed,
) -> tuple[Sample, ...]:
    """Samples from (id, image, ground truth), all of which must exist; `read` takes the ground truth and the image."""
    require_files(dataset, (path for _, *paths in entries for path in paths))
    return tuple(Sample(name, image, partial(read, truth, image, labels)) for name, image, truth in entries)
