"""The cost of guidance by regions on top of classifier-free guidance: an SD 1.5-shaped UNet random weights, 512 px.

    python benchmarks/guide.py [--json] [--rounds 2] [--threads 1] [--steps 4]

Plain generations and guided ones alternate in one process: attention read in every step ("goca", "vanilla"), in every
fourth ("goca, every 4"), and not at all (a constant rate). No image is decoded. CPU seconds are medians per step,
memory is the resident peak above what the process held before the call (Linux). `cpu_ratio` is guided over
plain; the bars are 1.35 for goca and 1.15 for every 4. `kept_kib` is what is kept of each step and image, and
`growth_kib` by how much the resident memory of a tiny pipeline grew for each step beyond the first ten.
About seven CPU minutes with one round of four steps, and 5 GiB.

Last figures, one round, with other work beside it: goca 1.12, every 4 1.02, vanilla 1.07, a constant rate 1.01; at most
0.14 GiB more than plain; 16 KiB kept of each step. A tiny pipeline's peak grew by 19 KiB a step, 4 KiB of it kept.
"""

import argparse
import json
import statistics
from typing import Any

import torch
from overhead import build, peak

from goca import guide
from goca.testing.tiny import BUILDERS

PROMPT = "a cat on the grass under a traffic light"
SETTINGS: dict[str, dict[str, Any]] = {
    "goca": {},
    "goca, every 4": {"every": 4},
    "vanilla": {"recipe": "vanilla"},
    "constant": {"rate": 1.5},
}


def measure(pipeline: Any, rounds: int, steps: int, size: int) -> dict[str, Any]:
    """Seconds a step and peaks, plain and guided; the first step of all warms up."""
    pipeline.set_progress_bar_config(disable=True)
    kept = 0.0

    def plain(count: int = steps) -> None:
        pipeline(PROMPT, num_inference_steps=count, output_type="latent", guidance_scale=7.5, height=size, width=size)

    def guided(settings: dict[str, Any]) -> None:
        nonlocal kept
        with guide(pipeline, **settings) as guiding:
            plain()
        kept = max(kept, sum(array.nbytes for array in (*guiding.rates, *guiding.regions) if array is not None))

    plain(1)
    runs: dict[str, list[tuple[float, float]]] = {"plain": [], **{name: [] for name in SETTINGS}}
    for _ in range(rounds):
        runs["plain"].append(peak(plain))
        for name, settings in SETTINGS.items():
            runs[name].append(peak(lambda settings=settings: guided(settings)))  # type: ignore[misc]
    seconds, memory = (
        {name: statistics.median(run[index] for run in measured) for name, measured in runs.items()} for index in (0, 1)
    )
    return {
        "cpu_ratio": {name: seconds[name] / seconds["plain"] for name in SETTINGS},
        "extra_gib": {name: memory[name] - memory["plain"] for name in SETTINGS},
        "cpu_seconds_a_step": {name: value / steps for name, value in seconds.items()},
        "peak_gib": memory,
        "kept_kib": kept / steps / 2**10,
    }


def growth(pipeline: Any, few: int = 10, many: int = 60) -> float:
    """KiB by which the peak of a guided generation grows with each step."""
    pipeline.set_progress_bar_config(disable=True)

    def guided(steps: int) -> None:
        with guide(pipeline):
            pipeline(PROMPT, num_inference_steps=steps, output_type="latent", height=64, width=64)

    guided(few)
    peaks = {steps: peak(lambda steps=steps: guided(steps))[1] for steps in (few, many)}  # type: ignore[misc]
    return (peaks[many] - peaks[few]) * 2**20 / (many - few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each, after one step to warm up (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="sampling steps, a multiple of 4 (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {"threads": options.threads, "torch": torch.__version__}
    figures["growth_kib"] = growth(BUILDERS["sd15"]())
    figures |= measure(build(), options.rounds, options.steps, size=512)
    print(json.dumps(figures) if options.json else json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
