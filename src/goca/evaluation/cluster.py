"""Units of work on many machines, through Ray Data: rows come back to the process that leads, which alone writes."""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from goca.errors import GocaError
from goca.evaluation.config import Job, units
from goca.evaluation.evaluator import Evaluator, Said
from goca.evaluation.protocol import Protocol
from goca.evaluation.records import ImageRecord
from goca.evaluation.workers import Task, quieten

LOCAL, AUTO = "local", "auto"
PATIENCE = 10
"""Seconds in which a cluster's address has to answer."""
MOST_BLOCKS = 1000
"""Pieces in which work is dealt out: one for each unit, up to so many."""


def in_cluster(
    job: Job, protocol: Protocol, tasks: Sequence[Task], address: str, count: int | None
) -> Iterator[list[ImageRecord]]:
    """The images of each task, as they are done.

    address: of a cluster, "auto" for the one that this machine is part of, "local" to start one here. count: how many
    models; None for as many as the cluster has GPUs, or CPUs where it has none. Every machine needs goca, the model and
    the data set at the same paths. Raises GocaError where Ray is not installed or cannot be reached.
    """
    try:
        import ray
    except ImportError:
        raise GocaError('--ray needs Ray Data: pip install "goca[ray]"') from None
    # Whoever evaluates did not ask to tell Ray's makers about it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    started = not ray.is_initialized()
    if started:
        reach(address)
        try:
            ray.init(None if address == LOCAL else address, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            reason = str(error).splitlines()[0]
            raise GocaError(f"no Ray cluster at {address} ({reason}): start one, or say --ray local") from None
    try:
        yield from _mapped(job, protocol, tasks, count)
    finally:
        if started:
            ray.shutdown()


def reach(address: str) -> None:
    """Raises GocaError where nothing listens at a host and port: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address in (LOCAL, AUTO):
        return
    if not (host and colon and port.isdecimal()) or "/" in host:
        raise GocaError(f'no Ray address "{address}": give HOST:PORT, ray://HOST:PORT, auto, or local to start one')
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer"
        raise GocaError(f"no Ray cluster at {address} ({reason}): start one, or say --ray local") from None


def _mapped(job: Job, protocol: Protocol, tasks: Sequence[Task], count: int | None) -> Iterator[list[ImageRecord]]:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    there = ray.cluster_resources()
    gpus = job.device in (None, "cuda") and there.get("GPU", 0) >= 1
    models = count or int(there["GPU" if gpus else "CPU"])
    rows = [{"unit": task.unit, "said": json.dumps(task.said)} for task in tasks]
    dealt = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS))
    done = dealt.map_batches(
        Actor,
        fn_constructor_args=(job, protocol),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(models, len(rows))),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    for row in done.iter_rows():
        if row["error"]:
            raise GocaError(row["error"])
        yield [ImageRecord.read(line) for line in row["lines"]]


class Actor:
    """Holds one model, and does the units that come by."""

    def __init__(self, job: Job, protocol: Protocol) -> None:
        self.job, self.protocol = job, protocol
        self._evaluator: Evaluator | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        lines: list[Any] = []
        errors: list[str] = []
        for unit, said in zip(batch["unit"].tolist(), batch["said"].tolist(), strict=True):
            error, found = "", []
            try:
                known = {name: Said(*some) for name, some in json.loads(said).items()}
                found = [image.line() for image in self._done(unit, known)]
            except GocaError as mistake:
                error = str(mistake)
            lines.append(found)
            errors.append(error)
        out = np.empty(len(lines), object)
        out[:] = lines
        return {"lines": out, "error": np.array(errors)}

    def _done(self, unit: int, said: Mapping[str, Said]) -> list[ImageRecord]:
        if self._evaluator is None:
            quieten()
            self._evaluator = self.job.evaluator(self.protocol)
        return self._evaluator.unit(units(self._evaluator.dataset, self.job.batch)[unit], said)
