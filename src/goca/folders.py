"""A folder of images as one job: what an earlier run finished, the work that is left, and the index of results.

`segment_images` yields progress and results as values, and prints nothing. torch is loaded with the model,
so that a mistyped path is reported at once.
"""

import json
import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goca.assembly import assemble
from goca.batches import BatchTask, Facts, Member, ModelOptions, as_json, in_workers, object_facts, open_batches
from goca.diffusion.model_facts import facts_of
from goca.errors import GocaError
from goca.exports import EXPORTERS
from goca.image_jobs import ImageJob, plan_datasets, plan_outputs
from goca.imaging.files import size_of
from goca.parallel import THIS_PROCESS, Executor
from goca.storage.atomic import remove, sweep
from goca.storage.json_lines import JsonLines
from goca.storage.reading import require_regular
from goca.tagging import GIVEN, PaidTagger, Tagger, is_self, tagger_named
from goca.tagging.base import Estimate
from goca.tagging.candidates import Candidates, Kept, UserImage
from goca.text.clean import storable
from goca.text.nouns import check_words

if TYPE_CHECKING:
    from goca.request import SegmentationRequest

__all__ = [
    "CAPTIONS",
    "INDEX",
    "Assembling",
    "Calibrating",
    "FolderProgress",
    "ImageJob",
    "ImageOutcome",
    "ModelOptions",
    "TaggingProgress",
    "index_lines",
    "plan_datasets",
    "plan_outputs",
    "request_facts",
    "segment_images",
    "stored_path",
]

INDEX, CAPTIONS = "index.jsonl", "captions.jsonl"
_NOT_COMPARED = frozenset({"origin", "device", "background", "background_classes", "captions", "notes", "versions"})
"""Fields of a plan that record where it ran, or that follow from the request and the model."""

TAGGED = 32
"""Images that a tagger is asked about at a time: enough that its requests hardly wait for each other."""


@dataclass(frozen=True, kw_only=True)
class FolderProgress:
    """Progress of a run, in images: of `total`, `done` have results, `kept` of them from an earlier run."""

    total: int
    done: int = 0
    kept: int = 0
    left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class TaggingProgress:
    """Progress of the tagger over the images that are left to segment."""

    tagger: str
    done: int
    total: int


@dataclass(frozen=True)
class ImageOutcome:
    """The outcome of an image: the facts of its result, or why it was left out. kept: from an earlier run."""

    job: ImageJob
    result: Facts | GocaError
    kept: bool = False

    def to_json(self) -> dict[str, Any]:
        """The image's line in the index."""
        image = stored_path(self.job.image)
        if isinstance(self.result, GocaError):
            return {"image": image, "error": storable(str(self.result))}
        return {"image": image, "outputs": [stored_path(path) for path in self.job.targets]}


@dataclass(frozen=True)
class Calibrating:
    """Number of images without content that calibrate a model for a list of nouns, once, before the first image."""

    images: int


@dataclass(frozen=True)
class Assembling:
    """A data set is being written; it is done when the next event comes or the events end."""

    target: Path


FolderEvent = FolderProgress | ImageOutcome | Estimate | TaggingProgress | Calibrating | Assembling


