"""Batches of a folder's images, in any process: images are read ahead, and results are written behind."""

import errno
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from goca import bundled
from goca.errors import GocaError
from goca.exports import EXPORTERS
from goca.image_jobs import ImageJob
from goca.parallel import Executor, run_units
from goca.tagging.candidates import Kept

if TYPE_CHECKING:
    from PIL import Image

    from goca.request import SegmentationRequest
    from goca.segmentation import Segmentation
    from goca.segmenter import Segmenter

_NAME_REFUSED = {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
"""Errors by which the system refuses one file name; another may work."""

PATIENCE = 0.05
"""Share of a batch's time that the next one may wait for its files, so that a slow model's results are reported."""

Facts = Mapping[str, Any]
"""The content of a result's JSON file."""


def as_json(facts: Facts) -> dict[str, Any]:
    """The facts after a round trip through JSON."""
    return json.loads(json.dumps(facts))


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model to load, and how, as plain values that can be sent to a worker.

    The fields are the arguments of `Segmenter.from_pretrained`; `settings` are those of `goca.plan.Options`, `threads`
    is the number of torch threads of each process on a CPU: by default all cores, shared among local workers.
    """

    name: str = bundled.DEFAULT
    recipe: str = "goca-open"
    device: str | None = None
    dtype: str | None = None
    batch: int = 4
    threads: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields that decide a result up to its last digits, after a round trip through JSON."""
        named = {"goca": version("goca"), "model": self.name, "recipe": self.recipe, "dtype": self.dtype}
        return as_json({**named, **self.settings})

    def load(self) -> "Segmenter":
        """Load the model and set torch's threads. Raises GocaError if that fails or the recipe is unknown."""
        import torch

        from goca.recipe import recipe_named
        from goca.segmenter import Segmenter

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        recipe = recipe_named(self.recipe)
        return Segmenter.from_pretrained(
            self.name, recipe, device=self.device, dtype=self.dtype, batch=self.batch, **self.settings
        )


class Member(NamedTuple):
    """An image of a batch.

    Attributes:
        tagged: The classes that a tagger names, or why the image was not tagged; None without a tagger.
        wanted: Whether its results are to be written. The others already have results, and are segmented again because
            the last digits depend on the other images of a batch.
    """

    job: ImageJob
    tagged: Kept | GocaError | None
    wanted: bool


Batch = tuple[Member, ...]


@dataclass(frozen=True)
class BatchTask:
    """The settings that all images of a run share, in any process.

    Attributes:
        request_json: The request as a result's JSON holds it.
        tagger: The name of a tagger that is the segmenter's own model; other taggers' answers come with the images.
    """

    request: "SegmentationRequest"
    model: ModelOptions
    request_json: Facts
    tagger: str | None

    def segment(
        self, segmenter: "Segmenter", batches: Sequence[Batch], encoded: Any = None
    ) -> Generator[tuple[ImageJob, Facts | GocaError], None, None]:
        """Segment batches and write each image's results, in order; yields the outcome of each wanted image.

        Meanwhile one thread reads the next batch and another writes, at most one batch of results behind. However the
        generator ends, everything that was segmented is written.

        Args:
            segmenter: The loaded model.
            batches: Each of at most as many images as the model takes at a time.
            encoded: The result of `Segmenter.check`.
        """
        writing: deque[Future[tuple[ImageJob, Facts | GocaError]]] = deque()
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            following = reader.submit(_read, ())
            for batch in (*batches, ()):
                images, following = following.result(), reader.submit(_read, batch)
                began = monotonic()
                for job, outcome in self._outcomes(segmenter, images, encoded):
                    writing.append(writer.submit(self._write, job, outcome))
                wait(writing, PATIENCE * (monotonic() - began))
                while writing and (len(writing) > segmenter.batch or writing[0].done()):
                    yield writing.popleft().result()
            while writing:
                yield writing.popleft().result()

    def _outcomes(
        self, segmenter: "Segmenter", images: "_Images", encoded: Any
    ) -> Iterator[tuple[ImageJob, "Segmentation | GocaError"]]:
        requests = [
            replace(self.request, image=image, kept=member.tagged)
            for member, image in images
            if not isinstance(image, GocaError) and not isinstance(member.tagged, GocaError)
        ]
        stream = segmenter.stream(requests, encoded, self.tagger)
        for member, image in images:
            outcome = image if isinstance(image, GocaError) else next(stream)[1]
            if member.wanted:
                yield member.job, outcome

    def _write(self, job: ImageJob, outcome: "Segmentation | GocaError") -> tuple[ImageJob, Facts | GocaError]:
        if isinstance(outcome, GocaError):
            return job, outcome
        file_name = os.path.relpath(job.image, job.folder)
        shared = {"request": self.request_json, "options": self.model.to_json()}
        facts = {**shared, "formats": list(job.formats), **object_facts(job)}
        try:
            outcome.save(
                job.folder, job.stem, formats=job.formats, facts=facts, file_name=file_name, objects=job.objects
            )
        except GocaError as error:
            if getattr(error.__cause__, "errno", None) not in _NAME_REFUSED:
                raise
            return job, error
        return job, {**outcome.to_json(), **facts}

    def worker(self) -> Callable[[Batch], list[tuple[ImageJob, Facts | GocaError]]]:
        """The function by which a process segments a batch; it loads the model first."""
        segmenter = self.model.load()
        encoded = segmenter.check(self.request)
        return lambda batch: list(self.segment(segmenter, [batch], encoded))


_Images = list[tuple[Member, "Image.Image | GocaError"]]


def open_batches(jobs: Sequence[ImageJob], left: set[ImageJob], size: int) -> Iterator[Sequence[ImageJob]]:
    """The batches of all jobs that still have an image to segment."""
    openable = [job for job in jobs if job.problem is None]
    for start in range(0, len(openable), size):
        batch = openable[start : start + size]
        if not left.isdisjoint(batch):
            yield batch


def _read(batch: Batch) -> _Images:
    """The images of a batch, each or the reason why it cannot be segmented; if no wanted one can, only these."""
    images = {member: _loaded(member) for member in batch if member.wanted}
    if not all(isinstance(image, GocaError) for image in images.values()):
        images |= {member: _loaded(member) for member in batch if not member.wanted}
    return [(member, images[member]) for member in batch if member in images]


def _loaded(member: Member) -> "Image.Image | GocaError":
    from goca.imaging.images import load

    if isinstance(member.tagged, GocaError):
        return member.tagged
    try:
        return load(member.job.image)
    except GocaError as error:
        return error


def object_facts(job: ImageJob) -> dict[str, Any]:
    """{"objects": options} by which regions became objects in the image's files; {} for the defaults."""
    options = {name: value for name, value in job.objects.changed().items() if name in ("min_area", "fill_holes")}
    return {"objects": options} if options and any(EXPORTERS[name].objects for name in job.formats) else {}


def in_workers(
    task: BatchTask, batches: Sequence[Batch], executor: Executor
) -> Generator[tuple[ImageJob, Facts | GocaError], None, None]:
    import torch

    if task.model.threads is None and executor.workers and not executor.ray:
        threads = max(1, torch.get_num_threads() // executor.workers)
        task = replace(task, model=replace(task.model, threads=threads))
    with closing(run_units(task.worker, batches, executor)) as results:
        yield from chain.from_iterable(results)
