"""`goca segment`: label an image and print its classes, or label folders of images and print a summary."""

from collections import Counter, defaultdict
from collections.abc import Generator, Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goca import bundled
from goca.cli import arguments, collector
from goca.cli.console import described, paused, progress, say, say_unlabelled, session, show, show_json, table
from goca.cli.settings import with_automatic
from goca.errors import GocaError
from goca.exports import EXPORTERS

if TYPE_CHECKING:
    from goca.batches import Facts
    from goca.folders import FolderEvent, FolderProgress, ImageJob, ImageOutcome
    from goca.tagging import Tagger

MOST_ROWS = 20
"""Most classes of a table that lists them all; of more, only those with pixels are listed."""
MOST_LINES = 10
"""Most lines of notes, and of images that were left out."""
MOST_NAMES = 3
"""Most images that such a line names."""


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
        summary = _Summary()
        final = _run(events, len(jobs), model, indexed, as_json, summary, datasets.values())
        if len(jobs) > 1 and not as_json:
            summary.show()
        say_unlabelled(unlabelled)
        summary.say_not_found()
        summary.say_left_out(indexed)
        if not as_json:
            show(*map(str, datasets.values() if final.done else ()))
        _print_end(final, out, indexed, resume, as_json)
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
    summary: "_Summary",
    datasets: Iterable[Path],
) -> "FolderProgress":
    """Segment every image; print a single image's table, or lines of JSON. A single image's error is raised."""
    from goca.diffusion.loading import without_bars
    from goca.folders import Assembling, Calibrating, FolderProgress, TaggingProgress, index_lines
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
                if isinstance(event, TaggingProgress):
                    bar.update(
                        task, description=f"tagging with {event.tagger}", completed=event.done, total=event.total
                    )
                    continue
                if isinstance(event, Calibrating):
                    text = (
                        f"calibrating on {event.images} images without content, once for this model and these classes"
                    )
                    bar.update(task, description=text)
                    continue
                if isinstance(event, Assembling):
                    bar.update(task, description=f"writing {event.target}")
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
                    _print_json(outcome, datasets if indexed is None else ())
    except KeyboardInterrupt:
        # The index also has images that workers have finished but not yet reported.
        count = done.done
        if indexed is not None and (lines := index_lines(indexed)).path.exists():
            count = sum("outputs" in line for line in lines.read())
        say(f"stopped; {count} of {total} images are done and complete")
        raise typer.Exit(130) from None
    if total == 1 and not as_json and outcome is not None and not isinstance(outcome.result, GocaError):
        _print_table(outcome.job, outcome.result)
    return done


def _print_json(outcome: "ImageOutcome", datasets: Iterable[Path]) -> None:
    from goca.folders import stored_path

    if isinstance(outcome.result, GocaError):
        show_json(outcome.to_json())
        return
    files = [stored_path(path) for path in (*outcome.job.targets, *datasets)]
    show_json({"image": stored_path(outcome.job.image), **outcome.result, "files": files})


def _print_table(job: "ImageJob", facts: "Facts") -> None:
    """Print a single image: its classes, notes and files."""
    rows = table("class", "share of pixels", "evidence", figures=2)
    entries = facts["classes"]
    if len(entries) > MOST_ROWS:
        entries = sorted((entry for entry in entries if entry["share"]), key=lambda entry: -entry["share"])
    for entry in entries:
        rows.add_row(entry["name"], f"{entry['share']:.1%}", f"{entry['evidence']:.2f}")
    if background := _background(facts):
        rows.add_row("(background)", f"{background:.1%}", "")
    show(str(job.image), rows, *_without_pixels(len(facts["classes"]) - len(entries)))
    show(*(f"note: {note}" for note in facts["plan"]["notes"]), *map(str, job.targets))


def _without_pixels(count: int) -> Iterable[str]:
    if count:
        yield f"{count} more {'class has' if count == 1 else 'classes have'} no pixels"


def _background(facts: "Facts") -> float:
    """The share of pixels without a label; exactly 0 if every pixel has one."""
    pixels = facts["height"] * facts["width"]
    return round((1 - sum(entry["share"] for entry in facts["classes"])) * pixels) / pixels


def _without_names(note: str) -> str:
    """A note as images have it in common: otherwise each set of absent classes would have a line."""
    from goca.text.nouns import TOO_LITTLE_EVIDENCE

    return f"{TOO_LITTLE_EVIDENCE}some classes: no pixels" if note.startswith(TOO_LITTLE_EVIDENCE) else note


