"""`goca ablate`: what each part of the method contributes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from goca import bundled
from goca.cli import arguments
from goca.cli.console import progress, session, show, show_json, table
from goca.errors import GocaError

if TYPE_CHECKING:
    from rich.table import Table

    from goca.evaluation.ablate import AblationRow


def ablate(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Data set: scenes, the benchmark that ships with goca.")
    ],
    model: arguments.ModelOption = bundled.DEFAULT,
    captions: arguments.CaptionsOption = "nouns",
    limit: arguments.LimitOption = None,
    batch: arguments.BatchOption = 8,
    as_json: arguments.JsonOption = False,
    as_markdown: arguments.MarkdownOption = False,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Score each part of the method on its own and combined.

    The scores of SD 1.5 and SDXL on VOC from the paper's table are printed beside them.
    """
    with session(verbose):
        if dataset != "scenes":
            raise GocaError(f'cannot ablate on "{dataset}": give scenes, the benchmark that ships with goca')
        arguments.check_model(model)
        from goca.evaluation.choices import caption_style

        caption_style(captions)
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
            note = "In per cent. acc.: pixel accuracy; paper: the paper's mIoU on VOC with SD 1.5/SDXL."
            show(ablation_table(rows), note)


def ablation_table(rows: "Sequence[AblationRow]") -> "Table":
    """The rows in per cent, beside the paper's."""
    from goca.evaluation.metrics import percentage

    parts = table("parts of the method", "mIoU [95 %]", "acc.", "gain [95 %]", "paper", figures=4)
    for row in rows:
        gain = percentage(row.gain, row.gain_ci95, sign="+") if row is not rows[0] else ""
        accuracy, paper = f"{100 * row.pixel_accuracy:.1f}", "/".join(map(str, row.paper or ()))
        parts.add_row(row.name, percentage(row.miou, row.ci95), accuracy, gain, paper)
    return parts
