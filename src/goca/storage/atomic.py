"""Files written whole or not at all, even if the process that writes them is killed."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from goca.errors import GocaError

SCRATCH = ".goca-"  # how every scratch file's name starts
LONGEST_NAME = 255  # bytes, on every file system in common use


def write_atomic(files: Mapping[Path, bytes]) -> None:
    """Write files that belong together, the last one last: if it exists, all of them are from one run.

    Earlier files of those names stay until all the new ones are complete. Missing folders are created.

    Raises:
        GocaError: The system refuses; the message has the path and the reason.
    """
    scratch = {path: _scratch(path) for path in files}
    *earlier, last = files
    path = last
    try:
        try:
            for path, content in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                scratch[path].write_bytes(content)
            if earlier:
                # A process killed from here on must not leave the earlier last file beside newer ones.
                last.unlink(missing_ok=True)
            for path in files:
                scratch[path].replace(path)
        finally:
            for remainder in scratch.values():
                remainder.unlink(missing_ok=True)
    except OSError as error:
        raise _refusal(path, error) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path for building a file or folder, which replaces `path` when the block ends without an error.

    Raises:
        GocaError: The system refuses to write; the message has the path and the reason.
    """
    scratch = _scratch(path)
    try:
        try:
            yield scratch
            remove(path)
            scratch.replace(path)
        finally:
            remove(scratch)
    except OSError as error:
        raise _refusal(path, error) from error


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder, if it exists. Raises GocaError if the system refuses."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise GocaError(f"cannot delete {path}: {error.strerror}; choose another folder", "out") from error


def write_into(folder: str | Path, files: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Write files of these names into a folder, as `write_atomic` does, and return their paths.

    Raises:
        GocaError: The folder is not a path, or cannot be written.
    """
    if not isinstance(folder, str | os.PathLike):
        raise GocaError(f"{folder!r} is not a folder: give its path", "out")
    paths = {Path(folder) / name: content for name, content in files.items()}
    write_atomic(paths)
    return tuple(paths)


def short_stem(stem: str, suffixes: Iterable[str]) -> str:
    """A stem that makes a valid file name, at most 255 bytes, with each of these suffixes.

    A longer stem is cut, and ends in a hash of the whole, so that different stems stay different.
    """
    room = LONGEST_NAME - max((len(os.fsencode(suffix)) for suffix in suffixes), default=0)
    content = os.fsencode(stem)
    if len(content) <= room:
        return stem
    mark = f"-{blake2b(content, digest_size=4).hexdigest()}"
    kept = stem
    while len(os.fsencode(kept)) > room - len(mark):
        kept = kept[:-1]
    return kept + mark


def sweep(paths: Iterable[Path]) -> None:
    """Remove scratch files that processes killed while writing have left; paths: as for `write_atomic`."""
    prefixes: dict[Path, set[str]] = {}
    for path in paths:
        prefixes.setdefault(path.parent, set()).add(_prefix(path))
    for folder, wanted in prefixes.items():
        for scratch in folder.glob(f"{SCRATCH}*"):
            if scratch.name.rpartition("-")[0] in wanted:
                remove(scratch)


def _scratch(path: Path) -> Path:
    return path.parent / f"{_prefix(path)}-{uuid.uuid4().hex}"


def _refusal(path: Path, error: OSError) -> GocaError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space or choose another folder" if full else "choose another folder"
    return GocaError(f"cannot write {path}: {error.strerror}; {remedy}", "out")


def _prefix(path: Path) -> str:
    """The prefix of a file's scratch files. Always short: the name itself may be as long as the system allows."""
    return f"{SCRATCH}{blake2b(os.fsencode(path.name), digest_size=8).hexdigest()}"
