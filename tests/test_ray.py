"""A local Ray cluster agrees with one process to the last digit."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from goca import GocaError
from goca.evaluation.cluster import Actor, in_cluster
from goca.evaluation.config import Job
from goca.evaluation.runner import Crew, evaluate
from goca.evaluation.workers import Task

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

JOB = Job("scenes", limit=5, batch=2)


def test_a_cluster_agrees_with_one_process(tmp_path: Path) -> None:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    try:
        evaluate(JOB, tmp_path / "cluster", Crew(workers=2, ray="local"))
    finally:
        ray.shutdown()
    report, _ = evaluate(JOB)
    found = json.loads((tmp_path / "cluster" / "run.json").read_text())
    assert found["metrics"] == json.loads(json.dumps(report.metrics()))
    assert found["sessions"][0]["crew"] == "ray local"
    lines = (tmp_path / "cluster" / "images.jsonl").read_text().splitlines()
    assert sorted(lines) == [image.line() for image in report.images]


def test_what_an_actor_cannot_do_is_one_line() -> None:
    protocol = JOB.protocol_of(JOB.open(), "oracle")
    actor = Actor(replace(JOB, model="nowhere"), protocol)
    rows = actor({"unit": np.array([0, 2]), "said": np.array(["{}", "{}"])})
    assert ['no model "nowhere"' in error for error in rows["error"]] == [True, True]


def test_where_there_is_no_cluster_it_is_said() -> None:
    with pytest.raises(GocaError, match="no Ray cluster at auto"):
        list(in_cluster(JOB, JOB.protocol_of(JOB.open(), "oracle"), [Task(0, {})], "auto", 1))


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_an_address_where_nothing_listens_is_refused_at_once(form: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = form.format(f"127.0.0.1:{free.getsockname()[1]}")
    began = time.monotonic()
    with pytest.raises(GocaError, match=f"no Ray cluster at {address} .*Connection refused"):
        list(in_cluster(JOB, JOB.protocol_of(JOB.open(), "oracle"), [Task(0, {})], address, 1))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("address", ["nowhere.invalid:6379", "foo", "", "http://127.0.0.1:1", "127.0.0.1:", "ray://x"])
def test_what_is_no_address(address: str) -> None:
    # Before anything is loaded.
    with pytest.raises(GocaError, match=r"no Ray (cluster at|address)"):
        evaluate(replace(JOB, model="nowhere"), crew=Crew(ray=address))
