"""`goca ablate`: what each part of the method contributes."""

from typing import Annotated

import typer

from goca.cli import arguments
from goca.cli.console import interval, progress, session, show, show_json, table
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
        from goca.diffusion.backbone import Backbone
        from goca.diffusion.loading import load
        from goca.evaluation import ablate as ablation

        rows = []
        with progress(hidden=as_json or as_markdown) as bar:
            task = bar.add_task("ablating", total=len(ablation.VARIANTS))
            scenes, protocol = ablation.scenes_benchmark(captions, limit)
            backbone = Backbone(load(model, None, None, None, None), model)
            for row in ablation.ablate(backbone, scenes, protocol, batch):
                rows.append(row)
                bar.advance(task)
        if as_json:
            show_json(protocol.with_rows(rows))
        elif as_markdown:
            show(*ablation.to_markdown(rows).splitlines())
        else:
            parts = table("parts of the method", "mIoU", "95 %", "accuracy", "gain", "95 %")
            for row in rows:
                miou, accuracy, gain = f"{row.miou:.3f}", f"{row.pixel_accuracy:.3f}", f"{row.gain:+.3f}"
                parts.add_row(row.name, miou, interval(row.ci95), accuracy, gain, interval(row.gain_ci95, sign="+"))
            show(parts)
