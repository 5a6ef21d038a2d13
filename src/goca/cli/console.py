"""How the commands speak: results on stdout, one line for a mistake on stderr, progress for watchers."""

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import typer

from goca.errors import GocaError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

# Newer typers carry a private click of their own: its UsageError is reached through what is public.
UsageError: Any = typer.BadParameter.__mro__[1]

_WIDE = 100  # columns where stdout is no terminal


def say(text: str) -> None:
    """One line on stderr, however long."""
    print("goca:", " ".join(text.splitlines()), file=sys.stderr, flush=True)


def described(error: GocaError) -> str:
    """The error's message, and the flag that its hint stands for."""
    return str(error) if error.hint is None else f"{error} (--{error.hint.replace('_', '-')})"


@contextmanager
def session(verbose: bool) -> Iterator[None]:
    """What a command runs in: libraries are silent unless verbose, exceptions are a line and an exit code."""
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
    """The console on stdout; it prints text as it is."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDE
    return Console(width=width, markup=False, highlight=False, emoji=False)


def table(*columns: str) -> "Table":
    """An empty table that cuts nothing: what is too long for its column goes on below."""
    from rich import box
    from rich.table import Column, Table

    return Table(*(Column(name, overflow="fold") for name in columns), box=box.SIMPLE, pad_edge=False)


def progress(hidden: bool) -> "Progress":
    """A progress display on stderr, which vanishes when done; none unless stderr is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    disable = hidden or not sys.stderr.isatty()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True, quiet=disable),
        transient=True,
        redirect_stdout=False,  # results belong on stdout, which need not be the same terminal
        disable=disable,
    )


@contextmanager
def paused(bar: "Progress") -> Iterator[None]:
    """Take the display away while something is printed."""
    bar.stop()
    try:
        yield
    finally:
        bar.start()
