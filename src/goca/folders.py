"""A folder of images as one job: where results go, what an earlier run finished, and the work that is left.

Everything is a value: `segment_images` yields progress and results, and prints nothing. torch is loaded with the model,
so that a mistyped path is answered at once.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from goca.errors import GocaError
from goca.exports import DEFAULT_FORMATS, EXPORTERS, exporters
from goca.imaging.files import size_of, suffixes
from goca.parallel import THIS_PROCESS, Executor, run_units
from goca.storage.atomic import sweep

if TYPE_CHECKING:
    from goca.request import SegmentationRequest
    from goca.segmenter import Segmenter

_NOT_COMPARED = {"origin", "device", "background", "background_classes", "captions", "notes", "versions"}
"""Fields of a plan that say where it ran, or follow from the request and the model."""

Facts = Mapping[str, Any]
"""What a result's JSON file holds."""


@dataclass(frozen=True)
class ImageJob:
    """An image as the user named it, the folder and stem of its results, and their formats."""

    image: Path
    folder: Path
    stem: str
    formats: tuple[str, ...] = DEFAULT_FORMATS

    @property
    def targets(self) -> tuple[Path, ...]:
        """The files of its results, in the order in which they are written: the JSON, if any, last."""
        return tuple(self.folder / f"{self.stem}{exporter.suffix}" for exporter in exporters(self.formats).values())


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model to load, and how, as plain values that a worker can be sent.

    The fields are the arguments of `Segmenter.from_pretrained`; `settings` are those of `goca.plan.Options`.
    """

    name: str = "bundled"
    recipe: str = "goca"
    device: str | None = None
    dtype: str | None = None
    batch: int = 4
    settings: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> "Segmenter":
        """Load it. Raises GocaError where that fails or the recipe does not exist."""
        from goca.recipe import recipe_named
        from goca.segmenter import Segmenter

        recipe = recipe_named(self.recipe)
        return Segmenter.from_pretrained(
            self.name, recipe, device=self.device, dtype=self.dtype, batch=self.batch, **self.settings
        )


@dataclass(frozen=True, kw_only=True)
class FolderProgress:
    """How far a run is, in images: of `total`, `done` have results, `kept` of them from an earlier run."""

    total: int
    done: int = 0
    kept: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class ImageOutcome:
    """What became of an image: the facts of its result, or why it was left out. kept: by an earlier run."""

    job: ImageJob
    result: Facts | GocaError
    kept: bool = False


def segment_images(
    jobs: Sequence[ImageJob],
    request: "SegmentationRequest",
    model: ModelOptions,
    *,
    resume: bool = False,
    executor: Executor = THIS_PROCESS,
) -> Iterator[FolderProgress | ImageOutcome]:
    """Segment images and write their results, each whole or not at all.

    Batches are composed the same whichever process they run in, so that the executor does not change the results.

    Args:
        jobs: the images, as `plan_outputs` makes them.
        request: what is asked of every image; its own image is not used.
        model: this process loads it once, and each worker once more.
        resume: keep the results of an earlier run that asked the same in the same way.
        executor: this process, several, or a Ray cluster.

    Yields:
        The progress once the model is loaded, and after each image; the last one sums up the run. An outcome for
        each image, in the order of `jobs`.

    Raises:
        GocaError: the model cannot be loaded or does not know a class, results cannot be written, or `resume` meets
            results of another request, model or recipe.
    """
    import torch

    from goca.text.nouns import parse_nouns

    # What fails without the model fails before it is loaded.
    executor.check()
    parse_nouns(request.classes, request.background_classes)
    if resume and not all("json" in job.formats for job in jobs):
        raise GocaError("only results with a json file can be resumed: add the format json", hint="formats")
    segmenter = model.load()
    encoded = segmenter.check(request)
    kept = finished(jobs, request, segmenter.plan.to_json()) if resume else {}
    remaining = [job for job in jobs if job not in kept]
    work: Iterable[tuple[ImageJob, Facts | GocaError]]
    if executor.here:
        work = _segment(segmenter, request, remaining, encoded)
    else:
        del segmenter, encoded  # each worker has a model of its own
        batches = [tuple(remaining[start : start + model.batch]) for start in range(0, len(remaining), model.batch)]
        threads = max(1, torch.get_num_threads() // executor.workers) if executor.workers and not executor.ray else None
        work = chain.from_iterable(run_units(partial(_worker, model, request, threads), batches, executor))

    progress = FolderProgress(total=len(jobs), done=len(kept), kept=len(kept))
    yield progress
    outcomes = {job: ImageOutcome(job, facts, kept=True) for job, facts in kept.items()}
    waiting = deque(jobs)
    for job, result in work:
        outcomes[job] = ImageOutcome(job, result)
        left_out = isinstance(result, GocaError)
        progress = replace(progress, done=progress.done + (not left_out), left_out=progress.left_out + left_out)
        yield progress
        yield from _in_order(waiting, outcomes)
    yield from _in_order(waiting, outcomes)


def _in_order(waiting: deque[ImageJob], outcomes: dict[ImageJob, ImageOutcome]) -> Iterator[ImageOutcome]:
    """The outcomes at the head of the queue, up to the first image that is not done."""
    while waiting and waiting[0] in outcomes:
        yield outcomes.pop(waiting.popleft())


def _segment(
    segmenter: "Segmenter", request: "SegmentationRequest", jobs: Sequence[ImageJob], encoded: Any = None
) -> Iterator[tuple[ImageJob, Facts | GocaError]]:
    """Segment images and write each one's results as they are done. encoded: what `Segmenter.check` returned."""
    shared = {"request": request_facts(request)}
    stream = segmenter.stream((replace(request, image=job.image) for job in jobs), encoded)
    for job, (_, outcome) in zip(jobs, stream, strict=True):
        if isinstance(outcome, GocaError):
            yield job, outcome
        else:
            file_name = os.path.relpath(job.image, job.folder)
            facts = {**shared, "formats": list(job.formats)}
            outcome.save(job.folder, job.stem, formats=job.formats, facts=facts, file_name=file_name)
            yield job, {**outcome.to_json(), **facts}


