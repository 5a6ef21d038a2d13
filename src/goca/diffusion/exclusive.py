"""Using a pipeline that belongs to the user: exclusive access, restored attributes, patched attributes."""

from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, get_ident
from typing import Any

from goca.diffusion.families import bare
from goca.errors import GocaError

Parts = dict[int, Any]
"""{id: object} of a pipeline and its parts: several pipelines may share a denoiser, text encoder or VAE."""


@dataclass(eq=False)
class _Hold:
    """What a thread has locked. `observed` is the pipeline that the user calls meanwhile, None if goca calls it."""

    thread: int
    parts: Parts
    observed: Any


_CHANGED = Condition()
"""Guards the two below; notified when a lock is released."""
_HOLDS: list[_Hold] = []
_WAITING: dict[int, Parts] = {}
"""{waiting thread: the parts that it waits for}."""


@contextmanager
def exclusive(pipeline: Any, for_user: bool = False, nested: bool = True) -> Iterator[None]:
    """Exclusive access to a user's pipeline and its parts for this thread; other threads wait.

    Args:
        pipeline: The pipeline.
        for_user: Whether the user, not goca, calls the pipeline meanwhile.
        nested: Whether this thread may already have locked a part for a call of another pipeline.

    Raises:
        GocaError: Inside a block that locks the pipeline for the user, or if two threads would wait for each other.
    """
    parts, thread = _parts(pipeline), get_ident()
    hold = _Hold(thread, parts, pipeline if for_user else None)
    with _CHANGED:
        for outer in _HOLDS:
            if outer.thread == thread and outer.observed is not None:
                _check_free(pipeline, outer, nested)
        try:
            while holders := _holders(parts, thread):
                if thread in _blocking(holders):
                    raise GocaError(
                        "another thread has a part of this pipeline and waits for a part that this thread has: "
                        "leave the `with` block of one pipeline before entering that of the other"
                    )
                _WAITING[thread] = parts
                _CHANGED.wait()
        finally:
            _WAITING.pop(thread, None)
        _HOLDS.append(hold)
    try:
        yield
    finally:
        with _CHANGED:
            _HOLDS.remove(hold)
            _CHANGED.notify_all()


def _check_free(pipeline: Any, outer: _Hold, nested: bool) -> None:
    if outer.observed is pipeline:
        raise GocaError(
            "this pipeline is observed by a `with` block around this call, such as `with trace(pipe)`: use it after "
            "the block"
        )
    if not nested and outer.parts.keys() & _parts(pipeline).keys():
        raise GocaError(
            "a pipeline that shares parts with this one is observed by a `with` block around this call, such as "
            "`with trace(pipe)`: use this one after the block"
        )


def _parts(pipeline: Any) -> Parts:
    components = getattr(pipeline, "components", {}).values()
    return {id(part): part for part in (pipeline, *map(bare, components)) if hasattr(part, "__dict__")}


def _holders(parts: Parts, thread: int) -> set[int]:
    """The other threads that have locked one of the parts."""
    return {hold.thread for hold in _HOLDS if hold.thread != thread and hold.parts.keys() & parts.keys()}


def _blocking(threads: Set[int]) -> set[int]:
    """The threads that these wait for, directly or not."""
    blocking: set[int] = set()
    while fresh := {other for thread in threads for other in _holders(_WAITING.get(thread, {}), thread)} - blocking:
        blocking |= fresh
        threads = fresh
    return blocking


@contextmanager
def restoring(pipeline: Any) -> Iterator[Any]:
    """Exclusive access to a pipeline, whose attributes are restored at the end."""
    with exclusive(pipeline):
        attributes = vars(pipeline)
        before = dict(attributes)
        try:
            yield pipeline
        finally:
            for name in attributes.keys() - before.keys():
                del attributes[name]
            attributes.update(before)


@contextmanager
def patched(target: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of an object for a while; a value that the user sets meanwhile is kept."""
    attributes = vars(target)
    before = {name: attributes[name]} if name in attributes else {}
    # DiffusionPipeline.__setattr__ would write the pipeline's configuration as well.
    object.__setattr__(target, name, value)
    try:
        yield
    finally:
        if attributes.get(name) is value:
            del attributes[name]
            attributes.update(before)
