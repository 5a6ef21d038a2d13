"""`goca evaluate` and `goca ablate`: their options."""

from typing import Annotated

import typer

from goca.apps import options, terminal
from goca.apps.app import Verbose

Dataset = Annotated[str, typer.Argument(metavar="DATASET", help='"scenes", the benchmark that ships with goca.')]
BenchModel = Annotated[str, typer.Option(metavar="MODEL", help='"bundled", a diffusers folder, or a Hub id.')]
Captions = Annotated[
    str, typer.Option(metavar="STYLE", help='How the classes are said: "nouns" (a list) or "sentences".')
]
Limit = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Only the first so many pictures.", show_default=False)
]
BenchBatch = Annotated[int, typer.Option(metavar="N", min=1, help="Pictures a forward pass.")]


def evaluate(
    dataset: Dataset,
    model: BenchModel = "bundled",
    recipe: Annotated[str, typer.Option(metavar="NAME", help=options.RECIPES_HELP)] = "goca",
    captions: Captions = "nouns",
    limit: Limit = None,
    batch: BenchBatch = 8,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", show_default=False)] = False,
    verbose: Verbose = False,
) -> None:
    """Score a recipe: mIoU with its interval, IoU of each class, pixel accuracy, and the protocol."""
    with terminal.session(verbose):
        from goca.apps import bench

        options.dataset(dataset)
        bench.evaluate(model, recipe, captions, batch, limit, as_json=json)


def ablate(
    dataset: Dataset,
    model: BenchModel = "bundled",
    captions: Captions = "nouns",
    limit: Limit = None,
    batch: BenchBatch = 8,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", show_default=False)] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a table for a document.", show_default=False)
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Score each part of the method alone and together, beside the paper's table."""
    with terminal.session(verbose):
        from goca.apps import bench

        options.dataset(dataset)
        bench.ablate(model, captions, batch, limit, as_json=json, as_markdown=markdown)


def register(app: typer.Typer) -> None:
    """Make them commands of the application."""
    app.command()(evaluate)
    app.command()(ablate)
