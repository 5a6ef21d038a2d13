"""The images of a run, and where the results of each go. No image is opened."""

import mimetypes
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from unicodedata import normalize

from goca.errors import GocaError
from goca.exports import DEFAULT_FORMATS, EXPORTERS, MARKER, dataset_formats, exporters, image_formats
from goca.exports.objects import ObjectOptions
from goca.imaging.files import suffixes
from goca.storage.atomic import short_stem
from goca.storage.reading import require_regular
from goca.text.clean import storable

_SUFFIXES = suffixes()
INSPECTED = ".inspect.png"
"""Suffix, after the image's stem, of an inspection's sheet."""
_EARLIER_RESULTS = (*(exporter.suffix for exporter in EXPORTERS.values()), INSPECTED)


@dataclass(frozen=True)
class ImageJob:
    """An image as the user named it, the folder and stem of its results, and their formats, one file each.

    problem: Why it cannot be segmented, if that is known before it is opened; else None.
    objects: How regions become objects, in formats that have them.
    """

    image: Path
    folder: Path
    stem: str
    formats: tuple[str, ...] = DEFAULT_FORMATS
    problem: str | None = None
    objects: ObjectOptions = field(default_factory=ObjectOptions)

    @property
    def targets(self) -> tuple[Path, ...]:
        """Its result files, in the order in which they are written: the JSON, if any, last."""
        return tuple(self.folder / f"{self.stem}{exporter.suffix}" for exporter in exporters(self.formats).values())


def plan_outputs(
    inputs: Sequence[Path],
    out: Path,
    formats: Sequence[str] = DEFAULT_FORMATS,
    objects: ObjectOptions | None = None,
) -> tuple[ImageJob, ...]:
    """Find the images among the inputs, searching folders, and give each a place below `out`. Writes no results.

    The place is the image's path relative to the common parent of all inputs; an image's parent is its folder, a
    folder's is itself, so that adding an image to a folder does not move the results of others. Results are named after
    the image's stem: `photo.jpg` gets `photo.json`. If files of two images would have one name, ignoring case, both
    keep their suffix: `photo.jpg.json` and `photo.png.json`; if that does not help, or a name is too long, it contains
    a digest of the image's path.
    Links to folders are followed, each real folder being searched once. Entries that cannot be searched or opened
    (dangling links, locked folders, pipes) become jobs with a problem. Hidden files, earlier results and `out` are
    skipped.
    over.

    Args:
        inputs: Images and folders.
        out: Folder for the results.
        formats: Names of `goca.exports.EXPORTERS`; for data sets, each image gets the files that they are made from.
        objects: How regions become objects, in formats that have them.

    Raises:
        GocaError: A format is unknown or needs a package, an input does not exist, a folder has no images, an image is
            named twice, results would overwrite an input, or `out` cannot be written.
    """
    for exporter in exporters(formats).values():
        exporter.check()
    of_each, objects = image_formats(formats), objects or ObjectOptions()
    _refuse_missing(inputs)
    sources = [(image, root, problem) for path in inputs for image, root, problem in _sources(path, out)]
    parent = os.path.commonpath([_absolute(root) for _, root, _ in sources])
    _refuse_same(image for image, _, _ in sources)
    jobs = _without_collisions(
        [
            ImageJob(
                image, out / os.path.relpath(_absolute(image.parent), parent), image.stem, of_each, problem, objects
            )
            for image, _, problem in sources
        ],
        parent,
    )
    _refuse_overwriting(jobs)
    for folder in dict.fromkeys(job.folder for job in jobs if job.problem is None):
        check_writable(folder)
    return jobs


