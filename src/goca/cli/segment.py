"""`goca segment`: load a model once, label the images, write and print each as it is done."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from operator import ne
from typing import TYPE_CHECKING, Any

import typer

from goca.cli.console import console, described, paused, progress, say, table
from goca.cli.files import Job
from goca.cli.parsing import Asked
from goca.cli.resume import Facts, finished
from goca.errors import GocaError

if TYPE_CHECKING:
    from rich.progress import Progress

    from goca.diffusion.backbone import BackboneSession
    from goca.request import SegmentationRequest
    from goca.segmentation import Segmentation
    from goca.segmenter import Segmenter


@dataclass(frozen=True)
class Model:
    """What to load, and how; see `Segmenter.from_pretrained`."""

    name: str
    recipe: str
    device: str | None
    dtype: str | None
    batch: int
    overrides: Mapping[str, Any]


def run(jobs: Sequence[Job], asked: Asked, model: Model, as_json: bool, resume: bool) -> bool:
    """Label every image; whether all could be.

    An image that cannot be read is named on stderr and left out; alone, it raises its GocaError. What is
    written stays, whatever happens later. resume: what an earlier run finished is not done again.
    """
    kept: dict[Job, Facts] = {}
    done = 0
    try:
        with progress(hidden=as_json) as bar:
            segmenter, session = _load(model, asked, bar, as_json)
            if resume:
                kept = finished(jobs, asked.to_json(), segmenter.plan.to_json())
            done = len(kept)
            labelling = bar.add_task("labelling", total=len(jobs), completed=done)

            rest = {str(job.image): job for job in jobs if job not in kept}
            untold = iter(jobs)
            for request, outcome in segmenter.stream(_questions(rest.values(), asked), session):
                job = rest[str(request.image)]
                if isinstance(outcome, GocaError):
                    if len(jobs) == 1:
                        raise outcome
                    name, reason = str(request.image), described(outcome)
                    with paused(bar):
                        say(f"left out: {reason}" if name in reason else f"left out: {name}: {reason}")
                    bar.advance(labelling)
                    continue
                outcome.save(job.folder, job.stem, facts={"asked": asked.to_json()})
                done += 1
                with paused(bar):
                    _tell_kept(takewhile(partial(ne, job), untold), kept, as_json)
                    _tell(job, outcome, asked, as_json)
                bar.advance(labelling)
            _tell_kept(untold, kept, as_json)
    except KeyboardInterrupt:
        say(f"stopped; {done} of {len(jobs)} images are done and whole")
        raise typer.Exit(130) from None
    if resume:
        say(f"{done} of {len(jobs)} images are done, {len(kept)} of them kept from before")
    elif done < len(jobs):
        say(f"{done} of {len(jobs)} images are done")
    return done == len(jobs)


def _load(model: Model, asked: Asked, bar: "Progress", as_json: bool) -> tuple["Segmenter", "BackboneSession"]:
    """The model, and a session with the captions encoded. Raises GocaError for what cannot be loaded or asked."""
    loading = bar.add_task(f"loading {model.name}", total=None)
    from goca.diffusion.loading import without_bars
    from goca.recipe import recipe_named
    from goca.text.nouns import parse_nouns

    recipe = recipe_named(model.recipe)
    parse_nouns(asked.classes, asked.background_classes)
    from goca.segmenter import Segmenter

    # A fetched model shows the hub's own progress, but nothing may stand beside JSON.
    with without_bars() if as_json else nullcontext():
        segmenter = Segmenter.from_pretrained(
            model.name, recipe, device=model.device, dtype=model.dtype, batch=model.batch, **model.overrides
        )
    session = segmenter.check(asked.classes, asked.background_classes, asked.caption, asked.background)
    bar.remove_task(loading)
    return segmenter, session


def _questions(jobs: Iterable[Job], asked: Asked) -> "Iterator[SegmentationRequest]":
    from goca.request import SegmentationRequest

    return (
        SegmentationRequest(job.image, asked.classes, asked.background_classes, asked.background, asked.caption)
        for job in jobs
    )


def _tell_kept(jobs: Iterable[Job], kept: Mapping[Job, Facts], as_json: bool) -> None:
    """The lines of JSON of an earlier run, as if this run had made them."""
    for job in jobs:
        if as_json and job in kept:
            _print_json(job, kept[job])


def _print_json(job: Job, facts: Facts) -> None:
    print(
        json.dumps({"image": str(job.image), **facts, "files": [str(path) for path in job.targets]}),
        flush=True,
    )


def _tell(job: Job, result: "Segmentation", asked: Asked, as_json: bool) -> None:
    """One result on stdout: a line of JSON, or a table and the files."""
    if as_json:
        _print_json(job, {**result.to_json(), "asked": asked.to_json()})
        return
    found = table("class", "share of pixels", "peak score")
    for column in found.columns[1:]:
        column.justify = "right"
    for name, (share, peak) in result.present.items():
        found.add_row(name, f"{share:.1%}", f"{peak:.2f}")
    unlabelled = float((result.labels == 0).mean())
    if unlabelled:
        found.add_row("(background)", f"{unlabelled:.1%}", "")
    out = console()
    out.print(str(job.image), soft_wrap=True)
    out.print(found)
    for line in (*(f"note: {note}" for note in result.plan.notes), *map(str, job.targets), ""):
        out.print(line, soft_wrap=True)
