"""The `goca` command as tests run it."""

import sys
from dataclasses import dataclass
from pathlib import Path

GOCA_SCRIPT = Path(sys.executable).with_name("goca")


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, and what it wrote to stdout and to stderr."""

    code: int
    out: str
    err: str

    def mistake(self) -> str:
        """The one line that a user's mistake gets; nothing else may have happened."""
        assert (self.code, self.out) == (2, "")
        return self.line()

    def line(self) -> str:
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1
        return self.err
