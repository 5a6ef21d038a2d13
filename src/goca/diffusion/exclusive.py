"""Borrowing a pipeline that belongs to the user: exclusive access, restored attributes, patched attributes."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from goca.errors import GocaError

# One lock for each pipeline: two segmenters may share it.
_LOCKS: "WeakKeyDictionary[Any, RLock]" = WeakKeyDictionary()

_LOCKS_LOCK = RLock()

_FOR_USER: "WeakSet[Any]" = WeakSet()


@contextmanager
def exclusive(pipeline: Any, for_user: bool = False) -> Iterator[None]:
    """Exclusive access to a user's pipeline for this thread; others wait.

    With `for_user` it is the user, not goca, who calls the pipeline meanwhile.

    Raises:
        GocaError: Inside a block that keeps the pipeline for the user.
    """
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(pipeline, RLock())
    with lock:
        if pipeline in _FOR_USER:
            raise GocaError("this pipeline is being traced: use it after the `with` block")
        try:
            if for_user:
                _FOR_USER.add(pipeline)
            yield
        finally:
            if for_user:
                _FOR_USER.discard(pipeline)


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
    """Replace an attribute of an object for a while; what the user sets there meanwhile stays."""
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
