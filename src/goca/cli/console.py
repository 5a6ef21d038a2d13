"""How the commands print: results on stdout; mistakes, one line each, and progress on stderr."""

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer

from goca.errors import GocaError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

# Newer typers bring a private click: what typer does not export is reached through what it does.
UsageError: Any = typer.BadParameter.__mro__[1]
_click_globals: Any = import_module(f"{UsageError.__module__.rpartition('.')[0]}.globals")

_WIDE = 100  # columns where stdout is not a terminal


def say(text: str) -> None:
    """Print one line on stderr, however long."""
    print("goca:", " ".join(text.splitlines()), file=sys.stderr, flush=True)


def described(error: GocaError) -> str:
    """The error's message, with the option of the running command that its hint stands for, if there is one."""
    context = _click_globals.get_current_context(silent=True)
    if error.hint is None or context is None:
        return str(error)
    for parameter in context.command.params:
        flags = [flag for flag in parameter.opts if flag.startswith("--")]
        if parameter.name == error.hint and flags:
            return f"{error} ({flags[0]})"
    return str(error)


@contextmanager
def session(verbose: bool) -> Iterator[None]:
    """Run a command in this: libraries are silent unless verbose, and an exception is one line and an exit code."""
    try:
        with nullcontext() if verbose else _silence():
            yield
    except GocaError as error:
        say(described(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say("stopped")
        raise typer.Exit(130) from None
    except (typer.Exit, BrokenPipeError):
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


def console() -> "Console":
    """The console on stdout; it prints text without markup or highlighting."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDE
    return Console(width=width, markup=False, highlight=False, emoji=False)


def show(*parts: "str | Table") -> None:
    """Print lines and tables on stdout; a line is not broken, however long."""
    page = console()
    for part in parts:
        page.print(part, soft_wrap=isinstance(part, str))


def table(*columns: str, figures: int = 0) -> "Table":
    """An empty table whose last columns, `figures` of them, are kept whole; other text that is too long is wrapped."""
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
        """Shown only where it is known how much there is to do: "0/?" tells nobody anything."""

        def __init__(self, column: bars.ProgressColumn) -> None:
            self.column = column
            super().__init__(column.get_table_column().copy())

        def render(self, task: bars.Task) -> Any:
            return self.column(task) if task.total is not None else Text()

    disable = hidden or not sys.stderr.isatty()
    return bars.Progress(
        bars.SpinnerColumn(),
        bars.TextColumn("{task.description}", markup=False),
        WithTotal(bars.BarColumn()),
        WithTotal(bars.MofNCompleteColumn()),
        bars.TimeElapsedColumn(),
        WithTotal(bars.TextColumn("left")),
        WithTotal(bars.TimeRemainingColumn()),
        console=Console(stderr=True, quiet=disable),
        transient=True,
        redirect_stdout=False,  # results belong on stdout, which need not be the same terminal
        disable=disable,
    )


@contextmanager
def paused(bar: "Progress") -> Iterator[None]:
    """Hide the display while something is printed."""
    bar.stop()
    try:
        yield
    finally:
        bar.start()


def interval(bounds: Sequence[float], sign: str = "") -> str:
    """A confidence interval: [0.123, 0.456], or with sign "+" that of a difference: [-0.123, +0.456]."""
    return "[{}]".format(", ".join(f"{bound:{sign}.3f}" for bound in bounds))


def percentage(value: float, bounds: Sequence[float], sign: str = "") -> str:
    """A score and its confidence interval in per cent: 60.7 [58.1, 63.2], or with sign "+": +1.5 [-0.3, +3.2]."""
    return "{} [{}]".format(f"{100 * value:{sign}.1f}", ", ".join(f"{100 * bound:{sign}.1f}" for bound in bounds))
