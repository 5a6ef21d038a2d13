"""`goca evaluate-generation`: folders of images generated from prompts, and their scores."""

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goca import bundled
from goca.cli import arguments
from goca.cli.console import first_given, interval, next_stage, progress, say, session, show, show_json, table
from goca.errors import GocaError

if TYPE_CHECKING:
    from goca.evaluation.generated_images import GenerationConfig
    from goca.evaluation.generation_metrics import Measurement, Meter
    from goca.evaluation.metrics import Interval
    from goca.parallel import Executor


GENERATING = (
    "out",
    "limit",
    "seed",
    "same_seed",
    "model",
    "steps",
    "scale",
    "size",
    "guide",
    "every",
    "batch",
    "dtype",
)
"""Parameters of generation, which do not apply to finished images."""


def evaluate_generation(
    prompts: Annotated[
        Path | None,
        arguments.option(
            metavar="FILE",
            help="File of prompts: one per line, a JSON list, JSON lines, or COCO's captions_*.json.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        arguments.option(metavar="RUN", help="Folder for the images; resumes an unfinished run in it."),
    ] = None,
    images: Annotated[
        list[Path] | None,
        arguments.option(
            metavar="DIR",
            help="Measure the images of a finished run, or of any folder, instead of generating; repeat it to compare "
            "several folders with the same prompts.",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        arguments.option(metavar="DIR", help="Folder of real images, to compute the FID; needs --features."),
    ] = None,
    features: Annotated[
        str | None,
        arguments.option(
            metavar="MODEL", help="CLIP, DINO or a similar model whose features the FID compares: a folder or Hub id."
        ),
    ] = None,
    clip: Annotated[
        str | None, arguments.option(metavar="MODEL", help="CLIP model for the CLIP score: a folder or Hub id.")
    ] = None,
    limit: Annotated[int | None, arguments.option(metavar="N", min=1, help="Use only the first N prompts.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**32 - 1, help="Seed of the first image.")] = 0,
    same_seed: Annotated[
        bool, arguments.option("--same-seed", help="Use one seed for all images instead of consecutive ones.")
    ] = False,
    model: arguments.ModelOption = bundled.DEFAULT,
    steps: arguments.StepsOption = None,
    scale: arguments.ScaleOption = None,
    size: arguments.GeneratedSizeOption = None,
    guide: arguments.GuideOption = "none",
    every: arguments.EveryOption = 1,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Number of prompts per call of the pipeline.")] = 8,
    device: arguments.DeviceOption = None,
    dtype: arguments.DtypeOption = None,
    threads: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of PyTorch threads per process (CPU only).")
    ] = 1,
    workers: arguments.WorkersOption = None,
    ray: arguments.RayOption = None,
    as_json: arguments.JsonOption = False,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Generate images from prompts, and measure them.

    Prints the FID against real images, the mean CLIP score and the effective guidance scale, with confidence
    intervals. The same command resumes a run that was stopped or killed.
    """
    with session(verbose):
        _check_task(prompts, images, out)
        for name in (features, clip):
            if name is not None:
                from goca.tagging import check_model_name

                check_model_name(name)
        arguments.check_model(model, None, device, dtype)
        arguments.check_guide(guide, every)
        if scale is not None:
            from goca.text.nouns import check_prompt

            check_prompt("any", scale)
        if out is not None:
            from goca.image_jobs import check_writable

            check_writable(out)
        from goca.evaluation.generation_metrics import Meter

        meter = Meter(reference, features, clip)
        if prompts is None or out is None:
            measurements = _measure(images or (), meter, as_json)
        else:
            from goca.evaluation.generated_images import GenerationConfig
            from goca.parallel import Executor

            config = GenerationConfig(
                prompts=prompts,
                limit=limit,
                seed=seed,
                same_seed=same_seed,
                model=model,
                steps=steps,
                scale=scale,
                size=size,
                guide=guide,
                every=every,
                batch=batch,
                device=device,
                dtype=dtype,
                threads=threads,
            )
            measurements = [_run(config, out, Executor(workers=workers, ray=ray), meter, as_json)]
        _print(measurements, as_json)


def _check_task(prompts: Path | None, images: Sequence[Path] | None, out: Path | None) -> None:
    """Raise GocaError unless either images are to be generated, into a folder, or finished ones to be measured."""
    if (prompts is None) == (images is None):
        raise GocaError("give either --prompts FILE to generate images or --images DIR to measure finished ones")
    if images is not None and (flag := first_given(GENERATING)):
        raise GocaError(f"{flag} only applies to generating images: leave it out with --images")
    if prompts is not None and out is None:
        raise GocaError("a run needs a folder for its images: name one with --out")


def _run(config: "GenerationConfig", out: Path, executor: "Executor", meter: "Meter", as_json: bool) -> "Measurement":
    """Generate and measure, with a progress display."""
    from goca.diffusion.loading import without_bars
    from goca.evaluation import generated_images
    from goca.evaluation.runner import Stage

    done = 0
    with progress(hidden=as_json) as bar:
        task = bar.add_task("opening", total=None)
        try:
            events = generated_images.run(config, out, executor, sys.argv[1:], meter)
            with without_bars(), closing(events):
                for event in events:
                    match event:
                        case Stage():
                            task = next_stage(bar, task, event)
                            done = event.done or done
                        case generated_images.ImagesGenerated():
                            bar.advance(task, len(event.images))
                            done += len(event.images)
                        case generated_images.ImagesMeasured():
                            measurement = event.measurement
        except KeyboardInterrupt:
            bar.stop()
            say(f"stopped; {done} images are done; the same command resumes {out}")
            raise typer.Exit(130) from None
    return measurement


def _measure(folders: Sequence[Path], meter: "Meter", as_json: bool) -> "list[Measurement]":
    measurements = []
    with progress(hidden=as_json) as bar:
        task = bar.add_task("measuring", total=len(folders))
        for folder in folders:
            measurements.append(meter(folder))
            bar.advance(task)
    return measurements


def _print(measurements: "Sequence[Measurement]", as_json: bool) -> None:
    first, *others = measurements
    gains = [{}, *(other.gain_over(first) for other in others)]
    if as_json:
        objects = [
            {
                "folder": measurement.folder,
                **measurement.to_json(),
                "gains": {name: {"mean": value, "ci95": bounds} for name, (value, bounds) in gain.items()},
            }
            for measurement, gain in zip(measurements, gains, strict=True)
        ]
        show_json(objects)
        return
    # Long names would leave no room for the figures.
    show(*(f"folder {n}: {each.folder}, {each.images} images" for n, each in enumerate(measurements, start=1)))
    rows = table("figure", "folder", "value [95 %]", *["gain over folder 1 [95 %]"] * bool(others), figures=2)
    for name in ("fid", *dict.fromkeys(name for measurement in measurements for name in measurement.per_image)):
        for number, (measurement, gain) in enumerate(zip(measurements, gains, strict=True), start=1):
            if name in measurement.means:
                value = _cell(measurement.means[name])
            elif name == "fid" and measurement.fid is not None:
                value = f"{measurement.fid.value:.2f}"
            else:
                continue
            cells = [_cell(gain[name], "+") if name in gain else ""] if others else []
            rows.add_row(name.replace("_", " "), str(number), value, *cells)
    if rows.row_count:
        show(rows)
    for note in dict.fromkeys(note for measurement in measurements for note in measurement.notes):
        show(f"note: {note}")


def _cell(figure: "tuple[float, Interval]", sign: str = "") -> str:
    value, bounds = figure
    return f"{value:{sign}.3f} {interval(bounds, sign)}"
