"""The shared loop: its schedule, its snapshots, and resumption bit for bit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.loop import Plan, State, snapshot, train, train_step


class Regression:
    """A task as small as a task can be: fit noise."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        inputs = torch.from_numpy(rng.standard_normal((7, 3), np.float32))
        return {"loss": (self.model(inputs) - torch.randn((7, 2), generator=generator)).pow(2).mean()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {}

    def save(self, model: nn.Module, folder: Path) -> None:
        pass


def test_rate_warms_up_stays_and_falls(tmp_path: Path) -> None:
    plan = Plan(tmp_path, steps=1000, rate=2.0, warm_up=10, fall=0.4)
    assert plan.rate_at(0) == pytest.approx(0.2)
    assert plan.rate_at(9) == plan.rate_at(600) == 2.0
    assert plan.rate_at(800) == pytest.approx(1.0)
    assert plan.rate_at(999) == pytest.approx(2.0 / 400)


def test_steps_may_change_before_the_fall(tmp_path: Path) -> None:
    long, short = (Plan(tmp_path, steps=steps, rate=1.0, fall=0.5) for steps in (1000, 700))
    assert [long.rate_at(step) for step in range(350)] == [short.rate_at(step) for step in range(350)]


def test_snapshots(tmp_path: Path) -> None:
    plan = Plan(tmp_path, steps=30, rate=1.0)
    due = {step: plan.snapshot_at(step) for step in range(1, 31) if plan.snapshot_at(step)}
    assert due == {2: 5, 3: 10, 8: 25, 15: 50, 30: 100}


def test_resumption_is_bit_identical(tmp_path: Path) -> None:
    plan = Plan(tmp_path, steps=3, rate=0.1, warm_up=2)
    through = Regression()
    straight = State(through.model, plan)
    for _ in range(3):
        train_step(through, straight)

    first = Regression()
    half = State(first.model, plan)
    train_step(first, half)
    half.write(tmp_path / "checkpoint.safetensors")
    second = Regression()
    resumed = State(second.model, plan)
    resumed.read(tmp_path / "checkpoint.safetensors")
    assert resumed.step == 1
    for _ in range(2):
        train_step(second, resumed)

    for mine, other in ((straight.model, resumed.model), (straight.averaged, resumed.averaged)):
        for name, value in mine.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    moments, again = (state.optimizer.state_dict()["state"] for state in (straight, resumed))
    assert all(torch.equal(moments[i][name], again[i][name]) for i in moments for name in moments[i])


def test_processes_differ_and_seeds_repeat(tmp_path: Path) -> None:
    def first_loss(rank: int, seed: int) -> float:
        task = Regression()
        state = State(task.model, Plan(tmp_path, steps=3, rate=0.1, seed=seed))
        return train_step(task, state, rank)["loss"].item()

    assert first_loss(0, 1) == first_loss(0, 1)
    assert len({first_loss(0, 1), first_loss(1, 1), first_loss(0, 2)}) == 3


class Slow(Regression):
    """The same, at leisure."""

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        time.sleep(0.005)
        return super().loss(rng, generator)

    def save(self, model: nn.Module, folder: Path) -> None:
        torch.save(model.state_dict(), folder / "weights")


def plan(folder: Path) -> Plan:
    return Plan(folder, steps=400, rate=0.01, warm_up=9, resume=True)


@pytest.mark.slow
def test_sigterm_ends_with_a_checkpoint_and_nothing_is_lost(tmp_path: Path) -> None:
    """A run that is stopped and resumed has the weights of one that was left alone."""

    def done(folder: Path) -> dict[str, Tensor]:
        return torch.load(snapshot(folder) / "weights")

    stopped, straight = tmp_path / "stopped", tmp_path / "straight"
    train(plan(straight), Slow)
    script = (
        "import sys; from training.tests.test_loop import Path, Slow, plan, train; train(plan(Path(sys.argv[1])), Slow)"
    )
    first = subprocess.Popen([sys.executable, "-c", script, stopped])
    while not (stopped / "005").exists():  # a snapshot: it is under way
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 0
    assert not snapshot(stopped).exists()
    train(plan(stopped), Slow)
    for name, value in done(straight).items():
        assert torch.equal(value, done(stopped)[name]), name
    steps = [json.loads(line)["step"] for line in (stopped / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[-1] == 400
    assert not list(stopped.glob("*.partial"))
