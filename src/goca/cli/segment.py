"""`goca segment`: label images and folders of images, and print each as it is done."""

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goca.cli import arguments
from goca.cli.console import described, paused, progress, say, session, show, show_json, table
from goca.errors import GocaError
from goca.exports import EXPORTERS

if TYPE_CHECKING:
    from goca.folders import Facts, FolderProgress, ImageJob, ImageOutcome

MOST_CLASSES = 8
"""Classes that the line of an image in a folder lists; its JSON file has them all."""


def segment(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE|DIR",
            show_default=False,
            help="Images, and folders to search for images; hidden files and earlier results are skipped.",
        ),
    ],
    classes: Annotated[
        str | None,
        arguments.option(metavar="NAMES", help='Classes to look for: "cat, grass".'),
    ] = None,
    classes_file: Annotated[
        Path | None,
        arguments.option(
            metavar="FILE",
            help='The classes in a file, one per line: "class" or "class: synonym, synonym". # starts a comment.',
        ),
    ] = None,
    background_classes: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Classes whose pixels become background: they get no label."),
    ] = "",
    background: Annotated[
        str,
        typer.Option(
            metavar="auto|none|T",
            help="auto: the recipe's rule; none: every pixel gets a class; T: a score threshold from 0 to 1.",
        ),
    ] = "auto",
    caption: Annotated[
        str | None,
        arguments.option(
            metavar="TEXT", help="Prompt to use instead of the list of classes; it must contain every class."
        ),
    ] = None,
    model: arguments.ModelOption = "bundled",
    recipe: arguments.RecipeOption = "goca",
    timestep: arguments.TimestepOption = None,
    seeds: arguments.SeedsOption = 1,
    flip: arguments.FlipOption = False,
    window: arguments.WindowOption = False,
    refine_edges: arguments.RefineEdgesOption = False,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for NAME.labels.png, NAME.overlay.png and NAME.json.")
    ] = Path("goca-out"),
    formats: Annotated[
        str,
        typer.Option("--format", metavar="F,F", help=f"Files to write for each image, of: {', '.join(EXPORTERS)}."),
    ] = "labels,overlay,json",
    as_json: arguments.JsonLinesOption = False,
    resume: Annotated[
        bool,
        arguments.option(
            "--resume",
            help="Keep the results of an earlier run and segment the remaining images; results that were made with "
            "other classes or settings stop the run.",
        ),
    ] = False,
    workers: arguments.WorkersOption = None,
    ray: arguments.RayOption = None,
    device: arguments.DeviceOption = None,
    dtype: arguments.DtypeOption = None,
    size: arguments.SizeOption = None,
    seed: arguments.SeedOption = 0,
    batch: arguments.BatchOption = 4,
    verbose: arguments.VerboseOption = False,
) -> None:
    """Label the pixels of images with class names.

    Each image gets an indexed PNG of its own size, an overlay to look at, and a JSON file, or what --format says.
    Below --out, results keep the images' paths from the common parent folder of all inputs.
    """
    with session(verbose):
        listed = arguments.classes(classes, classes_file)
        threshold, timesteps = arguments.background(background), arguments.timesteps(timestep)
        from goca.folders import ModelOptions, plan_outputs, segment_images
        from goca.parallel import Executor

        jobs = plan_outputs(images, out, arguments.names(formats))
        from goca.request import SegmentationRequest

        request = SegmentationRequest("", listed, arguments.names(background_classes), threshold, caption)
        options = ModelOptions(
            name=model,
            recipe=recipe,
            device=device,
            dtype=dtype,
            batch=batch,
            settings={
                "timestep": timesteps,
                "size": size,
                "seed": seed,
                "seeds": seeds,
                "flip": flip,
                "window": window,
                "refine_edges": refine_edges,
            },
        )
        executor = Executor(workers=workers, ray=ray)
        events = segment_images(jobs, request, options, resume=resume, executor=executor)
        summary = _run(events, len(jobs), model, as_json)
        _print_summary(summary, out, resume, as_json)
    if summary.left_out:
        raise typer.Exit(1)


