"""Several processes that each do units of work; the process that leads them alone writes."""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from goca.errors import GocaError
from goca.evaluation.config import Job, units
from goca.evaluation.evaluator import Said
from goca.evaluation.protocol import Protocol
from goca.evaluation.records import ImageRecord

PATIENCE = 20
"""Seconds in which a worker may end by itself."""


@dataclass(frozen=True)
class Task:
    """A unit of work: its place among all, and what was said of its images."""

    unit: int
    said: Mapping[str, Said]


class WorkerError(Exception):
    """What went wrong in a worker, in one line; its traceback is a note."""


def in_processes(job: Job, protocol: Protocol, tasks: Sequence[Task], count: int) -> Iterator[list[ImageRecord]]:
    """The images of each task, as they are done, by `count` processes, each with a model of its own.

    They end with this process, whatever ends it. Raises GocaError for what a worker cannot do, or where one was killed.
    """
    context = multiprocessing.get_context("spawn")
    open_ = iter(tasks)
    workers: dict[Any, BaseProcess] = {}
    busy: set[Any] = set()
    try:
        for _ in range(min(count, len(tasks))):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_work, args=(job, protocol, theirs), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
            ours.send(next(open_))
        busy = set(workers)
        while busy:
            ready: Any
            for ready in wait(list(busy)):
                answer = _answer(ready, workers[ready])
                task = next(open_, None)
                if task is None:
                    busy.remove(ready)
                else:
                    ready.send(task)
                yield answer
    finally:
        for connection in workers:
            connection.close()
        for connection, process in workers.items():
            # One that waits ends by that, and a signal would disturb it as it leaves; one at work needs it.
            if connection in busy:
                process.terminate()
            process.join(PATIENCE)
            process.kill()
            process.join()


def _answer(connection: Connection, process: BaseProcess) -> list[ImageRecord]:
    try:
        answer = connection.recv()
    except (EOFError, OSError):
        process.join()
        raise GocaError(
            f"a worker was killed (exit code {process.exitcode}): if memory was short, lower --workers or --batch; "
            "run the same again to go on"
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _work(job: Job, protocol: Protocol, connection: Connection) -> None:
    """A worker's life: it loads the model, does what it is sent, and ends when nothing more comes."""
    # Ctrl-C is for the process that leads, which then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    evaluator: Any = None
    try:
        while True:
            task = connection.recv()
            if evaluator is None:
                quieten()
                evaluator = job.evaluator(protocol)
                work = units(evaluator.dataset, job.batch)
            connection.send(evaluator.unit(work[task.unit], task.said))
    except (EOFError, BrokenPipeError):
        return
    except GocaError as error:
        connection.send(error)
    except Exception as error:
        connection.send(as_line(error))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is leaving already


def as_line(error: Exception) -> WorkerError:
    """What another process can raise again: an exception of a library need not travel."""
    out = WorkerError(" ".join(f"in a worker: {type(error).__name__}: {error}".split()))
    out.add_note(traceback.format_exc())
    return out


def quieten() -> None:
    """Libraries' chatter is nobody's business in a worker, and would end up between the lines of progress."""
    import logging
    import warnings

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
