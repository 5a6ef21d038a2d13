"""How the data sets find their files: which folder, which split, and that nothing listed is missing."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from goca.errors import GocaError
from goca.evaluation.datasets.base import LabelMap, Sample
from goca.evaluation.datasets.labels import LabelTable, read_indexed
from goca.storage.reading import inside, read_text


def choose_split(dataset: str, split: str | None, splits: Sequence[str]) -> str:
    """The split, the first of all if it is None; GocaError if the data set has no such split."""
    if split is not None and split not in splits:
        raise GocaError(f'{dataset} has no split "{split}": there are {", ".join(splits)}', "split")
    return split or splits[0]


def dataset_root(dataset: str, root: Path | None) -> Path:
    """The root; GocaError if it is not a folder."""
    if root is None:
        raise GocaError(f"{dataset} does not ship with goca: say where it lies", "root")
    if not root.is_dir():
        raise GocaError(f"{dataset}: no such folder: {root}; give the one that the data set was unpacked in", "root")
    return root


def locate(dataset: str, root: Path | None, homes: Sequence[str], members: Sequence[str]) -> Path:
    """The first of root / home with one of the members in it; GocaError says what the last home should have."""
    folder = dataset_root(dataset, root)
    for home in homes:
        if any((folder / home / member).exists() for member in members):
            return folder / home
    expected = folder / homes[-1] / members[0]
    raise GocaError(f"{dataset}: expected {expected}; give the folder that the data set was unpacked in", "root")


def first_of(paths: Sequence[Path]) -> Path:
    """The first that exists; if none does, the first, whose name is the published one, for the error to come."""
    return next((path for path in paths if path.exists()), paths[0])


def read_ids(dataset: str, path: Path) -> tuple[str, ...]:
    """The ids that a split's list names, one a line; GocaError if the list is missing, empty or names other folders."""
    if not path.is_file():
        raise GocaError(f"{dataset}: expected {path}: download or unpack the rest, or choose another split")
    ids = dict.fromkeys(line.split()[0] for line in read_text(path).splitlines() if line.strip())
    if not ids:
        raise GocaError(f"{dataset}: {path} lists no image: is the file complete?")
    try:
        for name in ids:
            inside(name)
    except ValueError as error:
        raise GocaError(f"{dataset}: {path} is not a list of images ({error}): is it this data set's?") from None
    return tuple(ids)


def stems(folder: Path, ending: str) -> set[str]:
    """The names of a folder's files that end so, without the ending; none if there is no such folder."""
    if not folder.is_dir():
        return set()
    names = (path.name for path in folder.iterdir())
    return {name.removesuffix(ending) for name in names if name.endswith(ending) and not name.startswith(".")}


def walk(folder: Path) -> Iterator[Path]:
    """What lies in a folder and below it, links followed, but for folders and what is hidden. Raises OSError.

    Pipes and dangling links are among it: what is named like an image and cannot be read is not to be passed over.
    """
    seen = set()

    def fail(error: OSError) -> None:
        raise error

    for base, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(base)
        # A link may lead back up.
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        yield from (Path(base, name) for name in names if real not in seen and not name.startswith("."))
        seen.add(real)


def require_files(dataset: str, paths: Iterable[Path]) -> None:
    """GocaError with the first file that is missing, and how many are; each folder is listed once."""
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