def segment_images(
    jobs: Sequence[ImageJob],
    request: "SegmentationRequest",
    model: ModelOptions,
    *,
    out: Path | None = None,
    resume: bool = False,
    executor: Executor = THIS_PROCESS,
    tagger: str | Tagger | None = None,
    datasets: Mapping[str, Path] | None = None,
) -> Generator[FolderEvent, None, None]:
    """Segment images and write their results, each whole or not at all. Close the generator to stop.

    Batches are formed from all jobs, whatever is left to do and whichever process does it, so that neither resuming nor
    the executor changes a result: on one kind of device, with the same number of threads, files are bit-identical.

    Args:
        jobs: The images, from `plan_outputs`.
        request: What is asked of every image; its own image is ignored.
        model: Loaded once by this process and once by each worker; not at all if nothing is left to segment.
        out: Folder in which the index is written during the run, see `index_lines`; None for no index.
        resume: Keep the results of an earlier run with the same request and settings.
        executor: This process, several, or a Ray cluster.
        tagger: As for `Segmenter.stream`. This process asks it about all images before the first is segmented, unless
            it is the segmenter's own model; one that saves captions does so in `CAPTIONS` in `out`.
        datasets: Paths of the data sets of all images, from `plan_datasets`. They are made at the end from what was
            written for the images; those of an earlier run are removed before the first image is segmented.

    Yields:
        First, if needed, that the model is calibrated, the expected use of a paid tagger, and the tagger's progress.
        Then the progress once the model is loaded and after each image (the last one sums up the run), and an outcome
        for each image, in the order of `jobs`; finally each data set that is being made.

    Raises:
        GocaError: The model cannot be loaded or does not know a class, results cannot be written, or `resume` finds
            results of another request, model, recipe or tagger.
    """
    # Check everything that does not need the model before it is loaded.
    executor.check()
    vocabulary = facts_of(model.name).nouns
    check_words(
        request.classes, request.background_classes, request.background, request.caption, vocabulary, model=model.name
    )
    if resume and not all("json" in job.formats for job in jobs):
        raise GocaError("only runs with JSON files can be resumed: add the format json", hint="formats")
    tagger = None if tagger == GIVEN else tagger
    if isinstance(tagger, str) and not is_self(tagger):
        tagger = tagger_named(tagger, captions=None if out is None else out / CAPTIONS, batch=model.batch)
    if isinstance(tagger, PaidTagger):
        tagger.ready()
    candidates = request.candidates if tagger is not None else None
    index = None if out is None else index_lines(out)
    if index is not None:
        _refuse_foreign(index.path)
    request_json = request_facts(request, tagger)
    kept = _finished(jobs, request_json) if resume else {}
    outcomes = {job: ImageOutcome(job, GocaError(job.problem)) for job in jobs if job.problem is not None}
    outcomes |= {job: ImageOutcome(job, facts, kept=True) for job, facts in kept.items()}
    remaining = [job for job in jobs if job not in outcomes]
    work: Generator[tuple[ImageJob, Facts | GocaError], None, None] = _nothing()
    if remaining or any(facts.get("options") != model.to_json() for facts in kept.values()):
        # Only the loaded model's plan tells whether results belong to this run.
        from goca.evidence.content_free import CONTENT_FREE

        loaded = model.load()
        segmenter, encoded = loaded.for_request(request), loaded.check(request)
        _refuse_different(kept, "plan", segmenter.plan.to_json())
        if remaining and (nouns := segmenter.evidence.uncalibrated(request, encoded)):
            # Done here, so that not every worker does it.
            yield Calibrating(CONTENT_FREE)
            segmenter.evidence.calibrate(nouns, encoded)
        tagged: dict[ImageJob, Kept | GocaError] = {}
        if isinstance(tagger, Tagger) and candidates is not None and remaining:
            answers = {job: Kept(tagger.name, tuple(facts["kept"])) for job, facts in kept.items() if "kept" in facts}
            tagged.update(answers)
            yield from _tagging(tagger, candidates, remaining, tagged)
        left = set(remaining)
        task = BatchTask(request, model, request_json, tagger if isinstance(tagger, str) else None)
        batches = [
            tuple(Member(job, tagged.get(job), job in left) for job in batch)
            for batch in open_batches(jobs, left, model.batch)
        ]
        if executor.here:
            work = task.segment(segmenter, batches, encoded)
        else:
            del loaded, segmenter, encoded  # each worker has a model of its own
            work = in_workers(task, batches, executor)
    if resume:
        sweep(target for job in remaining for target in job.targets)
    datasets = datasets or {}
    sweep(datasets.values())
    for target in datasets.values():
        # A data set that exists is always one of these results.
        remove(target)

    with closing(_Index(index, jobs, outcomes)) as written, closing(work):
        left_out = len(outcomes) - len(kept)
        progress = FolderProgress(total=len(jobs), done=len(kept), kept=len(kept), left_out=left_out)
        yield progress
        waiting = deque(jobs)
        finished = _Finished()
        for job, result in work:
            outcomes[job] = ImageOutcome(job, result)
            written.add(outcomes[job])
            left_out = isinstance(result, GocaError)
            progress = replace(progress, done=progress.done + (not left_out), left_out=progress.left_out + left_out)
            yield progress
            yield from finished.noting(_in_order(waiting, outcomes))
        yield from finished.noting(_in_order(waiting, outcomes))
        if finished.classes:
            yield from map(Assembling, assemble(finished.classes, datasets))


