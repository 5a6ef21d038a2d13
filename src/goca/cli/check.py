"""`goca models --check MODEL`: whether a checkpoint is read correctly, one verdict per line."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from goca.cli import arguments
from goca.cli.console import progress, say, show, show_json, table
from goca.errors import GocaError

if TYPE_CHECKING:
    from goca.checking import Subject, Verdict


def check_checkpoint(
    model: str, sheet: Path | None, size: int | None, device: str | None, dtype: str | None, as_json: bool
) -> bool:
    """Check a model, print the verdicts and draw a sheet; returns whether no check failed.

    Raises:
        GocaError: There is no such model, it is not supported, or the sheet cannot be written.
    """
    arguments.check_model(model, None, device, dtype)
    if sheet is not None:
        _check_writable(sheet)
    from goca import checking
    from goca.diffusion.loading import load, without_bars

    subject, verdicts = None, list["Verdict"]()
    with progress(hidden=as_json) as bar:
        task = bar.add_task(f"loading {model}", total=None)
        try:
            with without_bars() if as_json else nullcontext():
                pipeline = load(model, device, dtype)
        except GocaError as error:
            if not Path(model).exists() or error.hint is not None:
                raise
            verdicts.append(checking.incomplete(error))
        else:
            verdicts.append(checking.complete())
            subject = checking.Subject(pipeline, size)
            for number, name in enumerate(checking.CHECKS):
                bar.update(task, description=name, completed=number, total=len(checking.CHECKS))
                verdicts += checking.check(subject, [name])
    if as_json:
        show_json(checking.document(verdicts, model, subject))
    else:
        _print(verdicts)
    if subject is not None and sheet is not None:
        with progress(hidden=as_json) as bar:
            bar.add_task(f"drawing {sheet}", total=None)
            _draw(subject, sheet)
    return all(verdict.status != "failed" for verdict in verdicts)


def _check_writable(path: Path) -> None:
    """Raise GocaError for a sheet that cannot be written, before minutes are spent on it."""
    from goca.image_jobs import check_writable

    if path.is_dir():
        raise GocaError(f"{path} is a folder: name a file", "sheet")
    if path.suffix.lower() != ".png":
        raise GocaError(f"the sheet is a PNG, but {path} has another suffix: name it {path.stem}.png", "sheet")
    try:
        check_writable(path.parent)
    except GocaError as error:
        raise GocaError(str(error), "sheet") from None


def _draw(subject: "Subject", path: Path) -> None:
    """Write the sheet; if nothing can be drawn, the verdicts say why."""
    from goca.checking import sheet
    from goca.imaging.draw import png
    from goca.storage.atomic import write_atomic

    try:
        content = png(sheet(subject))
    except Exception as error:  # a faulty model may raise anything
        say(f"the sheet could not be drawn: {type(error).__name__}: {error}")
        return
    write_atomic({path: content})


def _print(verdicts: Sequence["Verdict"]) -> None:
    rows = table("check", "verdict", "measured", "threshold")
    for verdict in verdicts:
        # The other measurements are in the JSON.
        name, value = next(iter(verdict.measured.items()), ("", ""))
        measured = f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        rows.add_row(verdict.name, verdict.status, measured, verdict.threshold)
    show(rows)
    show(*(f"{each.name}: {each.status}, {each.explanation}" for each in verdicts if each.status != "passed"))
    failed = sum(verdict.status == "failed" for verdict in verdicts)
    show(
        f"{failed} of {len(verdicts)} checks failed"
        if failed
        else "read correctly, as far as can be told without labels"
    )
