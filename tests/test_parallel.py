"""Units of work: the same results wherever they run, errors that travel whole, and no process left behind."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from goca import GocaError
from goca.parallel import Executor, WorkerError, run_units


class Squares:
    """A worker of the tests; odd units go wrong in their own ways."""

    def __init__(self) -> None:
        self.made_in = os.getpid()
        self.units = 0

    def __call__(self, unit: int | str) -> tuple[int, int, int]:
        self.units += 1
        if unit == "mistake":
            raise GocaError("no such unit: take another", "unit")
        if unit == "bug":
            raise ZeroDivisionError("by\nnothing")
        if unit == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if unit == "long":
            time.sleep(600)
        assert isinstance(unit, int)
        return unit * unit, self.made_in, self.units


def refuse() -> Squares:
    raise GocaError("there is no worker: make one", "worker")


@pytest.mark.parametrize(("workers", "processes"), [(None, 1), (1, 1), (3, 3), (8, 7)])
def test_every_unit_is_done_once(workers: int | None, processes: int) -> None:
    results = list(run_units(Squares, range(7), Executor(workers=workers)))
    assert sorted(square for square, *_ in results) == [0, 1, 4, 9, 16, 25, 36]
    if processes == 1:
        assert results == [(unit * unit, os.getpid(), unit + 1) for unit in range(7)]
    else:
        made_in = {process for _, process, _ in results}
        assert os.getpid() not in made_in
        assert len(made_in) <= processes
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("executor", [Executor(), Executor(workers=2), Executor(ray="local")], ids=str)
def test_without_units_no_worker_is_made(executor: Executor) -> None:
    assert list(run_units(refuse, [], executor)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_users_mistake_arrives_whole(workers: int) -> None:
    for make_worker, units, hint in ((Squares, [1, "mistake"], "unit"), (refuse, [1, 2], "worker")):
        with pytest.raises(GocaError, match=r"no such unit: take another|there is no worker") as caught:
            list(run_units(make_worker, units, Executor(workers=workers)))
        assert caught.value.hint == hint
    assert not multiprocessing.active_children()


def test_another_exception_is_one_line_with_its_traceback() -> None:
    with pytest.raises(WorkerError, match=r"^in a worker: ZeroDivisionError: by nothing\n") as caught:
        list(run_units(Squares, ["bug", 2], Executor(workers=2)))
    assert str(caught.value).count("\n") == 0
    assert 'raise ZeroDivisionError("by\\nnothing")' in caught.value.__notes__[0]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("units", [["killed", 2, 3, 5], [2, 3, 5, "killed"], ["killed", 2, "killed", 5, 7]])
def test_a_killed_worker_is_one_line_and_loses_what_it_had_in_hand(units: list[int | str]) -> None:
    results = run_units(Squares, units, Executor(workers=2))
    squares: list[int] = []
    with pytest.raises(GocaError, match=r"a worker was killed \(exit code -9\)") as caught:
        squares.extend(square for square, *_ in results)
    assert caught.value.hint == "workers"
    # Where both are killed, nobody can go on.
    assert set(squares) == ({4} if units.count("killed") == 2 else {4, 9, 25})
    assert not multiprocessing.active_children()


def test_whoever_stops_stops_the_workers() -> None:
    results = run_units(Squares, [2, "long"], Executor(workers=2))
    assert next(results)[0] == 4
    assert len(multiprocessing.active_children()) == 2
    began = time.monotonic()
    results.close()
    assert not multiprocessing.active_children()
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_leads(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "lead.py"
    script.write_text(
        "import multiprocessing\n"
        "from goca.parallel import Executor, run_units\n"
        "from test_parallel import Squares\n"
        "if __name__ == '__main__':\n"
        "    for _ in run_units(Squares, [1, 2, 'long', 'long'], Executor(workers=2)):\n"
        "        print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        process.send_signal(number)
        process.wait(60)
        # Only the process that leads may speak.
        assert process.stderr.read().count("Traceback") == (number == signal.SIGINT)
    workers = [int(worker) for worker in lines[0].split()]
    assert len(workers) == 2
    wait_until(lambda: not any(map(is_running, workers)))


def wait_until(condition: Callable[[], bool]) -> None:
    patience = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < patience
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Whether it is there, and not merely an entry that nobody has asked about."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_an_address_where_nothing_listens_is_refused_at_once(form: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = form.format(f"127.0.0.1:{free.getsockname()[1]}")
    began = time.monotonic()
    with pytest.raises(GocaError, match=f"no Ray cluster at {address} .*Connection refused") as caught:
        Executor(ray=address).check()
    assert caught.value.hint == "ray"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("address", ["nowhere.invalid:6379", "foo", "", "http://127.0.0.1:1", "127.0.0.1:", "ray://x"])
def test_what_is_not_an_address(address: str) -> None:
    with pytest.raises(GocaError, match=r"(no Ray cluster at|is not a Ray address)"):
        Executor(ray=address).check()
