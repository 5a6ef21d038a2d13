"""Leading a run: what is left to do, who does it, and the figures in the end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from goca.errors import GocaError
from goca.evaluation.cluster import in_cluster, reach
from goca.evaluation.config import Job, units
from goca.evaluation.confusion_image import confusion_image
from goca.evaluation.datasets.base import Dataset, Sample
from goca.evaluation.evaluator import Evaluator, Said
from goca.evaluation.fingerprint import settings
from goca.evaluation.protocol import Protocol
from goca.evaluation.records import ImageRecord
from goca.evaluation.report import Report, in_order
from goca.evaluation.run_folder import Run
from goca.evaluation.workers import Task, in_processes
from goca.tagging import prepare
from goca.tagging.base import Estimate, PaidTagger, Tagger


@dataclass(frozen=True)
class Crew:
    """Who does the work: this process, several, or a Ray cluster at an address."""

    workers: int | None = None
    ray: str | None = None

    def __str__(self) -> str:
        if self.ray is not None:
            return f"ray {self.ray}"
        return "1 process" if (self.workers or 1) == 1 else f"{self.workers} processes"


@dataclass(frozen=True)
class Watch:
    """Called while a run goes on: with the stage and how many images it is over, and the images done with.

    estimate: called with what a tagger that has to be paid will take, before it is asked.
    """

    stage: Callable[[str, int, int], None] = lambda name, total, done: None
    done: Callable[[Sequence[ImageRecord]], None] = lambda images: None
    tagged: Callable[[], None] = lambda: None
    estimate: Callable[[Estimate], None] = lambda estimate: None


def evaluate(
    job: Job,
    out: Path | None = None,
    crew: Crew = Crew(),
    watch: Watch = Watch(),
    command: Sequence[str] = (),
) -> tuple[Report, dict[str, Any]]:
    """Evaluate, or go on with what `out` has; the report, and the settings that it is of.

    out: the run's folder, None to write nothing. Raises GocaError for what cannot be done, and for a folder of another
    run. Whatever stops it, each image that is done is a whole line of `out`, and the same call goes on from there.
    """
    if crew.ray is not None:
        # Before a model is loaded for nothing.
        reach(crew.ray)
    dataset = job.open()
    if not dataset.samples:
        raise GocaError(f"{dataset.name} has no image to evaluate")
    # Whoever cannot be asked is refused before anything is loaded or written.
    early = job.tagger_for(None, _captions(out)) if job.tags_ahead else None
    if isinstance(early, PaidTagger):
        early.ready()
    watch.stage(f"loading {job.model}", 0, 0)
    segmenter = job.segmenter()
    tagger = early or job.tagger_for(segmenter, _captions(out))
    protocol = job.protocol_of(dataset, tagger.name)
    facts = settings(job, dataset, protocol, segmenter)
    with Run(out, facts, command) as run:
        tasks = list(_open(dataset, job.batch, run.images))
        if job.tags_ahead:
            tasks = _tagged(tagger, dataset, job.batch, tasks, watch)
        left = sum(len(units(dataset, job.batch)[task.unit]) for task in tasks)
        watch.stage("segmenting", len(dataset.samples), len(dataset.samples) - left)
        if tasks and crew.ray is None and (crew.workers or 1) == 1:
            parts = _here(Evaluator(segmenter, dataset, tagger, protocol), tasks, job.batch)
        else:
            # Each worker has a model of its own.
            del segmenter, tagger
            parts = _elsewhere(job, protocol, tasks, crew)
        for images in parts:
            run.add(images)
            watch.done(images)
        names = tuple(one.name for one in dataset.categories)
        report = Report(names, protocol, in_order([one.id for one in dataset.samples], run.images))
        _finish(run, report, dataset, str(crew) if tasks else None)
    return report, facts


def estimate(job: Job, out: Path | None = None) -> Estimate:
    """What the job's tagger will take for the images that `out` has no captions of; no model is loaded or asked.

    Raises GocaError for a tagger that nobody has to pay, and as `evaluate` does.
    """
    dataset = job.open()
    with TemporaryDirectory() as nothing:
        tagger = job.tagger_for(None, _captions(out or Path(nothing))) if job.tags_ahead else None
        if not isinstance(tagger, PaidTagger):
            raise GocaError(f'nobody has to pay the tagger "{job.tagger}": leave --estimate out')
        return tagger.estimate(dataset.samples, dataset)


def _captions(out: Path | None) -> Path | None:
    return None if out is None else out / "captions.jsonl"


def _finish(run: Run, report: Report, dataset: Dataset, crew: str | None) -> None:
    """Write the figures and the confusion image. crew: None where nothing was left to do."""
    left_out = [{"id": image.id, "reason": image.left_out} for image in report.left_out]
    found = {"metrics": report.metrics(), "left_out": left_out}
    files = {"confusion.png": confusion_image(report, dataset.palette)} if run.folder is not None else {}
    run.finish(found, files, crew)


def _open(dataset: Dataset, batch: int, done: Mapping[str, ImageRecord]) -> Iterator[Task]:
    """The units of which an image is missing or was left out, with the captions of those that were not.

    They are done again as a whole, and their later lines count: batches are always composed the same.
    """
    for index, samples in enumerate(units(dataset, batch)):
        known = [done[sample.id] for sample in samples if sample.id in done]
        if len(known) < len(samples) or any(image.counts is None for image in known):
            said = {one.id: Said(one.caption) for one in known if one.caption is not None and not one.left_out}
            yield Task(index, said)


def _tagged(tagger: Tagger, dataset: Dataset, batch: int, tasks: Sequence[Task], watch: Watch) -> list[Task]:
    """The tasks with what the tagger says of their images, or why it says nothing."""
    groups = units(dataset, batch)
    missing = [sample for task in tasks for sample in groups[task.unit] if sample.id not in task.said]
    if missing and isinstance(tagger, PaidTagger):
        watch.estimate(tagger.estimate(missing, dataset))
    watch.stage(f"tagging with {tagger.name}", len(missing), 0)
    prepare(tagger, missing, dataset, watch.tagged)
    said = {sample.id: _said(tagger, sample, dataset) for sample in missing}
    return [
        Task(task.unit, {one.id: task.said.get(one.id) or said[one.id] for one in groups[task.unit]}) for task in tasks
    ]


def _said(tagger: Tagger, sample: Sample, dataset: Dataset) -> Said:
    try:
        return Said(tagger.tag(sample, dataset))
    except GocaError as error:
        return Said(reason=str(error))


def _here(evaluator: Evaluator, tasks: Sequence[Task], batch: int) -> Iterator[list[ImageRecord]]:
    groups = units(evaluator.dataset, batch)
    for task in tasks:
        yield evaluator.unit(groups[task.unit], task.said)


def _elsewhere(job: Job, protocol: Protocol, tasks: Sequence[Task], crew: Crew) -> Iterator[list[ImageRecord]]:
    if not tasks:
        return iter(())
    if crew.ray is not None:
        return in_cluster(job, protocol, tasks, crew.ray, crew.workers)
    return in_processes(job, protocol, tasks, crew.workers or 1)
