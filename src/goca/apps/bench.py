"""`goca evaluate` and `goca ablate`: figures, each with the protocol that made it."""

import json
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING

from goca.apps.terminal import console, progress, table

if TYPE_CHECKING:
    from goca.bench.evaluate import Evaluation


def evaluate(model: str, recipe: str, captions: str, batch: int, limit: int | None, as_json: bool) -> None:
    """Score a recipe on the scenes and print it."""
    from goca import bundled
    from goca.bench.evaluate import evaluate_scenes
    from goca.recipe import recipe_named
    from goca.segmenter import Segmenter

    chosen = recipe_named(recipe)
    with progress(hidden=as_json) as bar:
        task = bar.add_task(f"loading {model}", total=None)
        segmenter = Segmenter.from_pretrained(model, chosen, batch=batch)
        scenes = list(islice(bundled.scenes(), limit))
        bar.update(task, description="segmenting", total=len(scenes))
        found = evaluate_scenes(segmenter, captions, scenes, done=lambda: bar.advance(task))
    if as_json:
        print(json.dumps({**found.to_json(), "plan": segmenter.plan.to_json()}))
    else:
        _print(found)


def _print(found: "Evaluation") -> None:
    score = found.score
    rows = table("class", "IoU")
    for name, value in sorted(score.per_class.items(), key=lambda item: -item[1]):
        rows.add_row(name, f"{value:.3f}")
    out = console()
    out.print(rows)
    out.print(f"mIoU {score.miou:.3f} [{score.ci95[0]:.3f}, {score.ci95[1]:.3f}], accuracy {score.pixel_accuracy:.3f}")
    for name, value in asdict(found.protocol).items():
        out.print(f"{name}: {value}", soft_wrap=True)


def ablate(model: str, captions: str, batch: int, limit: int | None, as_json: bool, as_markdown: bool) -> None:
    """Score every part of the method on the scenes and print the table."""
    from goca import bundled
    from goca.bench.ablate import VARIANTS, ablate_scenes
    from goca.model.backbone import Backbone
    from goca.model.load import load

    with progress(hidden=as_json or as_markdown) as bar:
        task = bar.add_task("ablating", total=len(VARIANTS))
        backbone = Backbone(load(model, None, None, None, None), model)
        scenes = list(islice(bundled.scenes(), limit))
        found = ablate_scenes(backbone, captions, batch, scenes, done=lambda: bar.advance(task))
    if as_json:
        print(json.dumps(found.to_json()))
        return
    if as_markdown:
        print(found.to_markdown())
        return
    rows = table("parts of the method", "mIoU", "95 %", "accuracy", "gain", "95 %")
    for row in found.rows:
        rows.add_row(
            row.name,
            f"{row.miou:.3f}",
            "{:.3f} to {:.3f}".format(*row.ci95),
            f"{row.pixel_accuracy:.3f}",
            f"{row.gain:+.3f}",
            "{:+.3f} to {:+.3f}".format(*row.gain_ci95),
        )
    console().print(rows)