def _nothing() -> Generator[tuple[ImageJob, Facts | GocaError], None, None]:
    yield from ()


def _in_order(waiting: deque[ImageJob], outcomes: dict[ImageJob, ImageOutcome]) -> Iterator[ImageOutcome]:
    """The outcomes at the head of the queue, up to the first unfinished image."""
    while waiting and waiting[0] in outcomes:
        yield outcomes.pop(waiting.popleft())


class _Finished:
    """The images that have results, in order, with the classes of their labels, of which many share one tuple."""

    def __init__(self) -> None:
        self.classes: dict[ImageJob, tuple[str, ...]] = {}
        self._known: dict[tuple[str, ...], tuple[str, ...]] = {}

    def noting(self, outcomes: Iterator[ImageOutcome]) -> Iterator[ImageOutcome]:
        for outcome in outcomes:
            if not isinstance(outcome.result, GocaError):
                names = tuple(entry["name"] for entry in outcome.result["classes"])
                self.classes[outcome.job] = self._known.setdefault(names, names)
            yield outcome


def _tagging(
    tagger: Tagger, candidates: Candidates, jobs: Sequence[ImageJob], tagged: dict[ImageJob, Kept | GocaError]
) -> Generator[FolderEvent, None, None]:
    """Put the classes of each image, or why it is not tagged, into `tagged`; asks about `TAGGED` images at a time."""
    if isinstance(tagger, PaidTagger):
        yield tagger.estimate([UserImage.of(job.image) for job in jobs], candidates)
    progress = TaggingProgress(tagger=tagger.name, done=0, total=len(jobs))
    yield progress
    for start in range(0, len(jobs), TAGGED):
        part = jobs[start : start + TAGGED]
        tagged.update(zip(part, candidates.kept(tagger, [job.image for job in part]), strict=True))
        progress = replace(progress, done=progress.done + len(part))
        yield progress


def request_facts(request: "SegmentationRequest", tagger: str | Tagger | None = None) -> dict[str, Any]:
    """A request as a result's JSON holds it; the classes are a list, because their order decides their labels."""
    classes = request.classes
    synonyms = classes if isinstance(classes, Mapping) else dict.fromkeys(classes, ())
    return {
        "classes": [{"name": name, "synonyms": list(words)} for name, words in synonyms.items()],
        "background_classes": None if request.background_classes is None else list(request.background_classes),
        "background": request.background,
        "caption": request.caption,
        "tagger": tagger.name if isinstance(tagger, Tagger) else tagger,
    }


# --- The index


def index_lines(out: Path) -> JsonLines[dict[str, Any]]:
    """The index of a run's output folder: a line for each image, written when it is done.

    A line is {"image": path, "outputs": [path, ...]}, or {"image": path, "error": reason} for an image that was left
    out. Paths are as the user gave them, see `stored_path`. A run starts a new index with the images that it keeps from
    an earlier one, so that each image is in it once; at the end it is sorted in the order of the images.
    """
    return JsonLines(out / INDEX, _index_line, dict, "an image and its results")


def stored_path(path: Path) -> str:
    """A path for JSON: unchanged, or as a file: URL if it is not valid text, so that different paths stay different."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.absolute().as_uri()
    return str(path)


def _index_line(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or "image" not in value or not value.keys() & {"outputs", "error"}:
        raise ValueError("it lacks the image, its outputs or its error")
    return value


def _refuse_foreign(index: Path) -> None:
    """Raise GocaError if a file with the index's name is not an index, because it would be lost."""
    if not os.path.lexists(index):
        return
    try:
        require_regular(index)
        index_lines(index.parent).read()
    except GocaError:
        raise GocaError(
            f"{index} is not an index of results but would be replaced by one: move it, or choose another output "
            "folder",
            "out",
        ) from None


