"""`goca report`: a run as one page of HTML."""

from pathlib import Path
from typing import Annotated

import typer

from goca.cli import arguments
from goca.cli.console import progress, session, show, show_json
from goca.errors import GocaError


def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            show_default=False,
            parser=arguments.path,
            help="Folder written by goca segment or goca evaluate.",
        ),
    ],
    out: Annotated[
        Path | None, arguments.option(metavar="FILE", help="Page to write.  [default: report.html in DIR]")
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, max=2000, help="Number of images to show, the worst first.")
    ] = 200,
    as_json: arguments.JsonOption = False,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Write an HTML page about a run: totals, settings, classes and images.

    The page is a single file that loads nothing. For an evaluation it shows the images with the lowest IoU; for a
    folder, images that were left out, have damaged or missing results, or have the least evidence.
    """
    with session(verbose):
        from goca.image_jobs import check_writable
        from goca.report import require_folder, write_report

        require_folder(folder)
        file = folder / "report.html" if out is None else out
        if file.is_dir():
            raise GocaError(f"{file} is a folder: name a file", "out")
        if file.suffix.lower() not in (".html", ".htm"):
            raise GocaError(f"the report is HTML, but {file} has another suffix: name it {file.stem}.html", "out")
        check_writable(file.parent)
        with progress(hidden=as_json) as bar:
            bar.add_task(f"reading {folder}", total=None)
            written = write_report(folder, file, limit)
        if as_json:
            show_json(
                {"file": str(written.file), "kind": written.kind, "images": written.images, "shown": written.shown}
            )
        else:
            show(f"{written.shown} of {written.images} images, the worst first", str(written.file))
