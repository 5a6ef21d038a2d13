"""A local Ray cluster agrees with one process to the last digit."""

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_docs import ALL, ROOT
from test_parallel import Squares, refuse

from goca import GocaError, SegmentationRequest, Segmenter
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.runner import evaluate
from goca.folders import ModelOptions, index_lines, plan_outputs, segment_images
from goca.parallel import Executor, WorkerError, run_units
from goca.ray import Segment

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

CONFIG = EvaluationConfig(dataset="scenes", limit=5, batch=2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Executor]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ray.init(
        num_cpus=4,  # a job reads while two workers compute
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


@dataclass(frozen=True, kw_only=True)
class Killed(ModelOptions):
    """A model whose first worker is killed with a batch in hand."""

    leader: int
    marker: Path

    def load(self) -> Segmenter:
        if os.getpid() != self.leader and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load()


def test_a_folder_on_a_cluster_whose_worker_is_killed(cluster: Executor, tmp_path: Path, image: Any) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(5):
        image(64, 48, seed).save(tmp_path / f"in/{seed}.png")
    (tmp_path / "in/broken.png").write_bytes(b"not an image")
    model = Killed(batch=2, leader=os.getpid(), marker=tmp_path / "killed")
    files, indices = [], []
    for executor, out in ((Executor(), tmp_path / "here"), (cluster, tmp_path / "there")):
        jobs = plan_outputs([tmp_path / "in"], out, ["labels", "npz", "json"])
        for _ in segment_images(jobs, SegmentationRequest("", ["cat", "sky"]), model, out=out, executor=executor):
            pass
        files.append({path.name: path.read_bytes() for path in sorted(out.iterdir()) if "index" not in path.name})
        indices.append([{**line, "outputs": len(line.get("outputs", ()))} for line in index_lines(out).read()])
    assert model.marker.exists()
    assert len(files[0]) == 15
    assert files[1] == files[0]
    assert indices[1] == indices[0]


def test_a_job_of_somebody_else(cluster: Executor, image: Any) -> None:
    column = []
    for sides in ((64, 48), (48, 64)):
        content = io.BytesIO()
        image(*sides, seed=sum(sides)).save(content, "png")
        column.append(content.getvalue())
    column.insert(1, b"not an image")
    labelled = ray.data.from_items([{"number": row, "photo": each} for row, each in enumerate(column)]).map_batches(
        Segment,
        fn_constructor_kwargs={"classes": ["cat", "sky"], "column": "photo", "model": {"batch": 2}},
        batch_size=3,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    first, broken, last = sorted(labelled.iter_rows(), key=lambda row: row["number"])
    whole = Segmenter.from_pretrained("bundled", batch=2)(column[::2], ["cat", "sky"])
    for row, segmentation in zip((first, last), whole, strict=True):
        assert not row["error"]
        assert row["labels"].dtype == np.uint16
        assert np.array_equal(row["labels"], segmentation.labels)
    assert "is not an image" in broken["error"]
    assert broken["labels"].shape == (0, 0)
    assert [list(row["classes"]) for row in (first, broken, last)] == [["cat", "sky"]] * 3


def test_the_documented_job_runs(cluster: Executor, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = (block for block in ALL if block.info == "python ray")
    exec(compile(block.code, str(block), "exec"), {})
    assert "(128, 128)" in capsys.readouterr().out


def test_errors_of_a_cluster_travel(cluster: Executor) -> None:
    cluster = replace(cluster, workers=1)
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
    with pytest.raises(GocaError, match="is not a Ray address"):
        evaluate(replace(CONFIG, model="nowhere"), executor=Executor(ray="foo"))
