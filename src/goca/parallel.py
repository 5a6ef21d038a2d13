"""Units of work, run in this process, in several, or on a Ray cluster."""

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import numpy as np

from goca.errors import GocaError

Unit = TypeVar("Unit")
Result = TypeVar("Result")
Worker = Callable[[Unit], Result]

LOCAL, AUTO = "local", "auto"
CONNECT_TIMEOUT = 10
"""Seconds that a cluster's address has to answer."""
JOIN_TIMEOUT = 20
"""Seconds that a process has to end by itself."""
MAX_BLOCKS = 1000
"""Most blocks in which Ray distributes units; below it, one for each unit."""


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Where units of work run: in this process, in several, or on a Ray cluster.

    Args:
        workers: Number of processes, or of models on a cluster; None for 1, or for as many as the cluster has GPUs, or
            CPUs if it has none.
        ray: Address of a Ray cluster, HOST:PORT or ray://HOST:PORT, "auto" for the one that this machine is part
            of, or "local" to start one here; None for no cluster.
        gpus: Whether each worker on a cluster takes one of its GPUs, if it has any.
    """

    workers: int | None = None
    ray: str | None = None
    gpus: bool = True

    @property
    def here(self) -> bool:
        """Whether this process does the work itself."""
        return self.ray is None and (self.workers or 1) == 1

    def check(self) -> None:
        """Raise GocaError if Ray is not installed, or nothing listens at the cluster's host and port.

        Ray itself would keep trying for minutes.
        """
        if self.ray is not None and find_spec("ray") is None:
            raise _not_installed()
        if self.ray in (None, LOCAL, AUTO):
            return
        host, colon, port = self.ray.removeprefix("ray://").rpartition(":")
        if not (host and colon and port.isdecimal()) or "/" in host:
            raise GocaError(
                f'"{self.ray}" is not a Ray address: give HOST:PORT, ray://HOST:PORT, auto, or local to start one',
                "ray",
            )
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(self.ray, getattr(error, "strerror", None) or str(error) or "no answer") from None

    def __str__(self) -> str:
        if self.ray is not None:
            return f"ray {self.ray}"
        return "1 process" if self.here else f"{self.workers} processes"


THIS_PROCESS = Executor()


class WorkerError(Exception):
    """An unexpected error in a worker, in one line; its traceback is added as a note."""


def run_units(
    make_worker: Callable[[], Callable[[Unit], Result]], units: Sequence[Unit], executor: Executor = THIS_PROCESS
) -> Generator[Result, None, None]:
    """Run units of work; close the generator to stop them.

    Args:
        make_worker: Makes the worker, such as a loaded model, once in each process that has a unit to do. Unless
            this process does the work, it is pickled, and so are units and results.
        units: Any values.
        executor: Where they run.

    Yields:
        The result of each unit as it is done: in the order of units in one process, in any order in several.

    Raises:
        GocaError: A worker raised it, or the cluster cannot be reached; or a worker was killed (raised
            when the other processes have done the rest).
        WorkerError: A worker in another process raised another exception.
    """
    if not units:
        return
    if executor.here:
        yield from map(make_worker(), units)
    elif executor.ray is None:
        yield from _in_processes(make_worker, units, executor.workers or 1)
    else:
        yield from _in_cluster(make_worker, units, executor, executor.ray)


class _Attempts:
    """In another process: makes the worker for the first unit, and answers with results or exceptions."""

    def __init__(self, make_worker: Callable[[], Worker[Any, Any]]) -> None:
        self._make_worker = make_worker
        self._worker: Worker[Any, Any] | None = None

    def attempt(self, unit: Any) -> Any:
        try:
            if self._worker is None:
                # Keep the output of libraries out of the leading process's progress display.
                logging.disable(logging.CRITICAL)
                warnings.simplefilter("ignore")
                self._worker = self._make_worker()
            return self._worker(unit)
        except GocaError as error:
            return _Failure(error)
        except Exception as error:
            # A library's exception may not survive pickling.
            failure = WorkerError(" ".join(f"in a worker: {type(error).__name__}: {error}".split()))
            failure.add_note(traceback.format_exc())
            return _Failure(failure)


@dataclass(frozen=True)
class _Failure:
    error: Exception


def _result(answer: Any) -> Any:
    if isinstance(answer, _Failure):
        raise answer.error
    return answer


# ---- processes
#
# Not concurrent.futures.ProcessPoolExecutor: all its processes answer through one pipe, so that one killed while
# writing leaves the leading process waiting for ever; it cannot stop busy processes; and it hides exit codes.


def _in_processes(
    make_worker: Callable[[], Worker[Unit, Result]], units: Sequence[Unit], count: int
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    pending = iter(units)
    processes: dict[Connection, BaseProcess] = {}
    busy: set[Connection] = set()
    killed: GocaError | None = None

    def hand_on(connection: Connection) -> None:
        try:
            unit = next(pending)
        except StopIteration:
            busy.discard(connection)
            return
        busy.add(connection)
        with suppress(OSError):  # a dead process is noticed when it should answer
            connection.send(unit)

    try:
        for _ in range(min(count, len(units))):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_serve, args=(make_worker, theirs), daemon=True)
            with _interrupts_held():
                process.start()
            theirs.close()
            processes[ours] = process
            hand_on(ours)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                try:
                    answer = connection.recv()
                except (EOFError, OSError):
                    killed = _killed(processes[connection])
                    busy.remove(connection)  # the others go on
                else:
                    result = _result(answer)
                    hand_on(connection)
                    yield result
        if killed is not None:
            raise killed
    finally:
        for connection in processes:
            connection.close()
        for connection, process in processes.items():
            # An idle one ends when its pipe closes, and a signal would disturb it; a busy one needs the signal.
            if connection in busy:
                process.terminate()
            process.join(JOIN_TIMEOUT)
            process.kill()
            process.join()


def _killed(process: BaseProcess) -> GocaError:
    process.join()
    return GocaError(
        f"a worker was killed (exit code {process.exitcode}), and its current work is not done: resume to do it; if "
        "memory was short, use fewer workers or a smaller batch",
        "workers",
    )


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes that ignore Ctrl-C, even while importing: the leading process handles it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(make_worker: Callable[[], Worker[Any, Any]], connection: Connection) -> None:
    """A process's main loop: does the units that it is sent, and ends when the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    attempts = _Attempts(make_worker)
    try:
        while True:
            connection.send(attempts.attempt(connection.recv()))
    except (EOFError, ConnectionError):
        return
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is already ending


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


