"""`goca segment`: label an image and print its classes, or label folders of images and print a summary."""

from collections.abc import Generator, Iterable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from goca import bundled
from goca.cli import arguments, collector
from goca.cli.console import paused, progress, say, say_unlabelled, session, show
from goca.cli.outcomes import Summary, print_end, print_json, print_table
from goca.cli.settings import with_automatic
from goca.errors import GocaError
from goca.exports import EXPORTERS

if TYPE_CHECKING:
    from goca.folders import Assembling, Calibrating, FolderEvent, FolderProgress, TaggingProgress
    from goca.tagging import Tagger


def _listed(dataset: bool) -> str:
    return ", ".join(name for name, exporter in EXPORTERS.items() if exporter.dataset == dataset)


def segment(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE|DIR",
            show_default=False,
            parser=arguments.path,
            help="Images, and folders to search for images; skips hidden files, earlier results and --out.",
        ),
    ],
    classes: arguments.ClassesOption = None,
    classes_file: arguments.ClassesFileOption = None,
    background_classes: arguments.BackgroundClassesOption = None,
    background_classes_file: arguments.BackgroundClassesFileOption = None,
    background: Annotated[
        str,
        typer.Option(
            metavar="auto|none|T",
            help="Background: auto, by the recipe's rule; none, every pixel has a class; T, a score threshold, 0 to 1.",
        ),
    ] = "auto",
    caption: arguments.CaptionOption = None,
    tagger: Annotated[
        str,
        typer.Option(
            metavar="TAGGER",
            help="What says which of the classes an image shows; the others get no pixels. given: all of them; "
            "clip:MODEL: CLIP or SigLIP; captions:FILE; local:MODEL or vlm:MODEL: a vision-language model, here or on "
            "a server; self: the diffusion model.",
        ),
    ] = "given",
    prices: arguments.PricesOption = None,
    model: arguments.ModelOption = bundled.DEFAULT,
    settings: arguments.SettingsOption = None,
    recipe: arguments.RecipeOption = "goca-open",
    floor: arguments.FloorOption = None,
    timestep: arguments.TimestepOption = None,
    seeds: arguments.SeedsOption = 1,
    flip: arguments.FlipOption = False,
    window: arguments.WindowOption = False,
    refine_edges: arguments.RefineEdgesOption = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for NAME.labels.png, NAME.overlay.png, NAME.json and so on.")
    ] = Path("goca-out"),
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="F,F",
            help=f"Files to write: {_listed(False)} for each image; {_listed(True)} for the whole data set.",
        ),
    ] = "labels,overlay,json",
    instances: Annotated[
        bool,
        arguments.option("--instances", help="Make each connected region an object (coco, label-studio)."),
    ] = False,
    min_area: Annotated[int, typer.Option(metavar="N", min=1, help="Leave out objects of fewer than N pixels.")] = 1,
    fill_holes: Annotated[
        bool, arguments.option("--fill-holes", help="Give objects the pixels that they surround.")
    ] = False,
    polygons: Annotated[
        bool, arguments.option("--polygons", help="Write masks in coco as polygons, not as run lengths.")
    ] = False,
    as_json: arguments.JsonLinesOption = False,
    resume: Annotated[
        bool,
        arguments.option(
            "--resume",
            help="Keep the results of an earlier run and segment the remaining images; fails if those results were "
            "made with other classes or settings.",
        ),
    ] = False,
    workers: arguments.WorkersOption = None,
    ray: arguments.RayOption = None,
    threads: Annotated[
        int | None,
        arguments.option(
            metavar="N",
            min=1,
            help="Number of PyTorch threads per process (CPU only); the last digits of results depend on it.  "
            "[default: all, shared among workers]",
        ),
    ] = None,
    device: arguments.DeviceOption = None,
    dtype: arguments.DtypeOption = None,
    size: arguments.SizeOption = None,
    seed: arguments.SeedOption = 0,
    batch: arguments.BatchOption = 4,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Label the pixels of images with class names.

    Writes an indexed PNG of each image's size, an overlay and a JSON file for each image, or the files of --format;
    data sets of all images (docs/masks.md) are made from the PNG and JSON files at the end. Results in --out keep the
    images' paths relative to the common parent folder of all inputs; for several images, index.jsonl there lists the
    outcome of each.
    """
    with session(verbose), collector.waiting():
        listed, unlabelled = arguments.classes(classes, classes_file)
        given = arguments.settings(settings)
        threshold, timesteps = arguments.background(background), arguments.timesteps(timestep)
        background_names = arguments.background_classes(background_classes, background_classes_file)
        tagger_prices = arguments.prices(prices, tagger)
        arguments.check_model(model, recipe, device, dtype)
        from goca.diffusion.model_facts import facts_of
        from goca.text.nouns import check_words

        check_words(listed, background_names, threshold, caption, facts_of(model).nouns, model)
        from goca.exports import check_objects
        from goca.exports.objects import ObjectOptions
        from goca.folders import ModelOptions, plan_datasets, plan_outputs, segment_images
        from goca.parallel import Executor

        wanted = arguments.names(formats)
        objects = ObjectOptions(instances=instances, min_area=min_area, fill_holes=fill_holes, polygons=polygons)
        check_objects(wanted, objects)
        jobs = plan_outputs(images, out, wanted, objects)
        classes_tagger = _tagger(tagger, out, tagger_prices, batch)
        executor = Executor(workers=workers, ray=ray)
        executor.check()
        from goca.request import SegmentationRequest

        request = SegmentationRequest("", listed, background_names, threshold, caption)
        options = ModelOptions(
            name=model,
            recipe=recipe,
            device=device,
            dtype=dtype,
            batch=batch,
            threads=threads,
            settings={
                "timestep": timesteps,
                "size": size,
                "seed": seed,
                "seeds": seeds,
                "flip": flip,
                "window": window,
                "refine_edges": refine_edges,
                "floor": floor,
                **with_automatic(given, model, device, dtype, batch),
            },
        )
        indexed = out if len(jobs) > 1 or any(path.is_dir() for path in images) else None
        datasets = plan_datasets(jobs, out, wanted) if indexed else plan_datasets(jobs, out, wanted, jobs[0].stem)
        events = segment_images(
            jobs,
            request,
            options,
            out=indexed,
            resume=resume,
            executor=executor,
            tagger=classes_tagger,
            datasets=datasets,
        )
        summary = Summary()
        final = _run(events, len(jobs), model, indexed, as_json, summary, datasets.values())
        if len(jobs) > 1 and not as_json:
            summary.show()
        say_unlabelled(unlabelled)
        summary.say_not_found()
        summary.say_left_out(indexed)
        if not as_json:
            show(*map(str, datasets.values() if final.done else ()))
        print_end(final, out, indexed, resume, as_json)
    if final.left_out:
        raise typer.Exit(1)


def _tagger(spec: str, out: Path, prices: tuple[float, float] | None, batch: int) -> "str | Tagger":
    """The tagger, as far as it needs no model. Raises GocaError if it is unknown or cannot start."""
    from goca.folders import CAPTIONS
    from goca.tagging import GIVEN, check_tagger, is_self, tagger_named

    if spec == GIVEN:
        return spec
    check_tagger(spec)
    return spec if is_self(spec) else tagger_named(spec, captions=out / CAPTIONS, prices=prices, batch=batch)


def _run(
    events: "Generator[FolderEvent, None, None]",
    total: int,
    model: str,
    indexed: Path | None,
    as_json: bool,
    summary: "Summary",
    datasets: Iterable[Path],
) -> "FolderProgress":
    """Segment every image; print a single image's table, or lines of JSON. A single image's error is raised."""
    from goca.diffusion.loading import without_bars
    from goca.folders import Assembling, Calibrating, FolderProgress, TaggingProgress
    from goca.tagging.base import Estimate

    done = unknown = FolderProgress(total=total)
    outcome = None
    try:
        # A download shows the Hub's own progress, except beside JSON.
        with progress(hidden=as_json) as bar, without_bars() if as_json else nullcontext(), closing(events):
            task = bar.add_task(f"loading {model}", total=None)
            for event in events:
                if isinstance(event, Estimate):
                    if not as_json:
                        with paused(bar):
                            show(f"expected use of the tagger: {event}")
                    continue
                if isinstance(event, TaggingProgress | Calibrating | Assembling):
                    bar.update(task, **_stage(event))
                    continue
                if isinstance(event, FolderProgress):
                    if done is unknown:
                        collector.go_on()
                        bar.reset(task, description="segmenting", total=total)
                    done = event
                    bar.update(task, completed=event.done + event.left_out)
                    continue
                if total == 1 and isinstance(event.result, GocaError):
                    raise event.result
                outcome = event
                summary.add(outcome)
                if as_json:
                    print_json(outcome, datasets if indexed is None else ())
    except KeyboardInterrupt:
        say(f"stopped; {_complete(done, indexed)} of {total} images are done and complete")
        raise typer.Exit(130) from None
    if total == 1 and not as_json and outcome is not None and not isinstance(outcome.result, GocaError):
        print_table(outcome.job, outcome.result)
    return done


def _stage(event: "TaggingProgress | Calibrating | Assembling") -> dict[str, Any]:
    """What the progress bar shows of the work before the images and after them."""
    from goca.folders import Calibrating, TaggingProgress

    if isinstance(event, TaggingProgress):
        return {"description": f"tagging with {event.tagger}", "completed": event.done, "total": event.total}
    if isinstance(event, Calibrating):
        text = f"calibrating on {event.images} images without content, once for this model and these classes"
        return {"description": text}
    return {"description": f"writing {event.target}"}


def _complete(progress: "FolderProgress", indexed: Path | None) -> int:
    """The number of images with all their files; the index also has those that workers have not yet reported."""
    from goca.folders import index_lines

    if indexed is not None and (lines := index_lines(indexed)).path.exists():
        return sum("outputs" in line for line in lines.read())
    return progress.done
