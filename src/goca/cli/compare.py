"""`goca compare`: runs of `goca evaluate` side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from goca.cli import arguments
from goca.cli.console import console, interval, session, table
from goca.errors import GocaError


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders that goca evaluate --out has written.")],
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the mIoU of each run with its interval; needs matplotlib.", show_default=False
        ),
    ] = None,
    as_json: arguments.JsonOption = False,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Rank runs of goca evaluate.

    The runs must be of one protocol on the same images. Prints their mIoU with its confidence interval, and paired
    differences to the first run.
    """
    with session(verbose):
        _run(runs, plot, as_json)


def _run(folders: Sequence[Path], plot: Path | None, as_json: bool) -> None:
    """Print runs side by side, and draw them if there is a file to draw to."""
    from goca.evaluation import compare as side_by_side

    if len(folders) < 2:
        raise GocaError("a single run cannot be compared: name two or more")
    runs = [side_by_side.load_run(folder) for folder in folders]
    comparison = side_by_side.compare(runs)
    protocol = runs[0].report.protocol
    if plot is not None:
        from goca.evaluation.plot import plot as draw

        draw(
            comparison, f"{protocol.dataset} {protocol.split}, {protocol.images} images, protocol {protocol.name}", plot
        )
    if as_json:
        print(json.dumps(protocol.with_rows(comparison)))
        return
    rows = table("run", "recipe, model", "mIoU", "95 %", "accuracy", "threshold", "to the first", "95 %")
    for row in comparison:
        rows.add_row(
            row.run,
            row.name,
            f"{row.miou:.3f}",
            interval(row.ci95),
            f"{row.pixel_accuracy:.3f}",
            row.threshold,
            f"{row.gain:+.3f}",
            "[{:+.3f}, {:+.3f}]".format(*row.gain_ci95),
        )
    page = console()
    page.print(rows)
    for line in protocol.lines():
        page.print(line, soft_wrap=True)
    if plot is not None:
        page.print(str(plot), soft_wrap=True)
