"""The cost of segmenting on top of the denoiser pass that it needs anyway: an SD 1.5-shaped UNet with random weights.

    python benchmarks/overhead.py [--json] [--rounds 3] [--threads 1]

Plain passes and segmentations alternate in one process; CPU seconds are the medians, memory is the resident peak above
what the process held before the call (Linux). `cpu_ratio` is segmentation over plain, `extra_gib` the difference of the
peaks.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from goca import GOCA, Segmenter
from goca.testing import tiny

CLASSES = ("cat", "grass", "traffic light")


def build(device: torch.device | str = "cpu") -> StableDiffusionPipeline:
    """SD 1.5's UNet at full size; VAE and text encoder have its shapes but are thin, as they are not measured."""
    torch.manual_seed(0)
    small = tiny.sd15()
    with torch.device(device):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    config = CLIPTextConfig(
        **{**small.text_encoder.config.to_dict(), "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1}
    )
    parts = {**small.components, "unet": unet.eval(), "vae": vae.eval(), "text_encoder": CLIPTextModel(config).eval()}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def peak(call: Callable[[], Any]) -> tuple[float, float]:
    """(CPU seconds, GiB of resident memory above the start at the worst moment) of a call."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    held = _resident("VmRSS")
    start = time.process_time()
    call()
    return time.process_time() - start, (_resident("VmHWM") - held) / 2**20


@contextmanager
def counted_rows(unet: UNet2DConditionModel) -> Iterator[list[int]]:
    """Count the rows of each UNet pass in the block."""
    rows: list[int] = []
    # The first layer: a segmentation ends with the last attention, before the denoiser does.
    handle = unet.conv_in.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    try:
        yield rows
    finally:
        handle.remove()


def _resident(field: str) -> int:
    """A field of the process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each, after one to warm up (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = build()
    segmenter = Segmenter.from_pipeline(pipeline, GOCA)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8))
    text = torch.randn(1, 77, 768)
    latent = torch.randn(1, 4, 64, 64)

    @torch.no_grad()
    def plain() -> None:
        pipeline.unet(latent, torch.tensor(100), text)

    def segment() -> None:
        segmenter(image, classes=CLASSES, background_classes=["sky"])

    runs: dict[str, list[tuple[float, float]]] = {"plain": [], "segment": []}
    for _ in range(options.rounds + 1):
        runs["plain"].append(peak(plain))
        runs["segment"].append(peak(segment))
    seconds, memory = (
        {name: statistics.median(run[index] for run in some[1:]) for name, some in runs.items()} for index in (0, 1)
    )
    told = {
        "cpu_ratio": seconds["segment"] / seconds["plain"],
        "extra_gib": memory["segment"] - memory["plain"],
        "cpu_seconds": seconds,
        "peak_gib": memory,
        "threads": options.threads,
        "torch": torch.__version__,
    }
    print(json.dumps(told) if options.json else json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
