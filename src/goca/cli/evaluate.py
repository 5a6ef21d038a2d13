"""`goca evaluate`: a score and the protocol behind it."""

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from goca import bundled
from goca.cli import arguments
from goca.cli.console import interval, next_stage, paused, progress, say, session, show, show_json, table
from goca.cli.settings import with_automatic
from goca.evaluation.datasets import DATASETS, check_name

if TYPE_CHECKING:
    from goca.evaluation.config import EvaluationConfig
    from goca.evaluation.report import Report
    from goca.parallel import Executor


def evaluate(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help=f"Data set: {', '.join([*DATASETS][:-1])} or {[*DATASETS][-1]}.",
        ),
    ],
    root: Annotated[
        Path | None,
        arguments.option(metavar="DIR", help="Folder into which the data set was unpacked."),
    ] = None,
    split: Annotated[
        str | None,
        arguments.option(metavar="NAME", help="Split of the data set.  [default: the protocol's]"),
    ] = None,
    as_background: Annotated[
        str, arguments.option(metavar="NAMES", help='Categories to count as background: "sky, road".')
    ] = "",
    limit: arguments.LimitOption = None,
    protocol: Annotated[
        str, typer.Option(metavar="NAME", help="Protocol: honest or paper; see docs/protocols.md.")
    ] = "honest",
    switches: Annotated[
        list[str] | None,
        arguments.option(
            "--set",
            metavar="SWITCH=VALUE",
            help="Change a switch of the protocol, such as void=background; repeatable.",
        ),
    ] = None,
    tagger: Annotated[
        str | None,
        arguments.option(
            metavar="TAGGER",
            help="What says which classes an image shows: oracle (the ground truth), given:NOUNS, captions:FILE, "
            "clip:MODEL, vlm:MODEL, local:MODEL, or self (the diffusion model).  [default for scenes: oracle]",
        ),
    ] = None,
    prices: arguments.PricesOption = None,
    estimate: Annotated[
        bool,
        arguments.option("--estimate", help="Print the estimated tokens and cost of vlm:MODEL, then exit."),
    ] = False,
    together: Annotated[int, typer.Option(metavar="N", min=1, help="Number of concurrent requests to vlm:MODEL.")] = 4,
    captions: arguments.CaptionsOption = "nouns",
    model: arguments.ModelOption = bundled.DEFAULT,
    settings: arguments.SettingsOption = None,
    recipe: arguments.RecipeOption = "goca",
    timestep: arguments.TimestepOption = None,
    size: arguments.SizeOption = None,
    seed: arguments.SeedOption = 0,
    seeds: arguments.SeedsOption = 1,
    flip: arguments.FlipOption = False,
    window: arguments.WindowOption = False,
    refine_edges: arguments.RefineEdgesOption = False,
    device: arguments.DeviceOption = None,
    dtype: arguments.DtypeOption = None,
    batch: arguments.BatchOption = 8,
    threads: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of PyTorch threads per process (CPU only).")
    ] = 1,
    workers: arguments.WorkersOption = None,
    ray: arguments.RayOption = None,
    out: Annotated[
        Path | None,
        arguments.option(
            metavar="RUN",
            help="Folder for images.jsonl, run.json and confusion.png; resumes an unfinished run in it.",
        ),
    ] = None,
    as_json: arguments.JsonOption = False,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Score a recipe on a data set.

    Prints the mIoU with its confidence interval, the IoU by class and by region size, accuracies, and the protocol.
    With --out, the same command resumes a run that was stopped or killed.
    """
    with session(verbose):
        check_name(dataset)
        tags = arguments.tagger(tagger, dataset)
        overrides = {
            "timestep": arguments.timesteps(timestep),
            "size": size,
            "seed": seed,
            "seeds": seeds,
            "flip": flip,
            "window": window,
            "refine_edges": refine_edges,
            **arguments.settings(settings),
        }
        tagger_prices = arguments.prices(prices, tags)
        arguments.check_model(model, recipe, device, dtype)
        if out is not None:
            from goca.image_jobs import check_writable

            check_writable(out)
        from goca.evaluation.choices import check_choices

        check_choices(protocol, switches or (), captions)
        from goca.evaluation.config import EvaluationConfig
        from goca.parallel import Executor

        config = EvaluationConfig(
            dataset=dataset,
            root=root,
            split=split,
            as_background=arguments.names(as_background),
            limit=limit,
            protocol=protocol,
            switches=tuple(switches or ()),
            tagger=tags,
            captions=captions,
            model=model,
            recipe=recipe,
            device=device,
            dtype=dtype,
            batch=batch,
            threads=threads,
            overrides=with_automatic(overrides, model, device, dtype, batch),
            prices=tagger_prices,
            concurrency=together,
        )
        if estimate:
            _print_estimate(config, out, as_json)
            return
        complete = _run(config, out, Executor(workers=workers, ray=ray), as_json)
    if not complete:
        raise typer.Exit(1)


def _print_estimate(config: "EvaluationConfig", out: Path | None, as_json: bool) -> None:
    from goca.evaluation import runner

    expected = runner.estimate(config, out)
    if as_json:
        show_json(vars(expected))
    else:
        show(str(expected))


def _run(config: "EvaluationConfig", out: Path | None, executor: "Executor", as_json: bool) -> bool:
    """Score a recipe and print the report; returns whether every image was evaluated."""
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
                            task = next_stage(bar, task, event)
                            done = event.done
                        case runner.ImagesTagged():
                            bar.advance(task, event.count)
                        case runner.ImagesDone():
                            bar.advance(task, len(event.images))
                            done += len(event.images)
                        case Estimate():
                            if not as_json:
                                with paused(bar):
                                    show(f"expected use of the tagger: {event}")
                        case runner.Finished():
                            report, settings = event.report, event.settings
        except KeyboardInterrupt:
            bar.stop()
            again = f"; the same command resumes {out}" if out is not None else ""
            say(f"stopped; {done} images are done{again}")
            raise typer.Exit(130) from None
    # Printed only now: if every image is left out, the run fails with a single message instead.
    for image in report.left_out:
        say(f"left out: {image.id}: {image.left_out}")
    if as_json:
        left_out = [{"id": image.id, "reason": image.left_out} for image in report.left_out]
        facts = {"left_out_images": left_out, "protocol": report.protocol.to_json(), "plan": settings["plan"]}
        show_json({**report.metrics(), **facts})
    else:
        _print(report, out)
    if report.left_out:
        say(f"{len(report.left_out)} of {len(report.images)} images were left out")
    return not report.left_out


def _print(report: "Report", out: Path | None) -> None:
    from goca.evaluation.metrics import band

    metrics: dict[str, Any] = report.metrics()
    rows = table("class", "IoU", figures=1)
    for name, value in sorted(metrics["per_class"].items(), key=lambda item: -item[1]):
        rows.add_row(name, f"{value:.3f}")
    show(
        rows,
        f"mIoU {metrics['miou']:.3f} {interval(metrics['ci95'])}, accuracy {metrics['pixel_accuracy']:.3f}, "
        f"frequency-weighted IoU {metrics['frequency_weighted_iou']:.3f}, {metrics['labels']} labels, "
        f"{metrics['images']} {'image' if metrics['images'] == 1 else 'images'}",
    )
    sizes = table("region size, of the image", "regions", "mIoU [95 %]", "recall", figures=3)
    for size in metrics["by_size"]:
        miou = f"{size['miou']:.3f} {interval(size['ci95'])}"
        sizes.add_row(band(size["shares"]), str(size["regions"]), miou, f"{size['recall']:.3f}")
    show(sizes)
    if "sweep" in metrics:
        fixed, oracle = metrics["fixed_threshold"], metrics["oracle_threshold"]
        show(
            f"fixed threshold: {fixed['miou']:.3f} {interval(fixed['ci95'])}; oracle threshold "
            f"{oracle['threshold']:+.1f}, fitted to these images: {oracle['miou']:.3f}"
        )
    show(*report.protocol.lines())
    if out is not None:
        show(f"written to {out}")