def plan_datasets(
    jobs: Sequence[ImageJob], out: Path, formats: Sequence[str], stem: str = "dataset"
) -> dict[str, Path]:
    """{format: path in `out`} of the data sets among the formats.

    Raises:
        GocaError: An image's results would be in one, or it would replace a folder that is not goca's.
    """
    targets = {name: out / f"{stem}{exporter.suffix}" for name, exporter in dataset_formats(formats).items()}
    if not targets:
        return {}
    taken: dict[str, Path] = {}  # {path: the image whose results are there}
    for job in jobs:
        for result in job.targets:
            taken.setdefault(_key(str(result)), job.image)
        for folder in (job.folder, *job.folder.parents):
            taken.setdefault(_key(str(folder)), job.image)
    for name, target in targets.items():
        EXPORTERS[name].check_target(target)
        if (image := taken.get(_key(str(target)))) is not None:
            raise GocaError(
                f"the results of {image} would be where the data set {target} goes: choose another name for it, or "
                "other formats",
                "formats",
            )
    return targets


def dataset_names(jobs: Sequence[ImageJob], out: Path) -> dict[ImageJob, tuple[str, str]]:
    """(path relative to the common folder of all images, stem in a data set) of each image.

    A data set's files are in one folder: the stem of an image in a subfolder contains the folder's name, `sub__photo`.
    If two stems would be the same, ignoring case, the later one contains a digest of the image's path.
    """
    names: dict[ImageJob, tuple[str, str]] = {}
    taken: set[str] = set()
    for job in jobs:
        folder = Path(os.path.relpath(job.folder, out))
        path = folder / job.image.name
        stem = short_stem(storable("__".join((*folder.parts, job.stem))), (".jpg",))
        if _key(stem) in taken:
            digest = f"-{blake2b(os.fsencode(path), digest_size=4).hexdigest()}"
            stem = short_stem(stem, (f"{digest}.jpg",)) + digest
        taken.add(_key(stem))
        names[job] = path.as_posix(), stem
    return names


