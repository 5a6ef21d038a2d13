"""What belongs to the user, for a while: a pipeline for one thread, and its attributes as we need them."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from goca.errors import GocaError

# One lock a pipeline, whoever wraps it and how often: two segmenters may share one loaded pipeline.
_LOCKS: "WeakKeyDictionary[Any, RLock]" = WeakKeyDictionary()

_LOCKS_LOCK = RLock()

_LENT: "WeakSet[Any]" = WeakSet()


@contextmanager
def exclusive(pipeline: Any, lend: bool = False) -> Iterator[None]:
    """The pipeline for one thread; others wait. lend: for the user to call, and until then for nobody else.

    Raises GocaError inside another one that lends it.
    """
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(pipeline, RLock())
    with lock:
        if pipeline in _LENT:
            raise GocaError("this pipeline is being traced: ask again behind the `with` block")
        try:
            if lend:
                _LENT.add(pipeline)
            yield
        finally:
            if lend:
                _LENT.discard(pipeline)


@contextmanager
def restoring(pipeline: Any) -> Iterator[Any]:
    """The pipeline, for one call at a time; every attribute of it is put back in the end."""
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
    """An attribute of an object, replaced; whatever the user puts in its place meanwhile stays."""
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
