"""`goca compare`: runs of `goca evaluate` side by side."""

from pathlib import Path
from typing import Annotated

import typer

from goca.cli import arguments
from goca.cli.console import interval, session, show, show_json, table
from goca.errors import GocaError


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders that goca evaluate --out has written.")],
    plot: Annotated[
        Path | None,
        arguments.option(metavar="FILE", help="Draw the mIoU of each run with its interval; needs matplotlib."),
    ] = None,
    as_json: arguments.JsonOption = False,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Rank runs of goca evaluate.

    The runs must be of one protocol on the same images. Prints their mIoU with its confidence interval, and paired
    differences to the first run.
    """
    with session(verbose):
        from goca.evaluation import compare as side_by_side

        if len(runs) < 2:
            raise GocaError("a single run cannot be compared: name two or more")
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
        rows = table("run", "recipe, model", "mIoU", "95 %", "accuracy", "threshold", "to the first", "95 %")
        for row in comparison:
            miou, accuracy, gain = f"{row.miou:.3f}", f"{row.pixel_accuracy:.3f}", f"{row.gain:+.3f}"
            gain_ci95 = interval(row.gain_ci95, sign="+")
            rows.add_row(row.run, row.name, miou, interval(row.ci95), accuracy, row.threshold, gain, gain_ci95)
        show(rows, *protocol.lines())
        if plot is not None:
            show(str(plot))
