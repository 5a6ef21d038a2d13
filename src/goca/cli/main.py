"""The `goca` command: options in, calls to the library, exit codes out.

0: done. 2: the user's mistake, one line on stderr. 1: ours, or some of many images could not be read.
130: Ctrl-C.
Whatever needs torch is imported inside the commands, so that `goca --help` need not wait for it.
"""

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from goca.cli import arguments, console, files, generate, measure, parsing
from goca.cli.app import app
from goca.errors import GocaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name or class may hold what the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    # Read when torch is loaded. Threads that wait by spinning starve each other where cores are shared: one tiny
    # forward pass took 4.3 CPU-s instead of 0.14 on two busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = app(given, prog_name="goca", standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has gone, as in `goca models | head -1`; Python must not try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except console.UsageError as error:
        message = error.format_message()
        command = getattr(getattr(error, "ctx", None), "command_path", "goca")
        console.say(f"{message.rstrip('.')}; see {command} --help")
        return 2


@app.callback(invoke_without_command=True)
def goca(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", show_default=False)] = False,
) -> None:
    """Segment images by class names with a text-to-image diffusion model, untrained."""
    if version:
        from importlib.metadata import version as version_of

        print(f"goca {version_of('goca')}")
        raise typer.Exit


@app.command()
def segment(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE|DIR",
            show_default=False,
            help="Images, and folders to search for them; hidden ones and earlier results are left out.",
        ),
    ],
    classes: Annotated[
        str | None, typer.Option(metavar="NAMES", help='What to look for: "cat, grass".', show_default=False)
    ] = None,
    classes_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help='The same, one a line: "class" or "class: synonym, synonym"; # starts a comment.',
        ),
    ] = None,
    background_classes: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Background classes: they take part but get no label.", show_default=False),
    ] = "",
    background: Annotated[
        str,
        typer.Option(
            metavar="auto|none|T",
            help="The recipe's rule, a class for every pixel, or a score threshold from 0 to 1.",
        ),
    ] = "auto",
    caption: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The prompt, instead of the list of nouns; it must have them all.",
            show_default=False,
        ),
    ] = None,
    model: arguments.Model = "bundled",
    recipe: arguments.Recipe = "goca",
    timestep: arguments.Timestep = None,
    seeds: arguments.Seeds = 1,
    flip: arguments.Flip = False,
    window: arguments.Window = False,
    refine_edges: arguments.RefineEdges = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where NAME.labels.png, NAME.overlay.png and NAME.json go.")
    ] = Path("goca-out"),
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Keep finished results and do the rest; results of another question or recipe stop the run.",
            show_default=False,
        ),
    ] = False,
    json: Annotated[
        bool,
        typer.Option("--json", help="Print one line of JSON an image, and nothing else.", show_default=False),
    ] = False,
    device: arguments.Device = None,
    dtype: arguments.Dtype = None,
    size: arguments.Size = None,
    seed: arguments.Seed = 0,
    batch: arguments.Batch = 4,
    verbose: arguments.Verbose = False,
) -> None:
    """Label the pixels of images with class names.

    Each image gets an indexed PNG of its own size, an overlay to look at and a JSON file. Below --out they
    keep the images' paths under the common parent of what was named.
    """
    with console.session(verbose):
        jobs = files.jobs(images, out)
        asked = parsing.Asked(
            parsing.classes(classes, classes_file),
            parsing.names(background_classes),
            parsing.background(background),
            caption,
        )
        timesteps = parsing.timesteps(timestep)
        from goca.cli.segment import Model, run

        chosen = Model(
            model,
            recipe,
            device,
            dtype,
            batch,
            {
                "timestep": timesteps,
                "size": size,
                "seed": seed,
                "seeds": seeds,
                "flip": flip,
                "window": window,
                "refine_edges": refine_edges,
            },
        )
        whole = run(jobs, asked, chosen, as_json=json, resume=resume)
    if not whole:
        raise typer.Exit(1)


@app.command()
def models(
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Segment an image with a tiny random pipeline of every family.",
            show_default=False,
        ),
    ] = False,
    probe: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Print the facts of an unlisted denoiser, found by running the pipeline in this diffusers folder.",
            show_default=False,
        ),
    ] = None,
    markdown: arguments.AsMarkdown = False,
    json: arguments.AsJson = False,
    verbose: arguments.Verbose = False,
) -> None:
    """List the known checkpoints, check the families, or probe a denoiser that no family lists.

    Any other checkpoint of a family that goca reads works too, with settings by that family's rule.
    """
    with console.session(verbose):
        if markdown and (check or json):
            raise GocaError(f"--markdown and --{'check' if check else 'json'} exclude each other: give one of them")
        if probe and (check or markdown or json):
            raise GocaError("--probe prints Python source: give it alone")
        from goca.cli import models as shown

        if probe:
            print(shown.probed(probe), end="")
            whole = True
        elif check:
            from goca.testing.tiny import BUILDERS

            whole = shown.report(BUILDERS, as_json=json)
        elif markdown:
            print(shown.families())
            whole = True
        else:
            whole = shown.listing(as_json=json)
    if not whole:
        raise typer.Exit(1)


measure.register(app)
generate.register(app)