@dataclass
class _Summary:
    """The results of a run over several images, gathered image by image.

    Attributes:
        images: Number of images with results.
        with_pixels, shares: For each class, the number of images in which it has pixels, and the sum of its shares.
        notes: Number of images for each note.
        by_evidence: Whether evidence alone decides which classes get pixels.
        left_out: {reason: the images}.
    """

    images: int = 0
    with_pixels: Counter[str] = field(default_factory=Counter)
    shares: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    notes: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    by_evidence: bool = False

    def add(self, outcome: "ImageOutcome") -> None:
        """Count an image."""
        facts = outcome.result
        if isinstance(facts, GocaError):
            image, reason = outcome.job.image, described(facts)
            if reason.startswith(f"{image} "):
                # Without the image's name, many images share a reason.
                reason = "each" + reason.removeprefix(str(image))
            self.left_out.setdefault(reason, []).append(image)
            return
        self.images += 1
        shares = {entry["name"]: entry["share"] for entry in facts["classes"]} | {"(background)": _background(facts)}
        for name, share in shares.items():
            self.with_pixels[name] += share > 0
            self.shares[name] += share
        self.notes.update(_without_names(note) for note in facts["plan"]["notes"])
        request = facts["request"]
        self.by_evidence = facts["plan"]["floor"] > 0 and not request["tagger"] and request["background"] == "auto"

    def show(self) -> None:
        """Print the classes, the largest first, and the notes."""
        names = sorted(self.shares, key=self.shares.__getitem__, reverse=True)
        if not self.with_pixels["(background)"]:
            names = [name for name in names if name != "(background)"]
        listed = [name for name in names if self.with_pixels[name] or len(names) <= MOST_ROWS]
        rows = table("class", "images", "mean share", figures=2)
        for name in listed:
            rows.add_row(name, str(self.with_pixels[name]), f"{self.shares[name] / self.images:.1%}")
        if self.images:
            show(rows, *_without_pixels(len(names) - len(listed)))
        notes = self.notes.most_common()
        show(*(f"note: {note} ({count} of {self.images} images)" for note, count in notes[:MOST_LINES]))
        if len(notes) > MOST_LINES:
            show(f"and {len(notes) - MOST_LINES} more notes: each is in the JSON file of its image")

    def say_not_found(self) -> None:
        """Say how to keep classes nonetheless, if too little evidence left none in any image."""
        any_class = any(count for name, count in self.with_pixels.items() if name != "(background)")
        if self.images and self.by_evidence and not any_class:
            what = "the image" if self.images == 1 else f"any of the {self.images} images"
            message = (
                f"no class was found in {what}, so all pixels are background: lower the floor; 0 keeps every class"
            )
            say(described(GocaError(message, "floor")))

    def say_left_out(self, indexed: Path | None) -> None:
        """Say which images were left out and why, in a few lines."""
        from goca.folders import INDEX

        groups = list(self.left_out.items())
        for reason, images in groups[:MOST_LINES]:
            names = ", ".join(map(str, images[:MOST_NAMES]))
            more = f" and {len(images) - MOST_NAMES} more" if len(images) > MOST_NAMES else ""
            if len(images) == 1 and reason.startswith("each "):
                say(f"left out: {names}{reason.removeprefix('each')}")
            elif names in reason:
                say(f"left out: {reason}")
            else:
                say(f"left out: {names}{more}: {reason}")
        if rest := sum(len(images) for _, images in groups[MOST_LINES:]):
            say(f"and {rest} more: see {indexed / INDEX if indexed is not None else INDEX}")


def _print_end(done: "FolderProgress", out: Path, indexed: Path | None, resume: bool, as_json: bool) -> None:
    """Print what the run did on stdout; with JSON, only what needs attention, on stderr."""
    from goca.folders import INDEX

    text = f"{done.done} {'image' if done.done == 1 else 'images'} segmented"
    if resume:
        text += f", {done.kept} of them by an earlier run"
    if done.left_out:
        text += f", {done.left_out} left out"
    text += f"; results in {out}" + (f", listed in {indexed / INDEX}" if indexed is not None else "")
    if as_json and (resume or done.left_out):
        say(text)
    elif not as_json and (resume or done.total > 1):
        show(text)
