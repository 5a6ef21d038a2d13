"""A local Ray cluster agrees with one process to the last digit."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_parallel import Squares, refuse

from goca import GocaError
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.runner import evaluate
from goca.parallel import Executor, WorkerError, run_units

ray = pytest.importorskip("ray")

CONFIG = EvaluationConfig(dataset="scenes", limit=5, batch=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Executor]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield Executor(workers=2, ray="local")
    ray.shutdown()


def test_a_cluster_agrees_with_one_process(cluster: Executor, tmp_path: Path) -> None:
    evaluate(CONFIG, tmp_path / "cluster", cluster)
    evaluate(CONFIG, tmp_path / "here")
    clustered, here = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("cluster", "here"))
    assert clustered["metrics"] == here["metrics"]
    assert clustered["sessions"][0]["executor"] == "ray local"
    lines = [(tmp_path / name / "images.jsonl").read_text().splitlines() for name in ("cluster", "here")]
    assert sorted(lines[0]) == sorted(lines[1])


def test_errors_of_a_cluster_travel(cluster: Executor) -> None:
    assert sorted(square for square, *_ in run_units(Squares, [2, 3, 5], cluster)) == [4, 9, 25]
    with pytest.raises(GocaError, match="no such unit: take another") as caught:
        list(run_units(Squares, ["mistake"], cluster))
    assert caught.value.hint == "unit"
    with pytest.raises(GocaError, match="there is no worker"):
        list(run_units(refuse, [2], cluster))
    with pytest.raises(WorkerError, match="in a worker: ZeroDivisionError: by nothing") as failed:
        list(run_units(Squares, ["bug"], cluster))
    assert "Traceback" in failed.value.__notes__[0]


def test_where_there_is_no_cluster_it_is_said() -> None:
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(GocaError, match="no Ray cluster at auto"):
        list(run_units(Squares, [2], Executor(ray="auto")))


def test_an_address_is_checked_before_anything_is_loaded() -> None:
    with pytest.raises(GocaError, match="no Ray address"):
        evaluate(replace(CONFIG, model="nowhere"), executor=Executor(ray="foo"))
