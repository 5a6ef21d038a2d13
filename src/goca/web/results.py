"""Results that the page keeps, so that they can be shown otherwise or downloaded without the model."""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

from goca.errors import GocaError
from goca.segmentation import Segmentation

Run = dict[str, Segmentation]
"""{stem of the image's name: its segmentation}, all of the same classes."""
MAX_BYTES = 1 << 30
"""Of inspections, and of generations."""
T = TypeVar("T")


@dataclass
class Results(Generic[T]):
    """The latest results of all visitors in a tab. A result is known by a token.

    Attributes:
        again: what a reader does whose result was given up, such as "segment again".
        size: of a result.
        most: the size of all together; the latest one is kept whatever its size.
    """

    again: str
    size: Callable[[T], int]
    most: int
    _kept: OrderedDict[str, T] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def put(self, result: T) -> str:
        """Keep a result, and give up the oldest ones where there are too many."""
        token = secrets.token_urlsafe()
        with self._lock:
            self._kept[token] = result
            while len(self._kept) > 1 and sum(map(self.size, self._kept.values())) > self.most:
                self._kept.popitem(last=False)
        return token

    def get(self, token: str | None) -> T:
        """A result. Raises GocaError where it was given up, or never was."""
        with self._lock:
            result = self._kept.get(token or "")
        if result is None:
            raise GocaError(f"there is no result here any more: {self.again}")
        return result


def pixels(run: Run) -> int:
    """Of all images of a run."""
    return sum(result.labels.size for result in run.values())
