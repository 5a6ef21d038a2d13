"""`goca evaluate`, `goca compare` and `goca ablate`: their options."""

from pathlib import Path
from typing import Annotated

import typer

from goca.cli import arguments, console, parsing

Scenes = Annotated[str, typer.Argument(metavar="DATASET", help='"scenes", the benchmark that ships with goca.')]
Captions = Annotated[
    str, typer.Option(metavar="STYLE", help='How the classes are said: "nouns" (a list) or "sentences".')
]


def evaluate(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="scenes, voc, context, coco-object, coco-stuff-27, coco-stuff-171, cityscapes, ade20k, or folder.",
        ),
    ],
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the data set was unpacked.", show_default=False)
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another split than the protocol's.", show_default=False),
    ] = None,
    as_background: Annotated[
        str, typer.Option(metavar="NAMES", help="Categories that count as background.", show_default=False)
    ] = "",
    limit: arguments.Limit = None,
    protocol: Annotated[str, typer.Option(metavar="NAME", help="honest or paper; see docs/evaluation.md.")] = "honest",
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SWITCH=VALUE",
            help="Change a switch of the protocol, such as void=background; may be given again.",
            show_default=False,
        ),
    ] = None,
    tagger: Annotated[
        str | None,
        typer.Option(
            metavar="TAGGER",
            help="Who says which classes an image shows: oracle, given:NOUNS, captions:FILE, vlm:MODEL, local:MODEL, "
            "self:error or self:map.  [default for scenes: oracle]",
            show_default=False,
        ),
    ] = None,
    prices: Annotated[
        str | None,
        typer.Option(
            metavar="READ,WRITTEN",
            help="What a million tokens cost with vlm:MODEL, in any currency.",
            show_default=False,
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Only say what vlm:MODEL will take; nothing is asked.", show_default=False),
    ] = False,
    together: Annotated[int, typer.Option(metavar="N", min=1, help="Questions to vlm:MODEL at a time.")] = 4,
    captions: Captions = "nouns",
    model: arguments.Model = "bundled",
    recipe: arguments.Recipe = "goca",
    timestep: arguments.Timestep = None,
    size: arguments.Size = None,
    seed: arguments.Seed = 0,
    seeds: arguments.Seeds = 1,
    flip: arguments.Flip = False,
    window: arguments.Window = False,
    refine_edges: arguments.RefineEdges = False,
    device: arguments.Device = None,
    dtype: arguments.Dtype = None,
    batch: arguments.Batch = 8,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Of torch in each process, on a CPU.")] = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Processes, each with its own model.  [default: 1; with --ray as many as it has GPUs or CPUs]",
            show_default=False,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help='Work on a Ray cluster: its address, "auto", or "local" to start one here.',
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Folder for images.jsonl, run.json and confusion.png; goes on with what it has.",
            show_default=False,
        ),
    ] = None,
    json: arguments.AsJson = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Score a recipe on a data set: mIoU with its interval, IoU of each class, accuracies, and the protocol.

    With --out, a run that was stopped or killed goes on when the same is asked again.
    """
    with console.session(verbose):
        timesteps = parsing.timesteps(timestep)
        tagger = parsing.tagger(tagger, dataset)
        overrides = {
            "timestep": timesteps,
            "size": size,
            "seed": seed,
            "seeds": seeds,
            "flip": flip,
            "window": window,
            "refine_edges": refine_edges,
        }
        from goca.cli import evaluation
        from goca.evaluation.config import EvaluationConfig
        from goca.parallel import Executor

        config = EvaluationConfig(
            dataset=dataset,
            root=root,
            split=split,
            as_background=parsing.names(as_background),
            limit=limit,
            protocol=protocol,
            switches=tuple(change or ()),
            tagger=tagger,
            captions=captions,
            model=model,
            recipe=recipe,
            device=device,
            dtype=dtype,
            batch=batch,
            threads=threads,
            overrides=overrides,
            prices=parsing.prices(prices, tagger),
            concurrency=together,
        )
        if estimate:
            evaluation.estimate(config, out, as_json=json)
            return
        whole = evaluation.evaluate(config, out, Executor(workers=workers, ray=ray), as_json=json)
    if not whole:
        raise typer.Exit(1)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders that goca evaluate wrote with --out.")],
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw mIoU and its intervals; needs matplotlib.", show_default=False),
    ] = None,
    json: arguments.AsJson = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Rank runs of one protocol on the same images: mIoU, intervals, and paired differences to the first."""
    with console.session(verbose):
        from goca.cli import evaluation

        evaluation.compare(runs, plot, as_json=json)


def ablate(
    dataset: Scenes,
    model: arguments.Model = "bundled",
    captions: Captions = "nouns",
    limit: arguments.Limit = None,
    batch: arguments.Batch = 8,
    json: arguments.AsJson = False,
    markdown: arguments.AsMarkdown = False,
    verbose: arguments.Verbose = False,
) -> None:
    """Score each part of the method alone and together, beside the paper's table."""
    with console.session(verbose):
        from goca.cli import evaluation

        parsing.dataset(dataset)
        evaluation.ablate(model, captions, batch, limit, as_json=json, as_markdown=markdown)


def register(app: typer.Typer) -> None:
    """Make them commands of the application."""
    for command in (evaluate, compare, ablate):
        app.command()(command)
