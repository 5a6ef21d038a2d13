"""`goca generate`: its options."""

from pathlib import Path
from typing import Annotated

import typer

from goca.cli import arguments, console


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='What to paint: "cat, grass, sky", or a sentence.')],
    model: arguments.Model = "bundled",
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Steps of the sampler.  [default: the model's]", show_default=False),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(metavar="S", help="Scale of the guidance.  [default: the model's]", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Seed of the first image.")] = 0,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Images, of seeds that follow each other.")] = 1,
    size: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=8192, help="Pixels a side.  [default: the model's]", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go.")] = Path("goca-out"),
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Also heat maps of the prompt's names, labelled masks, and all of it on one sheet.",
            show_default=False,
        ),
    ] = False,
    recipe: Annotated[str, typer.Option(metavar="NAME", help="How --explain reads the attention.")] = "goca",
    json: Annotated[
        bool,
        typer.Option("--json", help="Print one line of JSON an image, and nothing else.", show_default=False),
    ] = False,
    device: arguments.Device = None,
    dtype: arguments.Dtype = None,
    verbose: arguments.Verbose = False,
) -> None:
    """Paint images from a prompt, and show what each word of it looked at.

    An image comes from its seed alone: with and without --explain, alone or among others, it is the same.
    Files are named after prompt and seed; the same ones again replace them.
    """
    with console.session(verbose):
        from goca.cli.painting import Files, run
        from goca.generation import GenerationOptions

        files = Files(out, prompt, range(seed, seed + count))
        options = GenerationOptions(prompt=prompt, steps=steps, scale=scale, size=size)
        run(files, options, model, device, dtype, explain, recipe, as_json=json)


def register(app: typer.Typer) -> None:
    """Make it a command of the application."""
    app.command()(generate)
