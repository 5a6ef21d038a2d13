"""Results that the page keeps, so that masks can be shown otherwise or downloaded without segmenting again."""

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock

from goca.errors import GocaError
from goca.imaging.files import MAX_PIXELS
from goca.segmentation import Segmentation

Run = dict[str, Segmentation]
"""{stem of the image's name: its segmentation}, all of the same classes."""


@dataclass
class Results:
    """The latest runs of all visitors, at most so many pixels together. A run is known by a token."""

    most: int = MAX_PIXELS
    _runs: OrderedDict[str, Run] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def put(self, run: Run) -> str:
        """Keep a run, and give up the oldest ones where there are too many."""
        token = secrets.token_urlsafe()
        with self._lock:
            self._runs[token] = run
            while len(self._runs) > 1 and sum(map(_pixels, self._runs.values())) > self.most:
                self._runs.popitem(last=False)
        return token

    def get(self, token: str | None) -> Run:
        """A run. Raises GocaError where it was given up, or never was."""
        with self._lock:
            run = self._runs.get(token or "")
        if run is None:
            raise GocaError("there is no result here any more: segment again")
        return run


def _pixels(run: Run) -> int:
    return sum(result.labels.size for result in run.values())