# ---- Ray


def _in_cluster(
    make_worker: Callable[[], Worker[Unit, Result]], units: Sequence[Unit], executor: Executor, address: str
) -> Iterator[Result]:
    """Run units through Ray Data: every machine needs goca, and the model and the data at the same paths."""
    try:
        import ray
    except ImportError:
        raise _not_installed() from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics without consent
    started = not ray.is_initialized()
    if started:
        executor.check()
        try:
            ray.init(None if address == LOCAL else address, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise _unreachable(address, str(error).splitlines()[0]) from None
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        resources = ray.cluster_resources()
        gpus = executor.gpus and resources.get("GPU", 0) >= 1
        workers = executor.workers or int(resources["GPU" if gpus else "CPU"])
        rows = [{"unit": pickle.dumps(unit)} for unit in units]
        answers = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS)).map_batches(
            _Actor,
            fn_constructor_args=(make_worker,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        for row in answers.iter_rows():
            yield _result(pickle.loads(row["answer"]))
    finally:
        if started:
            ray.shutdown()


class _Actor(_Attempts):
    """On a cluster: answers batches of one unit."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        (unit,) = batch["unit"].tolist()
        return {"answer": np.array([pickle.dumps(self.attempt(pickle.loads(unit)))], object)}


def _not_installed() -> GocaError:
    return GocaError('a Ray cluster needs Ray Data: pip install "ray[data]"', "ray")


def _unreachable(address: str, reason: str) -> GocaError:
    return GocaError(f'no Ray cluster at {address} ({reason}): start one, or choose "local"', "ray")
