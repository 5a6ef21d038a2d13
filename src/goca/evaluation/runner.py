"""A run from its configuration to its figures, as events: the remaining images are tagged, segmented and counted."""

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
    """A part of the run begins. total, done: numbers of images; 0 for a part that is not over images."""

    name: str
    total: int = 0
    done: int = 0


@dataclass(frozen=True)
class ImagesTagged:
    """A tagger that is asked in advance has finished `count` more images."""

    count: int


@dataclass(frozen=True)
class ImagesDone:
    """Images were evaluated, or left out, and written down."""

    images: Sequence[ImageRecord]


@dataclass(frozen=True)
class Finished:
    """The end of a run. settings: everything that decides its figures, as JSON."""

    report: Report
    settings: dict[str, Any] = field(repr=False)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


ProgressEvent = Stage | Estimate | ImagesTagged | ImagesDone | Finished


def run(
    config: EvaluationConfig,
    out: Path | str | None = None,
    executor: Executor = THIS_PROCESS,
    command: Sequence[str] = (),
    segmenter: Segmenter | None = None,
) -> Generator[ProgressEvent, None, None]:
    """Evaluate, resuming what `out` has. Close the generator to stop the run early.

    Args:
        config: What to evaluate.
        out: The run's folder; None to write nothing.
        executor: Where images are segmented.
        command: The user's command, for the record.
        segmenter: The segmenter of `config`, if it is already loaded and the work is done in this process.

    Yields:
        Stages, images as they are done, the expected use of a paid tagger before it is asked, and finally `Finished`.
        Whatever stops the run, each finished image is a whole line in `out`, and the same call resumes from there.

    Raises:
        GocaError: A part of this cannot be done, or the folder is another run's.
    """
    executor.check()  # before a model is loaded in vain
    out = None if out is None else Path(out)
    dataset = config.open_dataset()
    if not dataset.samples:
        raise GocaError(f"{dataset.name} has no image to evaluate")
    captions = _captions_file(out)
    # Check the protocol, the folder and the tagger before the model is loaded.
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
            raise GocaError(
                f"{out} has lines of another run: choose another folder, or start again in an empty one", "out"
            )
        work = list(_open_batches(dataset, config.batch, folder.images))
        if config.tags_ahead:
            # Large enough chunks that concurrent requests hardly wait for each other.
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


def evaluate(config: EvaluationConfig, out: Path | str | None = None, executor: Executor = THIS_PROCESS) -> Finished:
    """A run without its events. See `run` for arguments and errors."""
    with closing(run(config, out, executor)) as events:
        *_, finished = events
    assert isinstance(finished, Finished)
    return finished


def estimate(config: EvaluationConfig, out: Path | str | None = None) -> Estimate:
    """The tagger's expected use for images without captions in `out`; no model is loaded or asked."""
    dataset = config.open_dataset()
    with TemporaryDirectory() as empty:
        tagger = config.load_tagger(None, _captions_file(Path(out or empty))) if config.tags_ahead else None
        if not isinstance(tagger, PaidTagger):
            raise GocaError(f'the tagger "{config.tagger}" costs nothing: leave the estimate out', "estimate")
        return tagger.estimate(dataset.samples, dataset)


def _captions_file(out: Path | None) -> Path | None:
    return None if out is None else out / "captions.jsonl"


def _open_batches(dataset: Dataset, size: int, done: Mapping[str, ImageRecord]) -> Iterator[ImageBatch]:
    """The batches in which an image is missing or was left out, with the captions of the others.

    They are done again as a whole, and their later lines replace the earlier ones.
    """
    for batch in batches(dataset, size):
        records = [done.get(dataset.samples[index].id) for index in batch.indices]
        if any(record is None or record.counts is None for record in records):
            counted = [record for record in records if record is not None and not record.left_out]
            yield replace(batch, tags={record.id: record.caption for record in counted if record.caption is not None})


def _tagged(
    tagger: Tagger, dataset: Dataset, work: Sequence[ImageBatch], chunk: int
) -> Generator[ProgressEvent, None, list[ImageBatch]]:
    """The batches with the tagger's captions, or why there is none; asks about `chunk` images at a time."""
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
    """Write the figures and the confusion image. executor: None if nothing was left to do."""
    left_out = [{"id": image.id, "reason": image.left_out} for image in report.left_out]
    root = None if config.root is None else str(Path(config.root).absolute())  # for `goca report` to find the images
    figures = {"root": root, "metrics": report.metrics(), "left_out": left_out}
    files = {CONFUSION: confusion_image(report, dataset.palette)} if folder.folder is not None else {}
    folder.finish(figures, files, executor)
