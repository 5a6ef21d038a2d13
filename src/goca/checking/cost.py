"""The cost of segmenting an image, relative to a plain denoiser pass."""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from goca.checking.subject import Subject
from goca.checking.verdict import Verdict, judged
from goca.probing.passes import denoiser_call

MOST_TIME = 10.0
MOST_MEMORY = 3.0
REPEATS = 3


@torch.no_grad()
def cost(subject: Subject) -> Verdict:
    """Time and memory of a segmentation as multiples of a plain pass's; warns if they are large."""
    backbone, shown = subject.backbone, subject.scenes[0]
    with denoiser_call(backbone, subject.latent_size, ", ".join(shown.nouns)) as (args, kwargs, _):
        plain = _measured(backbone.device, lambda: backbone.denoiser(*args, **kwargs))
    image = shown.image.resize((subject.side, subject.side))
    whole = _measured(
        backbone.device, lambda: subject.model(image, shown.nouns, background_classes=(), background=None)
    )
    measured: dict[str, float | int | str] = {
        "time ratio": whole[0] / max(1e-9, plain[0]),
        "plain pass, s": plain[0],
        "segmentation, s": whole[0],
    }
    if plain[1] and whole[1]:
        measured |= {"plain pass, MB": plain[1], "segmentation, MB": whole[1], "memory ratio": whole[1] / plain[1]}
    memory = float(measured.get("memory ratio", 0.0))
    return judged(
        "time and memory",
        float(measured["time ratio"]) <= MOST_TIME and memory <= MOST_MEMORY,
        measured,
        f"<= {MOST_TIME:g}; memory <= {MOST_MEMORY:g}",
        "an image costs about as much as a few plain passes",
        "an image costs much more than a plain pass: images smaller than the model's own size are cheaper",
        otherwise="warned",
    )


def _measured(device: str, run: Callable[[], object]) -> tuple[float, float | None]:
    """(seconds of the fastest of several runs, peak memory in MB or None if the system does not report it)."""
    run()
    on_gpu = device.startswith("cuda")
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # only Linux can reset the peak
            Path("/proc/self/clear_refs").write_text("5")
    times = []
    for _ in range(REPEATS):
        start = clock()
        run()
        if on_gpu:
            torch.cuda.synchronize(device)
        times.append(clock() - start)
    if on_gpu:
        return min(times), torch.cuda.max_memory_allocated(device) / 2**20
    try:
        peak = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        peak = None
    return min(times), None if peak is None else int(peak[1]) / 1024
