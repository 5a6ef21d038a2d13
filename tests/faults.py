"""A process that is killed while it writes, and a disk that fills up."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WRITES = ((os, "write"), (os, "replace"), (os, "rename"), (os, "unlink"), (os, "remove"), (Path, "write_bytes"))
"""Whatever writes, renames or takes away a file. What is written through `open` is not among them."""
LIMIT = 100


class KilledError(BaseException):
    """Nothing that tidies up after an error may run behind it."""


@contextmanager
def killed_after(steps: int) -> Iterator[None]:
    """The process makes so many steps of `WRITES`; at the next one, and at any behind it, it is dead."""
    left = iter(range(steps))

    def after(act: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise KilledError
            return act(*args, **options)

        return step

    with pytest.MonkeyPatch.context() as patched:
        for owner, name in WRITES:
            patched.setattr(owner, name, after(getattr(owner, name)))
        yield


def deaths(work: Callable[[int], Any], before: Callable[[int], Any] = lambda steps: None) -> Iterator[int]:
    """0, 1, 2, ...: `work(steps)` was killed after so many steps; ends when it survives. before: called each time."""
    for steps in range(LIMIT):
        before(steps)
        try:
            with killed_after(steps):
                work(steps)
        except KilledError:
            yield steps
        else:
            return
    pytest.fail(f"it still writes after {LIMIT} steps")


@contextmanager
def full_disk(room: int = 0) -> Iterator[None]:
    """There is room for so many files; of the next one three bytes are written."""
    left = iter(range(room))
    whole = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if next(left, None) is not None:
            return whole(path, content)
        whole(path, content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "write_bytes", write)
        yield
