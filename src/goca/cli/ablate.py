"""`goca ablate`: what each part of the method contributes."""

import json
from typing import Annotated

import typer

from goca.cli import arguments
from goca.cli.console import console, interval, progress, session, table
from goca.errors import GocaError


def ablate(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="scenes, the benchmark that ships with goca.")],
    model: arguments.ModelOption = "bundled",
    captions: arguments.CaptionsOption = "nouns",
    limit: arguments.LimitOption = None,
    batch: arguments.BatchOption = 8,
    as_json: arguments.JsonOption = False,
    as_markdown: arguments.MarkdownOption = False,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Score each part of the method alone and together, beside the paper's table."""
    with session(verbose):
        if dataset != "scenes":
            raise GocaError(f'no data set "{dataset}" to ablate on: give scenes, the benchmark that ships with goca')
        _run(model, captions, batch, limit, as_json, as_markdown)


def _run(model: str, captions: str, batch: int, limit: int | None, as_json: bool, as_markdown: bool) -> None:
    """Score every part of the method on the scenes and print the table."""
    from goca.diffusion.backbone import Backbone
    from goca.diffusion.loading import load
    from goca.evaluation import ablate as ablation

    rows = []
    with progress(hidden=as_json or as_markdown) as bar:
        task = bar.add_task("ablating", total=len(ablation.VARIANTS))
        dataset, protocol = ablation.scenes_benchmark(captions, limit)
        backbone = Backbone(load(model, None, None, None, None), model)
        for row in ablation.ablate(backbone, dataset, protocol, batch):
            rows.append(row)
            bar.advance(task)
    if as_json:
        print(json.dumps(protocol.with_rows(rows)))
        return
    if as_markdown:
        print(ablation.to_markdown(rows))
        return
    parts = table("parts of the method", "mIoU", "95 %", "accuracy", "gain", "95 %")
    for row in rows:
        parts.add_row(
            row.name,
            f"{row.miou:.3f}",
            interval(row.ci95),
            f"{row.pixel_accuracy:.3f}",
            f"{row.gain:+.3f}",
            "[{:+.3f}, {:+.3f}]".format(*row.gain_ci95),
        )
    console().print(parts)
