"""Is a checkpoint read correctly? Checks without ground truth, for weights that could not be tested here.

subject = Subject(load("some/model"))
for verdict in check(subject): ...
"""

from collections.abc import Callable, Iterator, Sequence

from goca.checking import branches, completeness, cost, painting, reading, stability, words
from goca.checking.completeness import complete, incomplete
from goca.checking.report import document, sheet
from goca.checking.subject import Subject
from goca.checking.verdict import Verdict

__all__ = ["CHECKS", "Check", "Subject", "Verdict", "check", "complete", "document", "incomplete", "sheet"]

Check = Callable[[Subject], Verdict]
CHECKS: dict[str, Check] = {
    "weights": completeness.weights,
    "vocabularies": completeness.vocabularies,
    "hook changes nothing": reading.hook,
    "records rebuild outputs": reading.records,
    "weights sum to 1": reading.weights,
    "token indices are right": words.token_indices,
    "states change with words": words.exchange,
    "the text encoder knows words": words.plural,
    "the prompt's branch is read": branches.branch,
    "denoises": painting.denoising,
    "paints what it is told": painting.evidence,
    "sees what it meant to paint": painting.meant_and_seen,
    "same labels with other noise": stability.seeds,
    "same labels mirrored": stability.mirror,
    "the timestep is a good one": stability.timestep,
    "the reference block is a good one": stability.reference,
    "time and memory": cost.cost,
}
"""{name: check}, the quick ones first."""


def check(subject: Subject, names: Sequence[str] = tuple(CHECKS)) -> Iterator[Verdict]:
    """Run checks one after the other; in a notebook, `goca.imaging.html.Rows` shows the verdicts as a table.

    Args:
        subject: The pipeline under test.
        names: Which checks; by default all.

    Yields:
        The verdict of each; a check that raises has failed, and its verdict says why.
    """
    for name in names:
        try:
            verdict = CHECKS[name](subject)
        except Exception as error:  # any failure is the check's result
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            verdict = Verdict(name, "failed", {}, "", f"the check raised an error ({reason})")
        yield verdict