def _run(events: "Iterable[FolderProgress | ImageOutcome]", total: int, model: str, as_json: bool) -> "FolderProgress":
    """Segment every image and print each as it is done. Where there is only one, its error is the command's."""
    from goca.diffusion.loading import without_bars
    from goca.folders import FolderProgress

    summary = FolderProgress(total=total)
    known_notes: set[str] = set()
    try:
        # A model that is downloaded shows the Hub's own progress, but not beside JSON.
        with progress(hidden=as_json) as bar, without_bars() if as_json else nullcontext():
            loading = bar.add_task(f"loading {model}", total=None)
            segmenting = bar.add_task("segmenting", total=total, start=False, visible=False)
            for event in events:
                if isinstance(event, FolderProgress):
                    summary = event
                    bar.update(loading, visible=False)
                    bar.start_task(segmenting)
                    bar.update(segmenting, completed=event.done + event.left_out, visible=True)
                    continue
                if total == 1 and isinstance(event.result, GocaError):
                    raise event.result
                with paused(bar):
                    _print_outcome(event, as_json, total == 1, known_notes)
    except KeyboardInterrupt:
        say(f"stopped; {summary.done} of {total} images are done and complete")
        raise typer.Exit(130) from None
    return summary


def _print_outcome(outcome: "ImageOutcome", as_json: bool, alone: bool, known_notes: set[str]) -> None:
    """A line of JSON, a table for an image alone, or a few lines; for people, only what this run did."""
    job, facts = outcome.job, outcome.result
    if isinstance(facts, GocaError):
        reason = described(facts)
        say(f"left out: {reason}" if str(job.image) in reason else f"left out: {job.image}: {reason}")
    elif as_json:
        files = [str(path) for path in job.targets]
        show_json({"image": str(job.image), **facts, "files": files})
    elif alone:
        _print_table(job, facts)
    elif not outcome.kept:
        _print_block(job, facts, known_notes)


def _print_table(job: "ImageJob", facts: "Facts") -> None:
    rows = table("class", "share of pixels", "peak score")
    for column in rows.columns[1:]:
        column.justify = "right"
    for entry in facts["classes"]:
        rows.add_row(entry["name"], f"{entry['share']:.1%}", f"{entry['peak']:.2f}")
    if background := _background(facts):
        rows.add_row("(background)", f"{background:.1%}", "")
    show(str(job.image), rows, *(f"note: {note}" for note in facts["plan"]["notes"]), *map(str, job.targets))


def _print_block(job: "ImageJob", facts: "Facts", known_notes: set[str]) -> None:
    """The image and its classes by their shares, on one line; a note only once in a run."""
    shares = {entry["name"]: entry["share"] for entry in facts["classes"]} | {"(background)": _background(facts)}
    visible = sorted((name for name in shares if shares[name]), key=shares.__getitem__, reverse=True)
    listed = [f"{name} {shares[name]:.1%}" for name in visible[:MOST_CLASSES]]
    if len(visible) > MOST_CLASSES:
        listed.append(f"{len(visible) - MOST_CLASSES} more")
    notes = [note for note in facts["plan"]["notes"] if note not in known_notes]
    known_notes.update(notes)
    show(f"{job.image}: {', '.join(listed)}", *(f"  note: {note}" for note in notes))


def _background(facts: "Facts") -> float:
    """The share of the pixels without a label; exactly 0 where every pixel has one."""
    pixels = facts["height"] * facts["width"]
    return round((1 - sum(entry["share"] for entry in facts["classes"])) * pixels) / pixels


def _print_summary(summary: "FolderProgress", out: Path, resume: bool, as_json: bool) -> None:
    """What the run did, on stdout; beside JSON on stderr, where there is something to know."""
    text = f"{summary.done} {'image' if summary.done == 1 else 'images'} segmented"
    if resume:
        text += f", {summary.kept} of them by an earlier run"
    if summary.left_out:
        text += f", {summary.left_out} left out"
    text += f"; results in {out}"
    if as_json and (resume or summary.left_out):
        say(text)
    elif not as_json and (resume or summary.total > 1):
        show(text)
