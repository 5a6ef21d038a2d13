"""Results that the page keeps, so that they can be restyled or downloaded without running the model."""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

from goca.errors import GocaError
from goca.segmentation import Segmentation

Run = dict[str, Segmentation]
"""{stem of the image's name: its segmentation}, all with the same classes."""
MAX_BYTES = 1 << 30
"""Most bytes of all inspections, and of all generations."""
T = TypeVar("T")


@dataclass
class Results(Generic[T]):
    """The latest results of all visitors in a tab. A token identifies a result.

    Attributes:
        again: What a visitor whose result was dropped has to do, such as "segment again".
        size: Function that gives a result's size.
        most: Largest size of all results together; the latest one is kept whatever its size.
    """

    again: str
    size: Callable[[T], int]
    most: int
    _kept: OrderedDict[str, T] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def put(self, result: T) -> str:
        """Keep a result, and drop the oldest ones if there are too many; returns its token."""
        token = secrets.token_urlsafe()
        with self._lock:
            self._kept[token] = result
            while len(self._kept) > 1 and sum(map(self.size, self._kept.values())) > self.most:
                self._kept.popitem(last=False)
        return token

    def get(self, token: str | None) -> T:
        """The result of a token. Raises GocaError if it was dropped or never existed."""
        with self._lock:
            result = self._kept.get(token or "")
        if result is None:
            raise GocaError(f"the result has expired: {self.again}")
        return result


def pixels(run: Run) -> int:
    """The number of pixels of all images of a run."""
    return sum(result.labels.size for result in run.values())
