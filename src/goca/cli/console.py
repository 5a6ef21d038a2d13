"""How the commands print: results go to stdout, errors (one line each) and progress to stderr.

Everything printed passes through here, so that no file name, class or server message can control a terminal.
"""

import io
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from goca.errors import GocaError
from goca.text.clean import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from goca.evaluation.runner import Stage

# Newer versions of typer vendor click: what typer does not export is reached through what it does export.
UsageError: Any = typer.BadParameter.__mro__[1]
_click_globals: Any = import_module(f"{UsageError.__module__.rpartition('.')[0]}.globals")

_WIDE = 100  # columns where stdout is not a terminal


class OutputError(Exception):
    """Results cannot be printed: stdout is closed, its disk is full, or (`silent`) its reader has gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.silent = isinstance(error, BrokenPipeError)


def open_streams() -> None:
    """Make all three standard streams usable: escape characters that the encoding lacks, and open closed streams.

    Otherwise the system would reuse a closed stream's number for the next file, and output would end up in it.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Input is empty and messages are dropped; results must not be, so writing them fails.
            number = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            setattr(sys, name, open(number, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def printing() -> Iterator[None]:
    """Treat an OSError in this block as a failure of stdout: abandon stdout and raise OutputError."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _give_up(sys.stdout)
        raise OutputError(error) from None


def say(text: str) -> None:
    """Print one line on stderr, however long; a failure is ignored, as it could not be reported."""
    try:
        print("goca:", printable(" ".join(text.splitlines())), file=sys.stderr, flush=True)
    except OSError:
        _give_up(sys.stderr)


def say_unlabelled(words: Sequence[str]) -> None:
    """Say which words of a list of classes, if any, do not become classes."""
    if words:
        names = ", ".join(f'"{word}"' for word in words)
        say(f"not a class: {names}; pixels without a class get label 0")


def _give_up(stream: TextIO) -> None:
    """Discard a stream: what it still buffers would be written, and fail, again when Python exits."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def described(error: GocaError) -> str:
    """The error's message, followed by the option of the running command that matches its hint, if any."""
    context = _click_globals.get_current_context(silent=True)
    if error.hint is None or context is None:
        return str(error)
    for parameter in context.command.params:
        flags = [flag for flag in parameter.opts if flag.startswith("--")]
        if parameter.name == error.hint and flags:
            return f"{error} ({flags[0]})"
    return str(error)


def next_stage(bar: "Progress", task: "TaskID", stage: "Stage") -> "TaskID":
    """Replace the stage of a run that is shown by the next one, with a total if it has one."""
    bar.remove_task(task)
    return bar.add_task(stage.name, total=stage.total or None, completed=stage.done)


def first_given(names: Collection[str]) -> str | None:
    """The flag of the first of these parameters that was given on the command line, whatever its value."""
    context = _click_globals.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            return str(parameter.opts[0])
    return None


@contextmanager
def session(verbose: bool) -> Iterator[None]:
    """Context of a command: silences libraries unless verbose, and turns an exception into a line and an exit code."""
    try:
        with nullcontext() if verbose else _silence():
            yield
    except GocaError as error:
        say(described(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say("stopped")
        raise typer.Exit(130) from None
    except (typer.Exit, OutputError):
        raise
    except Exception as error:
        if verbose:
            traceback.print_exc()
        else:
            say(f"unexpected {type(error).__name__}: {error}; run again with -v for the traceback")
        raise typer.Exit(1) from None


@contextmanager
def _silence() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def show(*parts: "str | Table") -> None:
    """Print lines and tables on stdout; lines are never wrapped."""
    from rich.console import Console
    from rich.text import Text

    class Page(Console):
        def render_str(self, text: str, **style: Any) -> Text:  # called for every text, including table cells
            return super().render_str("\n".join(map(printable, text.split("\n"))), **style)

    with printing():
        width = None if sys.stdout.isatty() else _WIDE
        page = Page(width=width, markup=False, highlight=False, emoji=False)
        for part in parts:
            page.print(printable(part) if isinstance(part, str) else part, soft_wrap=isinstance(part, str))


def show_json(value: Any) -> None:
    """Print a line of JSON on stdout."""
    with printing():
        print(json.dumps(value))


def table(*columns: str, figures: int = 0) -> "Table":
    """An empty table. Its last `figures` columns are never wrapped; longer text in the others is."""
    from rich import box
    from rich.table import Column, Table

    texts, numbers = columns[: len(columns) - figures], columns[len(columns) - figures :]
    return Table(
        *(Column(name, overflow="fold") for name in texts),
        *(Column(name, overflow="fold", no_wrap=True, justify="right") for name in numbers),
        box=box.SIMPLE,
        pad_edge=False,
    )


def progress(hidden: bool) -> "Progress":
    """A progress display on stderr that vanishes when done; nothing is shown unless stderr is a terminal."""
    from rich import progress as bars
    from rich.console import Console
    from rich.text import Text

    class WithTotal(bars.ProgressColumn):
        """Shown only if the total is known: "0/?" is of no use."""

        def __init__(self, column: bars.ProgressColumn) -> None:
            self.column = column
            super().__init__(column.get_table_column().copy())

        def render(self, task: bars.Task) -> Any:
            return self.column(task) if task.total is not None else Text()

    class Description(bars.ProgressColumn):
        def render(self, task: bars.Task) -> Text:
            return Text(printable(task.description))

    disable = hidden or not sys.stderr.isatty()
    return bars.Progress(
        bars.SpinnerColumn(),
        Description(),
        WithTotal(bars.BarColumn()),
        WithTotal(bars.MofNCompleteColumn()),
        bars.TimeElapsedColumn(),
        WithTotal(bars.TextColumn("left")),
        WithTotal(bars.TimeRemainingColumn()),
        console=Console(stderr=True, quiet=disable),
        transient=True,
        redirect_stdout=False,  # results go to stdout, which may be another terminal or a file
        disable=disable,
    )


@contextmanager
def paused(bar: "Progress") -> Iterator[None]:
    """Hide the progress display while something is printed."""
    bar.stop()
    try:
        yield
    finally:
        bar.start()


def interval(bounds: Sequence[float], sign: str = "") -> str:
    """A confidence interval: [0.123, 0.456], or with sign "+" that of a difference: [-0.123, +0.456]."""
    return "[{}]".format(", ".join(f"{bound:{sign}.3f}" for bound in bounds))
