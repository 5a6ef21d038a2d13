"""Run the stages of the two transformers, and those of the scaling study behind them, that are not finished, in order.
Safe to start again at any time.

A stage is finished when its result exists; an unfinished one resumes from its checkpoint. SIGTERM and Ctrl-C end the
run after the checkpoint of the current stage. A second run of the same work folder ends at once.

    setsid nohup nice -n 19 python -m training.run >> run.out 2>&1 &
"""

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

from goca.bundled import FACTS

from .commands import command
from .export import NARROW, exported
from .loop import SNAPSHOTS, snapshot, stopping

UNET_STEPS = 8400  # as many as the UNet that ships

STAGES = (
    # arguments, result, whether it takes --resume
    (("art",), "art/fluent", False),
    (("scenes",), "scenes/train/contents.jsonl", False),
    (("tokenizer",), "tokenizer", False),
    (("namer",), "namer/coarse.npy", True),
    (("t5",), snapshot(Path("t5")), True),
    (("dit",), snapshot(Path("dit")), True),
    (("export", "--model", "dit"), f"pipelines/dit/{FACTS}", False),
    (("judge", "--model", "dit"), snapshot(Path("dit")) / "judgement.json", False),
    (("joint",), snapshot(Path("joint")), True),
    (("export", "--model", "joint"), f"pipelines/joint/{FACTS}", False),
    (("judge", "--model", "joint"), snapshot(Path("joint")) / "judgement.json", False),
    *(
        (
            ("unet", "--width", str(width), "--seed", str(seed), "--steps", str(UNET_STEPS)),
            snapshot(Path(name)),
            True,
        )
        for name, (width, seed) in NARROW.items()
    ),
    *((("judge", "--model", name), snapshot(Path(name)) / "judgement.json", False) for name in NARROW),
    *(
        (("export", "--model", name, "--percent", str(percent)), f"{exported(name, percent)}/{FACTS}", False)
        for name in (*NARROW, "dit", "joint")
        for percent in SNAPSHOTS
        if percent < 100 or name in NARROW
    ),
    (("scaling",), "scaling/scaling.json", False),
)


def run(work: Path, lock: int) -> None:
    """Run what is unfinished; a stage that ends without its result ends the run.

    Each stage holds the file descriptor `lock` too, so that none begins beside one that outlived its run.
    """
    stages: list[subprocess.Popen[bytes]] = []
    stopped: list[int] = []

    def stop() -> None:
        stopped.append(len(stages))
        for stage in stages[-1:]:
            stage.send_signal(signal.SIGTERM)

    with stopping(stop):
        for (name, *options), result, resumes in STAGES:
            if stopped:
                raise SystemExit("stopped")
            if (work / result).exists():
                continue
            print(f"{name}: begins or goes on", flush=True)
            resume = ["--resume"] if resumes else []
            module = [sys.executable, "-m", f"training.{name}", "--work", str(work)]
            stages.append(subprocess.Popen([*module, *options, *resume], pass_fds=[lock]))
            code = stages[-1].wait()
            if stopped:
                raise SystemExit(f"{name}: stopped")
            if code or not (work / result).exists():
                raise SystemExit(f"{name}: ended with code {code} and without its result {work / result}")


def main() -> None:
    work: Path = command(__doc__).parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    with (work / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"{work} already has a run in progress") from None
        run(work, lock.fileno())


if __name__ == "__main__":
    main()
