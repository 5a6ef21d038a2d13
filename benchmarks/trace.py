"""The cost of tracing on top of the denoiser passes of a generation: full-size layers with random weights.

    python benchmarks/trace.py [--json] [--rounds 2] [--threads 1] [--only sd15|sd15-guided|flux]

sd15: an SD 1.5-shaped UNet at 512 px, without guidance; sd15-guided: with it, so that one row of two is read; flux: one
double and two single blocks of Flux.1's width, 1024 pixels and 128 words. Each call makes one step and no image.
Plain calls and traced ones alternate in one process: with the default recipe, with it for heat maps alone (nothing to
refine masks with), and with "daam" (no weights of layers either). CPU seconds are medians, memory is the resident peak
above what the process held before the call (Linux).
`cpu_ratio` is traced over plain; the bar is 1.25. About seven CPU minutes with one round, and 6 GiB.

Last figures, one round. On idle cores, sd15: goca 1.24, heat maps alone 1.12, daam 1.07; flux: 1.12, 1.11, 0.98. With
other work beside it: sd15 1.36, 1.24, 1.22 (and 1.29 and 1.10 for goca and daam before), sd15-guided 1.14 and 1.02,
flux 1.28, 1.28, 1.04 (1.13 and 1.11 before). At most 0.12 GiB more than plain.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from overhead import build, peak

from goca import DAAM, GOCA, Recipe, trace
from goca.testing.tiny import BUILDERS

PROMPT = "a cat on the grass under a traffic light"
# Heat maps are not refined: without masks, the self-attention that refines them need not be collected.
RECIPES: dict[str, Recipe] = {"goca": GOCA, "goca, heat maps alone": replace(GOCA, order=0), "daam": DAAM}


def flux() -> FluxPipeline:
    """A slice of Flux.1's transformer, its layers at full width; the rest is tiny, as it is not measured."""
    torch.manual_seed(0)
    parts = BUILDERS["flux"]().components
    small = parts["transformer"].config
    slim = FluxTransformer2DModel(
        in_channels=small.in_channels,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=small.joint_attention_dim,
        pooled_projection_dim=small.pooled_projection_dim,
        guidance_embeds=small.guidance_embeds,
    )
    return FluxPipeline(**{**parts, "transformer": slim.eval()})


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sd15": (build, {"guidance_scale": 1.0, "height": 512, "width": 512}),
    "sd15-guided": (build, {"guidance_scale": 7.5, "height": 512, "width": 512}),
    # Cells of 2 px, four of them a pixel of the transformer's.
    "flux": (flux, {"height": 128, "width": 128, "max_sequence_length": 128}),
}


def measure(pipeline: Any, options: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds and peaks of one step, plain and traced, after one round to warm up."""
    pipeline.set_progress_bar_config(disable=True)

    def plain() -> None:
        pipeline(PROMPT, num_inference_steps=1, output_type="latent", **options)

    def traced(recipe: Recipe) -> None:
        with trace(pipeline, recipe) as tr:
            plain()
        tr.map("cat")

    runs: dict[str, list[tuple[float, float]]] = {"plain": [], **{name: [] for name in RECIPES}}
    for _ in range(rounds + 1):
        runs["plain"].append(peak(plain))
        for name, recipe in RECIPES.items():
            runs[name].append(peak(lambda recipe=recipe: traced(recipe)))  # type: ignore[misc]
    seconds, memory = (
        {name: statistics.median(run[index] for run in measured[1:]) for name, measured in runs.items()}
        for index in (0, 1)
    )
    return {
        "cpu_ratio": {name: seconds[name] / seconds["plain"] for name in RECIPES},
        "extra_gib": {name: memory[name] - memory["plain"] for name in RECIPES},
        "cpu_seconds": seconds,
        "peak_gib": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each, after one to warm up (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=CASES, help="measure only one case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {"threads": options.threads, "torch": torch.__version__}
    for name, (make, arguments) in CASES.items():
        if options.only in (None, name):
            figures[name] = measure(make(), arguments, options.rounds)
    print(json.dumps(figures) if options.json else json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
