"""CPU seconds of the first image of `goca segment` beyond importing diffusers and a pipeline's class.

    python benchmarks/first_image.py [--rounds 5] [--threads 1] [--json]

Whole processes, from start to exit, alternate: one imports torch and diffusers and looks up the class of the model's
pipeline, the other is `goca segment` on an image. Run it with the Python of an environment without the dev extras:
diffusers imports whatever it finds installed, which is not what is measured here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from goca import bundled
from goca.storage.reading import read_json

IMAGE = Path(__file__).parents[1] / "examples" / "cat.png"
COMMAND = "import sys; from goca.cli.main import main; sys.exit(main())"


def cpu_seconds(arguments: Sequence[str], threads: int) -> float:
    """Of a Python process and of those that it starts, in user and in kernel mode; it must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments)
    return used.ru_utime + used.ru_stime


def measure(model: str, rounds: int, threads: int) -> dict[str, list[float]]:
    """{which: CPU seconds of each round}, after one round of each that is not counted."""
    kind = read_json(bundled.pipeline(model) / "model_index.json")["_class_name"]
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "imports": ["-c", f"import torch, diffusers; diffusers.{kind}"],
            "segment": [
                "-c",
                COMMAND,
                "segment",
                str(IMAGE),
                "--classes",
                "cat, grass",
                "--model",
                model,
                "--out",
                folder,
            ],
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds + 1):
            for name, arguments in runs.items():
                seconds[name].append(cpu_seconds(arguments, threads))
    return {name: measured[1:] for name, measured in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=bundled.DEFAULT, choices=bundled.names())
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each, after one to warm up (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    seconds = measure(options.model, options.rounds, options.threads)
    imports, segment = (statistics.median(seconds[name]) for name in ("imports", "segment"))
    facts = {"model": options.model, "imports": imports, "segment": segment, "beyond": segment - imports}
    if options.json:
        print(json.dumps({**facts, "rounds": seconds}))
    else:
        print("{model}: {segment:.2f} CPU-s, of which imports {imports:.2f}; beyond them {beyond:.2f}".format(**facts))


if __name__ == "__main__":
    main()