class _Index:
    """The index while a run writes it. lines: None for no index. known: outcomes of jobs from before the run."""

    def __init__(
        self, lines: JsonLines[dict[str, Any]] | None, jobs: Sequence[ImageJob], known: Mapping[ImageJob, ImageOutcome]
    ) -> None:
        self._lines, self._jobs = lines, jobs
        self._entries = {job: outcome.to_json() for job, outcome in known.items()}
        if lines is not None:
            lines.open()
            sweep([lines.path])
            self._write()
            self._begun = lines.path.stat().st_mtime_ns

    def add(self, outcome: ImageOutcome) -> None:
        self._entries[outcome.job] = outcome.to_json()
        if self._lines is not None:
            self._lines.append(self._entries[outcome.job])

    def close(self) -> None:
        """Add images whose results are complete but were not reported when the run stopped; sort the lines."""
        if self._lines is None:
            return
        for job in self._jobs:
            if job not in self._entries and self._is_written(job):
                self._entries[job] = ImageOutcome(job, {}).to_json()
        # If the disk is full, all lines but these few are already written.
        with suppress(GocaError):
            self._write()
        self._lines.close()

    def _write(self) -> None:
        assert self._lines is not None
        self._lines.replace(*(self._entries[job] for job in self._jobs if job in self._entries))

    def _is_written(self, job: ImageJob) -> bool:
        try:
            # The last file is written only after all others.
            return job.targets[-1].stat().st_mtime_ns >= self._begun and all(path.exists() for path in job.targets)
        except OSError:
            return False


# --- Resuming


def _finished(jobs: Sequence[ImageJob], request: Facts) -> dict[ImageJob, Facts]:
    """The jobs that an earlier run finished, with their facts. Raises GocaError for a result of another request."""
    results = ((job, _read_result(job)) for job in jobs if job.problem is None)
    shared: dict[str, Any] = {}  # keeps facts that thousands of results share in memory once
    kept: dict[ImageJob, Facts] = {
        job: {name: shared.setdefault(repr(value), value) for name, value in facts.items()}
        for job, facts in results
        if facts is not None
    }
    _refuse_different(kept, "request", request)
    return kept


def _refuse_different(results: Mapping[ImageJob, Facts], part: str, expected: Facts) -> None:
    """Raise GocaError, naming the result and the differences, for one of another request or plan."""
    passed_over = _NOT_COMPARED if part == "plan" else frozenset()
    expected = {name: value for name, value in as_json(expected).items() if name not in passed_over}
    for job, facts in results.items():
        actual = facts[part]
        differing = [name for name in expected if actual.get(name) != expected[name]]
        if differing:
            raise GocaError(
                f"{job.targets[-1]} comes from a run with other {', '.join(differing[:3])}: choose another output "
                "folder, or do not resume, to segment every image again",
                hint="out",
            )


def _read_result(job: ImageJob) -> Facts | None:
    """The facts of a complete result for this job's image; None if there is none."""
    try:
        *others, last = (target.stat() for target in job.targets)
        # The JSON is written last: a newer file comes from another run that wrote no JSON.
        if not last.st_size or not all(other.st_size and other.st_mtime_ns <= last.st_mtime_ns for other in others):
            return None
        facts = json.loads(job.targets[-1].read_bytes())
        complete = isinstance(facts["request"], dict) and isinstance(facts["plan"], dict)
        complete = complete and set(job.formats) <= set(facts["formats"])
        if any(EXPORTERS[name].objects for name in job.formats):
            complete = complete and facts.get("objects") == object_facts(job).get("objects")
        return facts if complete and _fits(facts, job.image) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _fits(facts: Facts, image: Path) -> bool:
    """Whether the result has the image's size; the image may have been replaced since."""
    try:
        return size_of(image) == (facts["height"], facts["width"])
    except GocaError:  # segmenting it again reports the error
        return False
