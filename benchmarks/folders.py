"""A folder as one job: time saved by overlapping, growth of memory, and equal results after a killed run.

    python benchmarks/folders.py speed [--images 500] [--rounds 5] [--threads 1]
    python benchmarks/folders.py memory [--images 10000]
    python benchmarks/folders.py killed [--images 500] [--workers 2]

speed: images of 512 px through the bundled model, by `segment_images`, which reads and writes while it computes, and by
a loop that reads, computes and writes each in turn; the two alternate. If every core is busy with something else,
the gain shows in how few of the CPU seconds are in the thread that computes.
memory: resident memory at the peak (Linux) from a tenth of the images to all, with a stand-in for the model.
killed: five formats on several processes; the run is killed twice and one of its workers once, and resumed each time,
the last time in one process, against an undisturbed run in one process.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from overhead import _resident
from PIL import Image

from goca import GOCA_OPEN, SegmentationRequest, Segmenter
from goca.cli.main import main as goca
from goca.folders import (
    FolderEvent,
    FolderProgress,
    ImageOutcome,
    ModelOptions,
    index_lines,
    plan_datasets,
    plan_outputs,
    segment_images,
)

REQUEST = SegmentationRequest("", ["cat", "grass", "sky"])
FIVE = ["labels", "npz", "json", "coco", "yolo"]
PHOTO = Path(__file__).parent.parent / "examples" / "cat.png"


def draw(folder: Path, count: int, side: int) -> None:
    """`count` different JPEGs of `side` x `side` px."""
    folder.mkdir()
    with Image.open(PHOTO) as photo:
        image = photo.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    for number in range(count):
        noise = np.random.default_rng(number).integers(-12, 13, (side, side, 1))
        pixels = np.clip(np.asarray(image.rotate(number)) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg")


CLOCKS = (time.perf_counter, time.process_time, time.thread_time)


def clocked(events: Iterable[Any]) -> tuple[float, ...]:
    """Seconds of each clock from the first of the events, which tells that the model is loaded, to the last."""
    events = iter(events)
    next(events)
    start = [clock() for clock in CLOCKS]
    for _ in events:
        pass
    return tuple(clock() - begun for clock, begun in zip(CLOCKS, start, strict=True))


def in_turn(folder: Path, out: Path) -> Iterator[None]:
    """The plain loop, with the same files and index."""
    jobs = plan_outputs([folder], out)
    segmenter = Segmenter.from_pretrained("bundled", GOCA_OPEN)
    encoded = segmenter.check(REQUEST)
    with index_lines(out) as index:
        yield
        requests = (replace(REQUEST, image=job.image) for job in jobs)
        for job, (_, result) in zip(jobs, segmenter.stream(requests, encoded), strict=True):
            assert not isinstance(result, Exception)
            result.save(job.folder, job.stem, job.formats)
            index.append(ImageOutcome(job, {}).to_json())
            yield


def speed(folder: Path, images: int, rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    ratios: list[tuple[float, float]] = []
    for number in range(rounds):
        part = folder / f"in{number}"
        draw(part, images // rounds, 512)
        plain, plain_cpu, _ = clocked(in_turn(part, folder / "plain"))
        out = folder / "overlapped"
        wall, cpu, leading = clocked(segment_images(plan_outputs([part], out), REQUEST, ModelOptions(), out=out))
        ratios.append((plain / wall, plain_cpu / leading))
        print(
            f"in turn {images // rounds / plain:.2f} images/s, {plain_cpu:.1f} CPU s; overlapped "
            f"{images // rounds / wall:.2f} images/s, {cpu:.1f} CPU s, {leading:.1f} of them in the thread that "
            f"computes; {plain / wall:.2f} times as fast; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    under_load, idle = map(statistics.median, zip(*ratios, strict=True))
    print(f"median: {under_load:.2f} times as fast; on idle cores at most {idle:.2f} times")


class StandIn:
    """Labels any image immediately, in the form of a real result."""

    def __init__(self) -> None:
        self.model = Segmenter.from_pretrained("bundled", GOCA_OPEN)
        self.result = self.model(Image.new("RGB", (32, 32)), REQUEST.classes)
        self.plan, self.evidence, self.batch = self.model.plan, self.model.evidence, 4

    def for_request(self, request: SegmentationRequest) -> "StandIn":
        return self

    def check(self, request: SegmentationRequest) -> None:
        return None

    def stream(self, requests: Iterable[SegmentationRequest], *_: Any) -> Iterator[tuple[SegmentationRequest, Any]]:
        for request in requests:
            labels = np.zeros((32, 32), np.uint16)
            labels[4:9, 4:20] = 1
            yield request, replace(self.result, image=request.image, labels=labels)


@dataclass(frozen=True, kw_only=True)
class StandInOptions(ModelOptions):
    def load(self) -> Any:
        return StandIn()


def memory(folder: Path, images: int) -> None:
    draw(folder / "in", images, 32)
    out = folder / "out"
    for resume in (False, True):
        jobs = plan_outputs([folder / "in"], out, FIVE)
        if resume:  # one image is left, so that the whole run is processed
            jobs[-1].targets[-1].unlink()
        begun = False
        for event in run(jobs, out, resume):
            if isinstance(event, FolderProgress):
                if event.done >= images // 10 and not begun:
                    begun, before = True, _resident("VmRSS")
                    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
                if event.done == images:
                    grown = _resident("VmHWM") - before
        whole = _resident("VmHWM") - before
        print(
            f"{'resumed' if resume else 'anew'}: {before / 1024:.0f} MiB; to the last image {grown / 1024:+.1f} MiB at "
            f"the peak, with the data sets {whole / 1024:+.1f} MiB",
            flush=True,
        )


def run(jobs: Any, out: Path, resume: bool) -> Iterator[FolderEvent]:
    return segment_images(
        jobs, REQUEST, StandInOptions(), out=out, resume=resume, datasets=plan_datasets(jobs, out, FIVE)
    )


KILLS = ((0.2, False), (0.5, False), (0.8, True))
"""(share of the images after which something is killed, whether that is a worker rather than the run)."""


def killed(folder: Path, images: int, workers: int, kills: Sequence[tuple[float, bool]] = KILLS) -> bool:
    """Whether a run on several processes that is killed and resumed leaves the same files as an undisturbed one."""
    draw(folder / "in", images, 48)
    (folder / "in" / "broken.jpg").write_bytes(b"not an image")
    whole, torn = folder / "whole", folder / "torn"
    goca(command(folder, whole, 1))
    for share, of_worker in kills:
        process = started(command(folder, torn, workers))
        while len(list(torn.glob("*.npz"))) < share * images:
            time.sleep(0.02)
        number = workers_of(process.pid)[0] if of_worker else process.pid
        os.kill(number, signal.SIGKILL)
        code = process.wait()
        done = len(list(torn.glob("*.json")))
        print(f"killed {'a worker' if of_worker else 'the run'} (exit code {code}): {done} JSON files", flush=True)
    code = goca(command(folder, torn, 1))
    files = [contents(whole), contents(torn)]
    index = [(out / "index.jsonl").read_text().replace(str(out), "OUT") for out in (whole, torn)]
    equal = files[0] == files[1] and index[0] == index[1]
    print(f"resumed (exit code {code}): {len(files[1])} files, {'equal' if equal else 'UNEQUAL'}")
    return equal


def command(folder: Path, out: Path, workers: int) -> list[str]:
    options = ["--classes", "cat, grass, sky", "--format", ",".join(FIVE), "--out", str(out), "--resume"]
    return ["segment", str(folder / "in"), *options, "--workers", str(workers), "--threads", "1"]


def started(command: list[str]) -> subprocess.Popen[bytes]:
    script = "import sys; from goca.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen([sys.executable, "-c", script, *command], stdout=subprocess.DEVNULL)


def workers_of(process: int) -> list[int]:
    """The processes that Python's multiprocessing has spawned for one (Linux); without its resource tracker."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def contents(out: Path) -> dict[str, bytes]:
    """The files of a run but its index, which names their folder."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and "index.jsonl" not in path.name)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "memory", "killed"))
    parser.add_argument("--images", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        if options.what == "speed":
            speed(folder, options.images or 500, options.rounds, options.threads)
        elif options.what == "memory":
            memory(folder, options.images or 10_000)
        else:
            killed(folder, options.images or 500, options.workers)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