def _worker(
    model: ModelOptions, request: "SegmentationRequest", threads: int | None
) -> Callable[[Sequence[ImageJob]], list[tuple[ImageJob, Facts | GocaError]]]:
    """What a process that has loaded the model does with a batch. threads: of torch, so that workers share the CPU."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    segmenter = model.load()
    return lambda batch: list(_segment(segmenter, request, batch))


def request_facts(request: "SegmentationRequest") -> dict[str, Any]:
    """A request as a result's JSON holds it; the classes as a list, because their order is their labels."""
    classes = request.classes
    synonyms = classes if isinstance(classes, Mapping) else dict.fromkeys(classes, ())
    return {
        "classes": [{"name": name, "synonyms": list(words)} for name, words in synonyms.items()],
        "background_classes": list(request.background_classes),
        "background": request.background,
        "caption": request.caption,
    }


# --- Outputs


def plan_outputs(inputs: Sequence[Path], out: Path, formats: Sequence[str] = DEFAULT_FORMATS) -> tuple[ImageJob, ...]:
    """The images among the inputs, folders searched, each with a place below `out`.

    That is the image's path below the common parent of all inputs; an image's parent is its folder, a folder's is
    itself, so that adding an image to a folder moves no other one's results. Nothing is written for good.
    `formats`, names of `goca.exports.EXPORTERS`, are the files that each image gets.

    Raises:
        GocaError: a format is unknown, an input does not exist, a folder has no images, results would overwrite each
            other or an input, or `out` cannot be written.
    """
    written = tuple(exporters(formats))
    images = [(image, root) for path in inputs for image, root in _images(path)]
    parent = os.path.commonpath([_absolute(root) for _, root in images])
    jobs = tuple(
        ImageJob(image, out / os.path.relpath(_absolute(image.parent), parent), image.stem, written)
        for image, _ in images
    )
    _refuse_collisions(jobs)
    for folder in dict.fromkeys(job.folder for job in jobs):
        check_writable(folder)
    return jobs


