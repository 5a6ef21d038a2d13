"""The `goca` command: options in, calls to the library, exit codes out.

0: done. 2: the user's mistake, one line on stderr. 1: a fault of goca, images were left out, or results could not be
printed. 130: Ctrl-C.
Modules that need torch are imported inside the commands, so that `goca --help` is quick.
"""

import gc
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from goca.cli import console
from goca.cli.ablate import ablate
from goca.cli.compare import compare
from goca.cli.evaluate import evaluate
from goca.cli.evaluate_generation import evaluate_generation
from goca.cli.generate import generate
from goca.cli.inspect import inspect
from goca.cli.models import models
from goca.cli.prototypes import prototypes
from goca.cli.report import report
from goca.cli.scaling import scaling
from goca.cli.segment import segment
from goca.cli.serve import serve
from goca.cli.settings import settings

# Plain help can be copied, piped and searched, and starts faster.
app = typer.Typer(
    name="goca",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback(invoke_without_command=True)
def goca(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", show_default=False)] = False,
) -> None:
    """Segment images by class names with a text-to-image diffusion model, without training it."""
    if version:
        from importlib.metadata import version as version_of

        console.show(f"goca {version_of('goca')}")
        raise typer.Exit


COMMANDS = (
    segment,
    inspect,
    serve,
    generate,
    prototypes,
    settings,
    evaluate,
    evaluate_generation,
    compare,
    report,
    ablate,
    scaling,
    models,
)
for command in COMMANDS:
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    console.open_streams()
    # Set before torch reads it. Threads that wait by spinning starve each other on shared cores: one tiny forward pass
    # took 4.3 CPU-s instead of 0.14 on two busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        with console.printing():  # the help, which click prints
            return app(words, prog_name="goca", standalone_mode=False) or 0
    except console.OutputError as error:
        if not error.silent:
            console.say(f"cannot print the results ({error}): redirect them to another file")
        return 1
    except console.UsageError as error:
        message = error.format_message()
        command = getattr(getattr(error, "ctx", None), "command_path", "goca")
        console.say(f"{message.rstrip('.')}; see {command} --help")
        return 2
    finally:
        if arguments is None:
            gc.freeze()  # the process ends here: a last collection would only cost time