def check_writable(folder: Path) -> None:
    """Raise GocaError unless files can be written to the folder. Tries it, as permissions alone do not tell."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise GocaError(f"cannot write to {folder}: {reason}; choose another output folder", hint="out") from None
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


# --- Inputs


def _refuse_missing(inputs: Sequence[Path]) -> None:
    # os.path returns False for a name that the system refuses, while pathlib raises OSError.
    missing = [
        f"{path} (a dangling link)" if os.path.islink(path) else str(path)  # noqa: PTH114
        for path in inputs
        if not os.path.exists(path)  # noqa: PTH110
    ]
    if missing:
        raise GocaError(f"no image or folder {', '.join(missing)}: check the path")


def _sources(path: Path, out: Path) -> Iterator[tuple[Path, Path, str | None]]:
    """(image, root, problem) for each image that an input names."""
    if not path.is_dir():
        require_regular(path)
        yield path, path.parent, None
        return
    entries = _search(path, out)
    if not any(problem is None for problem in entries.values()):
        problems = "".join(f"; {problem}" for problem in [*entries.values()][:1])
        raise GocaError(f"no images in {path}: name a folder with images{problems}")
    for image, problem in sorted(entries.items()):
        yield image, path, problem


def _search(folder: Path, out: Path) -> dict[Path, str | None]:
    """The images below a folder, and what cannot be searched or opened, with the reason."""
    entries: dict[Path, str | None] = {}
    visited: set[tuple[int, int]] = set()
    # The output folder is only searched if the user names it, or a folder in it.
    results = Path(os.path.realpath(out))
    wanted = Path(os.path.realpath(folder)).is_relative_to(results)
    # Links to folders come after all real folders, so that they do not move other images' results.
    real, linked = [folder], list[Path]()
    while real or linked:
        current = real.pop() if real else linked.pop(linked.index(min(linked)))
        if not wanted and Path(os.path.realpath(current)).is_relative_to(results):
            continue
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            names = os.listdir(current)  # noqa: PTH208 - a folder that cannot be listed raises here, not later
        except OSError as error:
            entries[current] = f"{current} is a folder that cannot be read: {error.strerror}"
            continue
        for path in (current / name for name in names if not name.startswith(".")):
            try:
                mode = path.stat().st_mode
            except OSError as error:
                if _may_be_wanted(path):
                    dangling = isinstance(error, FileNotFoundError) and path.is_symlink()
                    entries[path] = (
                        f"{path} is a link to {path.readlink()}, which does not exist"
                        if dangling
                        else (f"{path} cannot be opened: {error.strerror}")
                    )
                continue
            if stat.S_ISDIR(mode):
                if (path / MARKER).is_file():
                    continue  # a data set that an earlier run made
                (linked if path.is_symlink() else real).append(path)
            elif _is_image(path):
                regular = stat.S_ISREG(mode)
                entries[path] = None if regular else f"{path} is a pipe, a socket or a device, not an image file"
    return entries


def _is_image(path: Path) -> bool:
    """Whether a file is an image, by its name; earlier results are not."""
    return path.suffix.lower() in _SUFFIXES and not path.name.endswith(_EARLIER_RESULTS)


def _may_be_wanted(path: Path) -> bool:
    """Whether an unreadable entry may be an image or a folder, as its name is not that of another kind of file."""
    return _is_image(path) or mimetypes.guess_type(path.name)[0] is None


def _refuse_same(images: Iterator[Path]) -> None:
    named: dict[str, Path] = {}
    for image in images:
        path = _absolute(image)
        if path in named:
            raise GocaError(f"{named[path]} and {image} are the same file: name it once")
        named[path] = image


# --- Names of results


def _without_collisions(jobs: Sequence[ImageJob], parent: str) -> tuple[ImageJob, ...]:
    """The jobs with stems such that no two files, nor a file and a folder, have the same name."""
    stems = [_stems(job.image, parent) for job in jobs]
    levels = [0] * len(jobs)
    folders = {folder: _key(_absolute(folder)) for job in jobs for folder in (job.folder, *job.folder.parents)}
    taken = {os.path.split(key) for key in folders.values()}
    while True:
        named = tuple(replace(job, stem=stems[i][levels[i]]) for i, job in enumerate(jobs))
        files = [
            [(folders[job.folder], _key(target.name)) for target in job.targets] if job.problem is None else []
            for job in named
        ]
        counts = Counter(file for of_job in files for file in of_job)
        colliding = [
            i
            for i, of_job in enumerate(files)
            if levels[i] + 1 < len(stems[i]) and any(counts[file] > 1 or file in taken for file in of_job)
        ]
        if not colliding:
            return named
        for i in colliding:
            levels[i] += 1


def _stems(image: Path, parent: str) -> tuple[str, str, str]:
    """Possible stems of an image's results, from the first choice to one that is unique."""
    path = os.path.relpath(_absolute(image), parent)
    digest = f"-{blake2b(os.fsencode(path), digest_size=4).hexdigest()}"
    stem, name, unique = (
        short_stem(stem, _EARLIER_RESULTS) for stem in (image.stem, image.name, f"{image.name}{digest}")
    )
    return stem, name, unique


def _refuse_overwriting(jobs: Sequence[ImageJob]) -> None:
    # Links to folders are followed; a link to the image itself would be replaced.
    folders = {folder for job in jobs for folder in (job.folder, job.image.parent)}
    real = {folder: _key(os.path.realpath(folder)) for folder in folders}
    images = {(real[job.image.parent], _key(job.image.name)): job.image for job in jobs}
    for job in jobs:
        for target in job.targets if job.problem is None else ():
            if overwritten := images.get((real[job.folder], _key(target.name))):
                raise GocaError(
                    f"{job.image} would overwrite {overwritten} with its results: choose another output folder",
                    hint="out",
                )


def _key(name: str) -> str:
    """A key that is equal for names that some file systems do not tell apart, by case or Unicode normalisation."""
    return normalize("NFC", normalize("NFC", name).casefold())


def _absolute(path: Path) -> str:
    """The absolute path without following links: two links to one image are two images with separate results."""
    return os.path.abspath(path)  # noqa: PTH100
