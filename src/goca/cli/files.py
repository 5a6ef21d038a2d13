"""Inputs to outputs: which images were named, and where each one's results go."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from goca.errors import GocaError

SUFFIXES = (".labels.png", ".overlay.png", ".json")
"""What `Segmentation.save` puts behind an image's stem."""


@dataclass(frozen=True)
class Job:
    """One image, as the user named it, and the folder and stem of its results."""

    image: Path
    folder: Path
    stem: str

    @property
    def targets(self) -> tuple[Path, ...]:
        return tuple(self.folder / f"{self.stem}{suffix}" for suffix in SUFFIXES)


def jobs(inputs: Sequence[Path], out: Path) -> tuple[Job, ...]:
    """The images among the inputs, folders searched, each with its place below `out`.

    A place is the image's path below the common parent of all inputs; an image's parent is its folder, a
    folder's is itself, so that an image more or less in a folder moves no other one's results.
    Nothing stays written.

    Raises:
        GocaError: an input is not there, a folder has no images, results would overwrite each other or an
            input, or `out` cannot be written.
    """
    found = [(image, root) for given in inputs for image, root in _images(given)]
    parent = os.path.commonpath([_absolute(root) for _, root in found])
    planned = []
    for image, _ in found:
        place = out / os.path.relpath(_absolute(image.parent), parent)
        planned.append(Job(image, place, image.stem))
    _refuse_collisions(planned)
    for folder in dict.fromkeys(job.folder for job in planned):
        refuse_unwritable(folder)
    return tuple(planned)


def _images(given: Path) -> Iterator[tuple[Path, Path]]:
    """(image, root) for what one input names."""
    # os.path, because a name that the system refuses is no reason for an OSError here.
    if os.path.isfile(given):  # noqa: PTH113
        yield given, given.parent
    elif os.path.isdir(given):  # noqa: PTH112
        found = _search(given)
        if not found:
            raise GocaError(f"no images in {given}: name a folder that has some")
        yield from ((image, given) for image in found)
    else:
        raise GocaError(f"no image or folder {given}: check the path")


def _search(folder: Path) -> list[Path]:
    from PIL import Image

    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in readable
        # "._photo.jpg" is no image, and a second run takes no results for images.
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.name.endswith(SUFFIXES)
        and path.is_file()
    )


def _refuse_collisions(planned: Sequence[Job]) -> None:
    sources = {_absolute(job.image): job for job in planned}
    writers: dict[str, Job] = {}
    for job in planned:
        for target in map(_absolute, job.targets):
            if target in writers:
                first, second = writers[target].image, job.image
                if _absolute(first) == _absolute(second):
                    raise GocaError(f"{first} and {second} are the same file: name it once")
                raise GocaError(
                    f"{first} and {second} would both be written to {job.targets[0]}: "
                    "rename one, or run them apart with another --out"
                )
            if target in sources:
                victim = sources[target].image
                raise GocaError(f"{job.image} would overwrite {victim} with its results: choose another --out")
            writers[target] = job


def refuse_unwritable(folder: Path) -> None:
    """Try it, and leave nothing behind: permissions alone do not tell."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise GocaError(f"cannot write to {folder}: {reason}; choose another --out") from None
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def _absolute(path: Path) -> str:
    """Without following links: two links to one image are two images, with results of their own."""
    return os.path.abspath(path)  # noqa: PTH100
