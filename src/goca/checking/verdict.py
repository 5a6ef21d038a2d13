"""The outcome of a check."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from goca.imaging import html

Status = Literal["passed", "warned", "failed", "skipped"]


@dataclass(frozen=True)
class Verdict(html.Row):
    """The outcome of one check.

    Attributes:
        name: Name of the check.
        status: "warned" is a pass that deserves a look; "skipped" means that nothing could be measured.
        measured: {quantity: value}, plain numbers or text; the first one decides.
        threshold: The condition on the values, in words.
        explanation: What was observed and, for a failure, what it means and what to do.
    """

    name: str
    status: Status
    measured: Mapping[str, float | int | str]
    threshold: str
    explanation: str

    def columns(self) -> dict[str, str]:
        """The verdict as text, {column: cell}."""
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
    """A verdict: passed if the threshold holds, else `otherwise`, with the matching explanation."""
    status: Status = "passed" if holds else otherwise
    return Verdict(name, status, measured, threshold, passed if holds else failed)


def skipped(name: str, why: str) -> Verdict:
    """The verdict of a check that does not apply to the model."""
    return Verdict(name, "skipped", {}, "", why)