def _images(path: Path) -> Iterator[tuple[Path, Path]]:
    """(image, root) for each image that an input names."""
    # os.path returns False for a name that the system refuses, where pathlib raises OSError.
    if os.path.isfile(path):  # noqa: PTH113
        yield path, path.parent
    elif os.path.isdir(path):  # noqa: PTH112
        images = _search(path)
        if not images:
            raise GocaError(f"no images in {path}: name a folder that has images")
        yield from ((image, path) for image in images)
    else:
        raise GocaError(f"no image or folder {path}: check the path")


def _search(folder: Path) -> list[Path]:
    earlier_results = tuple(exporter.suffix for exporter in EXPORTERS.values())
    readable = suffixes()
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in readable
        # "._photo.jpg" is not an image, and a second run must not take results for images.
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.name.endswith(earlier_results)
        and path.is_file()
    )


def _refuse_collisions(jobs: Sequence[ImageJob]) -> None:
    sources = {_absolute(job.image): job.image for job in jobs}
    writers: dict[str, Path] = {}
    for job in jobs:
        for target in map(_absolute, job.targets):
            if target in writers:
                first, second = writers[target], job.image
                if _absolute(first) == _absolute(second):
                    raise GocaError(f"{first} and {second} are the same file: name it once")
                raise GocaError(
                    f"{first} and {second} would both be written to {job.targets[0]}: "
                    "rename one, or segment them separately with different output folders",
                    hint="out",
                )
            if target in sources:
                raise GocaError(
                    f"{job.image} would overwrite {sources[target]} with its results: choose another output folder",
                    hint="out",
                )
            writers[target] = job.image


def check_writable(folder: Path) -> None:
    """Raise GocaError unless files can be written to the folder. It tries, as permissions alone do not tell."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is not a folder" if isinstance(error, FileExistsError) else error.strerror
        raise GocaError(f"cannot write to {folder}: {reason}; choose another output folder", hint="out") from None
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def _absolute(path: Path) -> str:
    """Without following links: two links to one image are two images, with results of their own."""
    return os.path.abspath(path)  # noqa: PTH100


# --- Resuming


def finished(jobs: Sequence[ImageJob], request: "SegmentationRequest", plan: Facts) -> dict[ImageJob, Facts]:
    """The jobs that an earlier run by this plan finished, with the facts of their results.

    Scratch files that a killed run left beside the results of the others are removed. Raises GocaError for a result of
    another request or plan, which it names with what differs.
    """
    kept = {}
    expected = _comparable(request_facts(request), plan)
    for job in jobs:
        facts = _read_result(job)
        if facts is None:
            continue
        actual = _comparable(facts["request"], facts["plan"])
        differing = [name for name in expected if actual.get(name) != expected[name]]
        if differing:
            raise GocaError(
                f"{job.targets[-1]} is of a run that differs in {', '.join(differing[:3])}: choose another output "
                "folder, or do not resume, to segment every image again",
                hint="out",
            )
        kept[job] = facts
    sweep(target for job in jobs if job not in kept for target in job.targets)
    return kept


def _comparable(request: Facts, plan: Facts) -> dict[str, Any]:
    """What the user chose, as JSON gives it back."""
    chosen = {name: value for name, value in plan.items() if name not in _NOT_COMPARED}
    return json.loads(json.dumps({**request, **chosen}))


def _read_result(job: ImageJob) -> Facts | None:
    """The facts of a complete result for this job's image; None where there is none."""
    try:
        *others, last = (target.stat() for target in job.targets)
        # The JSON is written last: a newer file is of another run, which wrote no JSON.
        if not last.st_size or not all(other.st_size and other.st_mtime_ns <= last.st_mtime_ns for other in others):
            return None
        facts = json.loads(job.targets[-1].read_bytes())
        complete = isinstance(facts["request"], dict) and isinstance(facts["plan"], dict)
        complete = complete and set(job.formats) <= set(facts["formats"])
        return facts if complete and _fits(facts, job.image) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _fits(facts: Facts, image: Path) -> bool:
    """Whether the result has the size of the image, which may have been replaced since."""
    try:
        return size_of(image) == (facts["height"], facts["width"])
    except GocaError:  # segmented again, the image gets its message
        return False
