"""`goca compare`: runs of `goca evaluate` side by side."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goca.cli import arguments
from goca.cli.console import interval, session, show, show_json, table
from goca.errors import GocaError

if TYPE_CHECKING:
    from rich.table import Table

    from goca.evaluation.compare import ComparedRun


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders written by goca evaluate --out.")],
    plot: Annotated[
        Path | None,
        arguments.option(metavar="FILE", help="Plot the mIoU of each run with its interval to FILE; needs matplotlib."),
    ] = None,
    as_json: arguments.JsonOption = False,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Compare runs of goca evaluate.

    The runs must have the same protocol and images. Prints the mIoU of each with its confidence interval, and its
    paired difference to the first run.
    """
    with session(verbose):
        if len(runs) < 2:
            raise GocaError("a single run cannot be compared: name two or more")
        missing = [str(folder) for folder in runs if not os.path.isfile(folder / "run.json")]  # noqa: PTH113
        if missing:
            are = "is not the folder of a run" if len(missing) == 1 else "are not folders of runs"
            raise GocaError(f"{', '.join(missing)} {are}: name folders that goca evaluate --out wrote")
        from goca.evaluation import compare as side_by_side

        loaded = [side_by_side.load_run(folder) for folder in runs]
        comparison = side_by_side.compare(loaded)
        protocol = loaded[0].report.protocol
        if plot is not None:
            from goca.evaluation.plot import plot as draw

            benchmark = f"{protocol.dataset} {protocol.split}, {protocol.images} images, protocol {protocol.name}"
            draw(comparison, benchmark, plot)
        if as_json:
            show_json(protocol.with_rows(comparison))
            return
        names = [f"run {number}: {row.run} ({row.name})" for number, row in enumerate(comparison, start=1)]
        show(*names, comparison_table(comparison), *protocol.lines())
        if plot is not None:
            show(str(plot))


def comparison_table(rows: "Sequence[ComparedRun]") -> "Table":
    """The rows, numbered from 1: long names would leave no room for the figures."""
    table_of_runs = table("run", "mIoU [95 %]", "accuracy", "threshold", "gain over run 1 [95 %]", figures=4)
    for number, row in enumerate(rows, start=1):
        miou, gain = f"{row.miou:.3f} {interval(row.ci95)}", f"{row.gain:+.3f} {interval(row.gain_ci95, sign='+')}"
        table_of_runs.add_row(str(number), miou, f"{row.pixel_accuracy:.3f}", row.threshold, gain if number > 1 else "")
    return table_of_runs
