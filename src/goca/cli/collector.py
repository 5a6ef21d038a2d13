"""Python's garbage collector, which waits while a command loads its model.

The libraries and a model are a million objects that stay. Meanwhile the collector would look through them again and
again, for a fifth of the time that loading takes.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def waiting() -> Iterator[None]:
    """Until `go_on`, or the end of the block, nothing is collected; afterwards all is as it was before.

    Where a caller has frozen objects of its own, those that the command froze stay frozen too.
    """
    enabled, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.disable()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        if enabled:
            gc.enable()
        else:
            gc.disable()


def go_on() -> None:
    """Collect again, but leave alone what there is by now; for the end of loading, and nothing if that was before."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
