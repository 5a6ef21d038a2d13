"""The command line every stage shares."""

import argparse
from pathlib import Path

from .loop import Plan

DEFAULT_WORK = Path.home() / ".cache/goca/training"


def command(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--work`, which every stage takes; `description` is the module's docstring."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help="folder of all results (%(default)s)")
    return parser


def training_command(description: str | None, steps: int, batch: int) -> argparse.ArgumentParser:
    """The arguments of a training stage."""
    parser = command(description)
    parser.add_argument("--steps", type=int, default=steps, help="total optimizer steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=batch, help="images per process and step (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint")
    return parser


def make_plan(arguments: argparse.Namespace, stage: str, rate: float, **settings: float) -> Plan:
    """The plan of `stage`, from the arguments of `training_command`."""
    return Plan(
        arguments.work / stage,
        arguments.steps,
        rate,
        seed=arguments.seed,
        workers=arguments.workers,
        resume=arguments.resume,
        **settings,
    )
