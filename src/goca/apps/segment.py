"""`goca segment`: load a model once, label the pictures, write and print each as it is done."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from goca.apps.files import Job
from goca.apps.options import Asked
from goca.apps.terminal import console, paused, progress, say, table
from goca.errors import GocaError

if TYPE_CHECKING:
    from goca.question import Question
    from goca.segmentation import Segmentation


@dataclass(frozen=True)
class Model:
    """What to load, and how; see `Segmenter.from_pretrained`."""

    name: str
    recipe: str
    device: str | None
    dtype: str | None
    batch: int
    overrides: Mapping[str, Any]


def run(jobs: Sequence[Job], asked: Asked, model: Model, as_json: bool) -> bool:
    """Label every picture; whether all could be.

    A picture that cannot be read is named on stderr and left out; alone, it raises its GocaError. What is
    written stays, whatever happens later.
    """
    done = 0
    try:
        with progress(hidden=as_json) as bar:
            loading = bar.add_task(f"loading {model.name}", total=None)
            from goca.model.load import without_bars
            from goca.model.words import nouns
            from goca.question import Question
            from goca.recipe import recipe_named

            recipe = recipe_named(model.recipe)
            nouns(asked.classes, asked.others)
            from goca.segmenter import Segmenter

            # A fetched model shows the hub's own progress, but nothing may stand beside JSON.
            with without_bars() if as_json else nullcontext():
                segmenter = Segmenter.from_pretrained(
                    model.name, recipe, model.device, model.dtype, batch=model.batch, **model.overrides
                )
            prompts = segmenter.check(asked.classes, asked.others, asked.caption, asked.background)
            bar.remove_task(loading)
            labelling = bar.add_task("labelling", total=len(jobs))

            def leave_out(question: "Question", error: GocaError) -> None:
                if len(jobs) == 1:
                    raise error
                name = str(question.image)
                with paused(bar):
                    say(f"left out: {error}" if name in str(error) else f"left out: {name}: {error}")
                bar.advance(labelling)

            pending = {str(job.picture): job for job in jobs}
            questions = (
                Question(job.picture, asked.classes, asked.others, asked.background, asked.caption) for job in jobs
            )
            for question, result in segmenter.stream(questions, leave_out, prompts):
                job = pending[str(question.image)]
                written = result.save(job.folder, job.stem)
                done += 1
                with paused(bar):
                    show(job.picture, result, written, as_json)
                bar.advance(labelling)
    except KeyboardInterrupt:
        say(f"stopped; {done} of {len(jobs)} pictures are done and whole")
        raise typer.Exit(130) from None
    if done < len(jobs):
        say(f"{done} of {len(jobs)} pictures are done")
    return done == len(jobs)


def show(picture: Path, result: "Segmentation", written: Sequence[Path], as_json: bool) -> None:
    """One result on stdout: a line of JSON, or a table and the files."""
    if as_json:
        print(
            json.dumps({"image": str(picture), **result.to_json(), "files": [str(path) for path in written]}),
            flush=True,
        )
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
    out.print(str(picture), soft_wrap=True)
    out.print(found)
    for line in (*(f"note: {note}" for note in result.plan.notes), *map(str, written), ""):
        out.print(line, soft_wrap=True)
