"""`goca evaluate`, `goca compare` and `goca ablate`: figures, each with the protocol that made it."""

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from goca.cli.console import console, paused, progress, say, table
from goca.errors import GocaError

if TYPE_CHECKING:
    from goca.evaluation.config import EvaluationConfig
    from goca.evaluation.report import Report
    from goca.parallel import Executor


def evaluate(config: "EvaluationConfig", out: Path | None, executor: "Executor", as_json: bool) -> bool:
    """Score a recipe and print it; whether no image was left out."""
    from goca.diffusion.loading import without_bars
    from goca.evaluation import runner
    from goca.tagging.base import Estimate

    done = 0
    with progress(hidden=as_json) as bar:
        task = bar.add_task("opening", total=None)
        try:
            with without_bars(), closing(runner.run(config, out, executor, sys.argv[1:])) as events:
                for event in events:
                    match event:
                        case runner.Stage():
                            bar.remove_task(task)
                            task = bar.add_task(event.name, total=event.total or None, completed=event.done)
                            done = event.done
                        case runner.ImagesTagged():
                            bar.advance(task, event.count)
                        case runner.ImagesDone():
                            bar.advance(task, len(event.images))
                            done += len(event.images)
                        case Estimate():
                            if not as_json:
                                with paused(bar):
                                    console().print(f"before the tagger is asked: {event}", soft_wrap=True)
                        case runner.Finished():
                            report, settings = event.report, event.settings
        except KeyboardInterrupt:
            bar.stop()
            again = f"; ask the same again to go on with {out}" if out is not None else ""
            say(f"stopped; {done} images are done{again}")
            raise typer.Exit(130) from None
    # Not before: where all are left out, there is one mistake to tell.
    for image in report.left_out:
        say(f"left out: {image.id}: {image.left_out}")
    if as_json:
        left_out = [{"id": image.id, "reason": image.left_out} for image in report.left_out]
        print(
            json.dumps(
                {
                    **report.metrics(),
                    "left_out_images": left_out,
                    "protocol": report.protocol.to_json(),
                    "plan": settings["plan"],
                }
            )
        )
    else:
        _print(report, out)
    if report.left_out:
        say(f"{len(report.left_out)} of {len(report.images)} images were left out")
    return not report.left_out


def estimate(config: "EvaluationConfig", out: Path | None, as_json: bool) -> None:
    """Print what the tagger will take."""
    from goca.evaluation import runner

    found = runner.estimate(config, out)
    if as_json:
        print(json.dumps(vars(found)))
    else:
        console().print(str(found), soft_wrap=True)


def _print(report: "Report", out: Path | None) -> None:
    found: dict[str, Any] = report.metrics()
    rows = table("class", "IoU")
    for name, value in sorted(found["per_class"].items(), key=lambda item: -item[1]):
        rows.add_row(name, f"{value:.3f}")
    page = console()
    page.print(rows)
    page.print(
        f"mIoU {found['miou']:.3f} {_interval(found['ci95'])}, accuracy {found['pixel_accuracy']:.3f}, "
        f"frequency-weighted IoU {found['frequency_weighted_iou']:.3f}, {found['labels']} labels, "
        f"{found['images']} images",
        soft_wrap=True,
    )
    if "sweep" in found:
        fixed, oracle = found["fixed_threshold"], found["oracle_threshold"]
        page.print(
            f"fixed threshold: {fixed['miou']:.3f} {_interval(fixed['ci95'])}; oracle threshold "
            f"{oracle['threshold']:+.1f}, picked on these images: {oracle['miou']:.3f}",
            soft_wrap=True,
        )
    for line in report.protocol.lines():
        page.print(line, soft_wrap=True)
    if out is not None:
        page.print(f"written to {out}", soft_wrap=True)


def compare(folders: Sequence[Path], plot: Path | None, as_json: bool) -> None:
    """Print runs side by side, and draw them."""
    from goca.evaluation import compare as side_by_side

    if len(folders) < 2:
        raise GocaError("one run alone cannot be compared: name two or more")
    runs = [side_by_side.load_run(folder) for folder in folders]
    found = side_by_side.compare(runs)
    protocol = runs[0].report.protocol
    if plot is not None:
        from goca.evaluation.plot import plot as draw

        draw(found, f"{protocol.dataset} {protocol.split}, {protocol.images} images, protocol {protocol.name}", plot)
    if as_json:
        print(json.dumps(side_by_side.to_json(found, protocol)))
        return
    rows = table("run", "recipe, model", "mIoU", "95 %", "accuracy", "threshold", "to the first", "95 %")
    for row in found:
        rows.add_row(
            row.run,
            row.name,
            f"{row.miou:.3f}",
            _interval(row.ci95),
            f"{row.pixel_accuracy:.3f}",
            row.threshold,
            f"{row.gain:+.3f}",
            "[{:+.3f}, {:+.3f}]".format(*row.gain_ci95),
        )
    page = console()
    page.print(rows)
    for line in protocol.lines():
        page.print(line, soft_wrap=True)
    if plot is not None:
        page.print(str(plot), soft_wrap=True)


def _interval(interval: Sequence[float]) -> str:
    return "[{:.3f}, {:.3f}]".format(*interval)


def ablate(model: str, captions: str, batch: int, limit: int | None, as_json: bool, as_markdown: bool) -> None:
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
        print(json.dumps(ablation.to_json(rows, protocol)))
        return
    if as_markdown:
        print(ablation.to_markdown(rows))
        return
    page = table("parts of the method", "mIoU", "95 %", "accuracy", "gain", "95 %")
    for row in rows:
        page.add_row(
            row.name,
            f"{row.miou:.3f}",
            "{:.3f} to {:.3f}".format(*row.ci95),
            f"{row.pixel_accuracy:.3f}",
            f"{row.gain:+.3f}",
            "{:+.3f} to {:+.3f}".format(*row.gain_ci95),
        )
    console().print(page)
