"""What a check says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from goca.imaging import html

Status = Literal["passed", "warned", "failed", "skipped"]


@dataclass(frozen=True)
class Verdict(html.Row):
    """The outcome of one check.

    Attributes:
        name: Of the check.
        status: "warned" is a pass that somebody should look at; "skipped" says that nothing could be measured.
        measured: {quantity: its value}, plain numbers or text; the first is the one that decides.
        threshold: What the values are held against, in words.
        explanation: What was seen, and for a failure what it means and what to do.
    """

    name: str
    status: Status
    measured: Mapping[str, float | int | str]
    threshold: str
    explanation: str

    def columns(self) -> dict[str, str]:
        """The verdict as texts."""
        measured = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.measured.items()
        )
        return {
            "check": self.name,
            "status": self.status,
            "measured": measured,
            "threshold": self.threshold,
            "explanation": self.explanation,
        }

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain numbers, strings and dictionaries."""
        return {**vars(self), "measured": dict(self.measured)}


def judged(
    name: str,
    holds: bool,
    measured: Mapping[str, float | int | str],
    threshold: str,
    passed: str,
    failed: str,
    otherwise: Status = "failed",
) -> Verdict:
    """A verdict: passed where the threshold holds, `otherwise` where not, with the explanation that belongs to it."""
    status: Status = "passed" if holds else otherwise
    return Verdict(name, status, measured, threshold, passed if holds else failed)


def skipped(name: str, why: str) -> Verdict:
    """A verdict of a check that does not apply to the model."""
    return Verdict(name, "skipped", {}, "", why)
