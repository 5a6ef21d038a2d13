"""A run from its configuration to its figures, told as events: what is left to do is tagged, segmented and counted."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from goca.errors import GocaError
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.confusion_image import confusion_image
from goca.evaluation.datasets.base import Dataset, Sample
from goca.evaluation.evaluator import Evaluator, ImageBatch, batches
from goca.evaluation.fingerprint import settings
from goca.evaluation.records import ImageRecord
from goca.evaluation.report import Report
from goca.evaluation.run_folder import CONFUSION, RunFolder, read_facts
from goca.parallel import THIS_PROCESS, Executor, run_units
from goca.segmenter import Segmenter
from goca.tagging.base import BatchTagger, Estimate, PaidTagger, Tagger


@dataclass(frozen=True)
class Stage:
    """A part of the run begins. total, done: images, 0 where it is not over images."""

    name: str
    total: int = 0
    done: int = 0


@dataclass(frozen=True)
class ImagesTagged:
    """A tagger that is asked before the model has `count` images more."""

    count: int


@dataclass(frozen=True)
class ImagesDone:
    """Images were evaluated, or left out, and written down."""

    images: Sequence[ImageRecord]


@dataclass(frozen=True)
class Finished:
    """The end of a run. settings: all that decided its figures, as JSON."""

    report: Report
    settings: dict[str, Any] = field(repr=False)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


ProgressEvent = Stage | Estimate | ImagesTagged | ImagesDone | Finished


def run(
    config: EvaluationConfig,
    out: Path | None = None,
    executor: Executor = THIS_PROCESS,
    command: Sequence[str] = (),
    segmenter: Segmenter | None = None,
) -> Generator[ProgressEvent, None, None]:
    """Evaluate, or go on with what `out` has. Close the generator to stop a run that is not at its end.

    Args:
        config: what to evaluate.
        out: the run's folder; None to write nothing.
        executor: where images are segmented.
        command: as the user gave it, for the record.
        segmenter: what `config` would load, where it is loaded already and the work is done in this process.

    Yields:
        Stages, images as they are done, what a tagger that has to be paid for will take, before it is asked, and at
        the end `Finished`. Whatever stops the run, each image that is done is a whole line of `out`, and the same call
        goes on from there.

    Raises:
        GocaError: something of this cannot be done, or the folder is of another run.
    """
    executor.check()  # before a model is loaded for nothing
    dataset = config.open_dataset()
    if not dataset.samples:
        raise GocaError(f"{dataset.name} has no image to evaluate")
    captions = _captions_file(out)
    # Before the model is loaded: a protocol that there is not, a folder of something else, a tagger that cannot start.
    config.check_given(dataset, config.protocol_for(dataset, config.tagger))
    if out is not None:
        read_facts(out)
    tagger = None if config.tags_itself else config.load_tagger(None, captions)
    if isinstance(tagger, PaidTagger):
        tagger.ready()
    if segmenter is None:
        yield Stage(f"loading {config.model}")
        segmenter = config.load_segmenter()
    tagger = tagger or config.load_tagger(segmenter, captions)
    protocol = config.protocol_for(dataset, tagger.name)
    decisive = settings(config, dataset, protocol, segmenter)
    with RunFolder(out, decisive, command) as folder:
        if not Report(dataset.class_names, protocol, tuple(folder.images.values())).is_plausible():
            raise GocaError(f"{out} has lines of another run: choose another folder, or begin anew", "out")
        work = list(_open_batches(dataset, config.batch, folder.images))
        if config.tags_ahead:
            # Rarely enough that questions under way at a time hardly wait for each other.
            work = yield from _tagged(tagger, dataset, work, 8 * max(config.batch, config.concurrency))
        total = len(dataset.samples)
        yield Stage("segmenting", total, total - sum(len(batch.indices) for batch in work))
        if executor.here:
            make_worker = partial(Evaluator, segmenter, dataset, tagger, protocol)
        else:
            make_worker = partial(config.load_evaluator, protocol)
            del segmenter, tagger  # each worker has its own
        executor = replace(executor, gpus=config.device in (None, "cuda"))
        for images in run_units(make_worker, work, executor):
            folder.add(images)
            yield ImagesDone(images)
        records = tuple(folder.images[sample.id] for sample in dataset.samples)
        report = Report(dataset.class_names, protocol, records)
        _finish(folder, config, report, dataset, str(executor) if work else None)
    yield Finished(report, decisive)


def evaluate(config: EvaluationConfig, out: Path | None = None, executor: Executor = THIS_PROCESS) -> Finished:
    """A run without its events. Args and Raises: see `run`."""
    with closing(run(config, out, executor)) as events:
        *_, finished = events
    assert isinstance(finished, Finished)
    return finished


def estimate(config: EvaluationConfig, out: Path | None = None) -> Estimate:
    """What the tagger will take for the images that `out` has no captions of; no model is loaded or asked."""
    dataset = config.open_dataset()
    with TemporaryDirectory() as empty:
        tagger = config.load_tagger(None, _captions_file(out or Path(empty))) if config.tags_ahead else None
        if not isinstance(tagger, PaidTagger):
            raise GocaError(f'nobody has to pay the tagger "{config.tagger}": leave the estimate out', "estimate")
        return tagger.estimate(dataset.samples, dataset)


def _captions_file(out: Path | None) -> Path | None:
    return None if out is None else out / "captions.jsonl"


def _open_batches(dataset: Dataset, size: int, done: Mapping[str, ImageRecord]) -> Iterator[ImageBatch]:
    """The batches of which an image is missing or was left out, with the captions of those that were not.

    They are done again as a whole, and their later lines count.
    """
    for batch in batches(dataset, size):
        records = [done.get(dataset.samples[index].id) for index in batch.indices]
        if any(record is None or record.counts is None for record in records):
            counted = [record for record in records if record is not None and not record.left_out]
            yield replace(batch, tags={record.id: record.caption for record in counted if record.caption is not None})


def _tagged(
    tagger: Tagger, dataset: Dataset, work: Sequence[ImageBatch], chunk: int
) -> Generator[ProgressEvent, None, list[ImageBatch]]:
    """The batches with what the tagger says of their images, or why it says nothing; asked `chunk` images at a time."""
    tags = {name: tag for batch in work for name, tag in batch.tags.items()}
    samples = [dataset.samples[index] for batch in work for index in batch.indices]
    missing = [sample for sample in samples if sample.id not in tags]
    if missing and isinstance(tagger, PaidTagger):
        yield tagger.estimate(missing, dataset)
    yield Stage(f"tagging with {tagger.name}", len(missing))
    for start in range(0, len(missing), chunk):
        part = missing[start : start + chunk]
        if isinstance(tagger, BatchTagger):
            tagger.prepare(part, dataset)
        tags |= {sample.id: _tag(tagger, sample, dataset) for sample in part}
        yield ImagesTagged(len(part))
    ids = [sample.id for sample in dataset.samples]
    return [replace(batch, tags={ids[index]: tags[ids[index]] for index in batch.indices}) for batch in work]


def _tag(tagger: Tagger, sample: Sample, dataset: Dataset) -> str | GocaError:
    try:
        return tagger.tag(sample, dataset)
    except GocaError as error:
        return error


def _finish(
    folder: RunFolder, config: EvaluationConfig, report: Report, dataset: Dataset, executor: str | None
) -> None:
    """Write the figures and the confusion image. executor: None where nothing was left to do."""
    left_out = [{"id": image.id, "reason": image.left_out} for image in report.left_out]
    root = None if config.root is None else str(config.root.absolute())  # where `goca report` finds the images
    figures = {"root": root, "metrics": report.metrics(), "left_out": left_out}
    files = {CONFUSION: confusion_image(report, dataset.palette)} if folder.folder is not None else {}
    folder.finish(figures, files, executor)
