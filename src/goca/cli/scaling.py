"""`goca scaling`: does segmentation improve with the generator?"""

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goca.cli import arguments
from goca.cli.console import interval, next_stage, progress, say, session, show, show_json, table
from goca.evaluation.datasets import DATASETS, check_name

if TYPE_CHECKING:
    from goca.evaluation.scaling import ScalingConfig
    from goca.evaluation.scaling_study import ScalingStudy
    from goca.tagging.base import Tagger


def scaling(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help='Two or more models: "bundled", diffusers folders, Hub ids, or model folders inside another study; '
            "each may be given as LABEL=MODEL.",
            show_default=False,
        ),
    ],
    dataset: Annotated[
        str, typer.Option(metavar="NAME", help=f"Data set: {', '.join([*DATASETS][:-1])} or {[*DATASETS][-1]}.")
    ] = "scenes",
    root: Annotated[
        Path | None, arguments.option(metavar="DIR", help="Folder into which the data set was unpacked.")
    ] = None,
    limit: arguments.LimitOption = None,
    protocol: Annotated[
        str, typer.Option(metavar="NAME", help="Protocol: honest or paper; see docs/protocols.md.")
    ] = "honest",
    recipes: Annotated[
        str, typer.Option(metavar="NAMES", help="Methods to compare, comma-separated.")
    ] = "vanilla,goca,goca-balanced,goca-open",
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of noise seeds, each evaluated separately.")
    ] = 3,
    power: Annotated[
        Path | None,
        arguments.option(
            metavar="FILE",
            help="JSON file with a further measure of the models as generators: "
            '{"name": "FID", "better": "lower", "values": {LABEL: NUMBER, ...}}.',
        ),
    ] = None,
    judge: Annotated[
        str | None,
        arguments.option(
            metavar="MODEL",
            help="CLIP or SigLIP, a folder or Hub id: have each model generate images of the class lists, and count "
            "the classes that the judge finds in them.",
        ),
    ] = None,
    power_images: Annotated[
        int, typer.Option(metavar="N", min=1, help="Measure generative power on the first N images.")
    ] = 200,
    steps: arguments.StepsOption = None,
    scale: arguments.ScaleOption = None,
    device: arguments.DeviceOption = None,
    dtype: arguments.DtypeOption = None,
    batch: arguments.BatchOption = 8,
    threads: Annotated[int, typer.Option(metavar="N", min=1, help="Number of PyTorch threads (CPU only).")] = 1,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the results; resumes an unfinished study in it.")
    ] = Path("goca-scaling"),
    as_json: arguments.JsonOption = False,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Plot segmentation quality against generative power.

    Scores recipes with several models on one data set, told which classes each image shows, and measures each model
    as a generator: its denoising loss on the images and, with --judge, the share of the requested classes that its
    images show. Writes scaling.json, scaling.png and scaling.svg.
    """
    with session(verbose):
        labelled = [_labelled(text) for text in models]
        methods = tuple(name.lower().replace("_", "-") for name in arguments.names(recipes))
        _check_models(labelled, methods, device, dtype)
        check_name(dataset)
        from goca.evaluation.choices import check_choices, check_labels

        check_labels([label for label, _ in labelled])
        check_choices(protocol, (), "nouns")
        if judge is not None:
            from goca.tagging import check_model_name

            check_model_name(judge)
        from goca.image_jobs import check_writable

        check_writable(out)
        from goca.evaluation.config import EvaluationConfig
        from goca.evaluation.plot import check_installed, plot_scaling
        from goca.evaluation.scaling import ScalingConfig
        from goca.tagging.clip import CLIPTagger

        check_installed()
        evaluation = EvaluationConfig(
            dataset=dataset,
            root=root,
            limit=limit,
            protocol=protocol,
            device=device,
            dtype=dtype,
            batch=batch,
            threads=threads,
        )
        config = ScalingConfig(
            models=dict(labelled),
            evaluation=evaluation,
            recipes=tuple(dict.fromkeys(methods)),
            seeds=seeds,
            power_images=power_images,
            power=power,
            steps=steps,
            scale=scale,
        )
        study = _run(config, out, CLIPTagger(judge, batch) if judge is not None else None, as_json)
        drawings = [out / f"scaling.{suffix}" for suffix in ("png", "svg")]
        for path in drawings:
            plot_scaling(study, path)
        if as_json:
            show_json(study.to_json())
        else:
            _print(study)
            show(f"written to {out / 'scaling.json'}, {', '.join(map(str, drawings))}")


def _check_models(
    labelled: Sequence[tuple[str, str]], recipes: Sequence[str], device: str | None, dtype: str | None
) -> None:
    """Raise GocaError for names of models or recipes that are wrong on any machine."""
    from goca.evaluation.choices import is_measured, refuse_study

    for _, model in labelled:
        refuse_study(model)
        arguments.check_model("bundled" if is_measured(model) else model, None, device, dtype)
    for name in recipes or ("",):
        arguments.check_model("bundled", name)


def _labelled(text: str) -> tuple[str, str]:
    """(label, model) of LABEL=MODEL; without a label, the name of the folder, or of the Hub repository."""
    label, equals, model = text.partition("=")
    if equals and not os.path.isdir(text):  # noqa: PTH112 - False for a name that the system refuses
        return label.strip(), model
    return os.path.basename(os.path.normpath(text)), text  # noqa: PTH119 - of any text


def _run(config: "ScalingConfig", out: Path, judge: "Tagger | None", as_json: bool) -> "ScalingStudy":
    """Run the study, with a progress display."""
    from goca.diffusion.loading import without_bars
    from goca.evaluation import scaling
    from goca.evaluation.runner import Stage

    with progress(hidden=as_json) as bar:
        task = bar.add_task("opening", total=None)
        try:
            with without_bars(), closing(scaling.run(config, out, sys.argv[1:], judge)) as events:
                for event in events:
                    if isinstance(event, Stage):
                        task = next_stage(bar, task, event)
                    elif isinstance(event, int):
                        bar.advance(task, event)
                    else:
                        study = event
        except KeyboardInterrupt:
            bar.stop()
            say(f"stopped; the same command resumes {out}")
            raise typer.Exit(130) from None
    return study


def _print(study: "ScalingStudy") -> None:
    from goca.evaluation.metrics import percentage

    generators = table("model", *(power.name for power in study.powers), figures=len(study.powers))
    for label in study.models:
        cells = []
        for power in study.powers:
            bounds = power.intervals.get(label)
            cells.append(f"{power.values[label]:.3f}{'' if bounds is None else f' {interval(bounds)}'}")
        generators.add_row(label, *cells)
    several = any(len(score.seeds) > 1 for scores in study.scores.values() for score in scores.values())
    segmenters = table("model", "recipe", "mIoU [95 %]", *["of seeds"] * several, figures=1 + several)
    for label, scores in study.scores.items():
        for recipe, score in scores.items():
            spread = f"{100 * min(score.seeds):.1f} to {100 * max(score.seeds):.1f}"
            segmenters.add_row(label, recipe, percentage(score.miou, score.ci95), *[spread] * several)
    show(generators, segmenters)
    for power in study.powers:
        _print_claim(study, power.name)
    if study.left_out:
        show(f"{len(study.left_out)} images that a run could not evaluate are left out of all runs")
    show(*study.protocol.lines())


def _print_claim(study: "ScalingStudy", power: str) -> None:
    """Print what recipes gain from a better generator, by one measure; nothing if all models are equally good."""
    trends = [trend for trend in study.trends if trend.power == power]
    gaps = [gap for gap in study.gaps if gap.power == power]
    if trends:
        rises = table("recipe", "rise of mIoU [95 %]", "rank correlation [95 %]", figures=2)
        for trend in trends:
            rises.add_row(*trend.cells())
        show(f"change from the weakest to the strongest generator, by {power}", rises)
    if gaps:
        base, weakest, strongest = gaps[0].base, gaps[0].weakest, gaps[0].strongest
        gains = table("recipe", "gain: weakest", "gain: strongest", "change", figures=3)
        for gap in gaps:
            gains.add_row(*gap.cells())
        show(f"gain over {base} with the weakest ({weakest}) and the strongest generator ({strongest})", gains)
