"""The loop every stage shares: two single-thread processes, one schedule, an average of the weights,
resumption.

A stage is a `Task`: it owns a model and says what one step's loss is. The loop owns everything else. Each
step draws its random numbers from (seed, step, process) alone, so nothing but weights and moments has to be
kept to resume a run bit for bit. Two processes that average their gradients are faster on a busy two-core
machine than one with two threads. Where there is a GPU, both compute on it.
"""

import copy
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

SNAPSHOTS = (5, 10, 25, 50, 100)  # per cent of the steps at which the averaged weights are kept
LOG_EVERY = 50
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PATIENCE = timedelta(days=7)  # with the other process: a run may be paused (SIGSTOP) for long
STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Plan:
    """How long and how fast a stage trains. The rate warms up, stays, and falls linearly over the last part.

    Before that last part nothing depends on `steps`, so a run may be resumed with another number of steps
    when the machine turns out slower or faster than expected.
    """

    folder: Path
    steps: int
    rate: float
    warm_up: int = 100
    fall: float = 0.4  # share of the steps
    average: float = 0.999  # of the weights, a step
    seed: int = 0
    workers: int = 2
    resume: bool = False
    checkpoint_minutes: float = 10

    def rate_at(self, step: int) -> float:
        """The learning rate of step number `step`, counted from 0."""
        warm = (step + 1) / self.warm_up
        falling = (self.steps - step) / (self.fall * self.steps)
        return self.rate * min(1.0, warm, falling)

    def snapshot_at(self, step: int) -> int | None:
        """The percentage whose snapshot is due once `step` steps are done, if one is."""
        return next((percent for percent in SNAPSHOTS if step == -(-self.steps * percent // 100)), None)


class Task(Protocol):
    """What a stage brings to the loop."""

    model: nn.Module

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch: the `loss` to descend, and anything else worth logging."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Held-out figures of `model` (the averaged weights)."""

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write `model` to the new `folder`, in the form in which later stages read it."""


class State:
    """The state of training: weights, their running average, moments, the number of steps done."""

    def __init__(self, model: nn.Module, plan: Plan):
        self.model, self.plan, self.step = model, plan, 0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.averaged = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, 0.99), weight_decay=0.01, fused=True)

    def advance(self) -> None:
        """One optimizer step with the gradients at hand, and one step of the average."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(self.step)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        # Young averages forget faster: the first weights are random and would linger.
        decay = min(self.plan.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)
            for mine, now in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
                mine.copy_(now)

    def write(self, path: Path) -> None:
        """Everything as one safetensors file, replaced in one move: an interruption cannot spoil it."""
        moments = self.optimizer.state_dict()["state"]
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"averaged.{name}": value for name, value in self.averaged.state_dict().items()}
        tensors |= {f"moments.{i}.{name}": value for i in moments for name, value in moments[i].items()}
        partial = path.with_suffix(".partial")
        # Copies: a file takes neither views nor a tensor under two names (T5's embeddings have two).
        tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
        save_file(tensors, partial, {"step": str(self.step)})
        partial.replace(path)

    def read(self, path: Path) -> None:
        """The inverse of `write`."""
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "averaged": {}, "moments": {}}
        with safe_open(path, "pt") as file:
            self.step = int(file.metadata()["step"])
            for key in file.keys():  # noqa: SIM118 (a safetensors handle is not iterable)
                group, name = key.split(".", 1)
                groups[group][name] = file.get_tensor(key)
        self.model.load_state_dict(groups["model"])
        self.averaged.load_state_dict(groups["averaged"])
        optimizer = self.optimizer.state_dict()
        for key, value in groups["moments"].items():
            index, name = key.split(".")
            optimizer["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(optimizer)


def autocast() -> torch.autocast:
    """Half precision where it is safe, for the device at hand."""
    return torch.autocast(DEVICE.type, torch.bfloat16)


def train(plan: Plan, make_task: Callable[[], Task]) -> None:
    """Run `plan` to its end, or to an interrupt (Ctrl-C, SIGTERM), which writes a checkpoint first."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (plan, make_task, Path(meeting) / "store")
        workers = torch.multiprocessing.spawn(_work, arguments, nprocs=plan.workers, join=False)

        def pass_on() -> None:
            for worker in workers.processes:
                if worker.is_alive():
                    os.kill(worker.pid, signal.SIGTERM)

        with stopping(pass_on):
            while not workers.join():
                pass


@contextmanager
def stopping(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` on Ctrl-C and SIGTERM instead of what they do outside of the context."""
    before = {number: signal.signal(number, lambda number, frame: stop()) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(rank: int, plan: Plan, make_task: Callable[[], Task], store: Path) -> None:
    torch.set_num_threads(1)
    interrupted: list[int] = []
    for number in STOPPING:
        signal.signal(number, lambda number, frame: interrupted.append(number))
    dist.init_process_group("gloo", init_method=f"file://{store}", timeout=PATIENCE, rank=rank, world_size=plan.workers)
    torch.manual_seed(plan.seed)
    task = make_task()
    state = State(task.model.to(DEVICE), plan)
    checkpoint = plan.folder / "checkpoint.safetensors"
    if plan.resume and checkpoint.exists():
        state.read(checkpoint)
    log = Log(plan.folder / "log.jsonl", silent=rank > 0)
    written = time.monotonic()
    stop = False
    while state.step < plan.steps and not stop:
        log.add(train_step(task, state, rank))
        if state.step % LOG_EVERY == 0:
            log.flush(state.step, rate=plan.rate_at(state.step - 1))
        percent = plan.snapshot_at(state.step)
        due = time.monotonic() - written > 60 * plan.checkpoint_minutes
        stop = _any(bool(interrupted))
        if rank == 0 and (percent or due or stop):
            if percent:  # before the checkpoint: once that says the last step is done, nobody comes back here
                _save(task, state.averaged, snapshot(plan.folder, percent))
            state.write(checkpoint)
            written = time.monotonic()
            if not stop:
                log.write(step=state.step, **task.evaluate(state.averaged))
    dist.destroy_process_group()


def _save(task: Task, model: nn.Module, folder: Path) -> None:
    """Write a folder, which gets its name only when it is complete."""
    partial = folder.with_suffix(".partial")
    for leftover in (partial, folder):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    task.save(model, partial)
    partial.rename(folder)


def snapshot(folder: Path, percent: int = 100) -> Path:
    """The path of the weights of the stage in `folder` after `percent` of its steps."""
    return folder / f"{percent:03d}"


def train_step(task: Task, state: State, rank: int = 0) -> dict[str, Tensor]:
    """One step: its randomness from (seed, step, process), its gradients averaged over the processes."""
    key = (state.plan.seed, state.step, rank)
    rng = np.random.default_rng(key)
    outcome = task.loss(rng, torch.Generator().manual_seed(int(rng.integers(2**62))))
    outcome["loss"].backward()
    if dist.is_initialized():
        _average_gradients(state.parameters)
    state.advance()
    return outcome


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients]).cpu()
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _any(flag: bool) -> bool:
    votes = torch.tensor(float(flag))
    dist.all_reduce(votes)
    return votes.item() > 0


class Log:
    """JSON lines: means over the last steps, held-out figures, seconds per step."""

    def __init__(self, path: Path, silent: bool):
        self.path, self.silent = path, silent
        self.pending: list[dict[str, float]] = []
        self.since = time.monotonic()

    def add(self, outcome: dict[str, Tensor]) -> None:
        self.pending.append({name: value.item() for name, value in outcome.items()})

    def flush(self, step: int, **more: float) -> None:
        """One line of means over the steps since the last one."""
        means = {name: float(np.mean([row[name] for row in self.pending])) for name in self.pending[0]}
        now = time.monotonic()
        self.write(step=step, **means, seconds_a_step=(now - self.since) / len(self.pending), **more)
        self.pending, self.since = [], now

    def write(self, **figures: float) -> None:
        if self.silent:
            return
        short = {name: float(f"{v:.5g}") if isinstance(v, float) else v for name, v in figures.items()}
        line = json.dumps(short)
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
