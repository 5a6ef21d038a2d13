"""How the cost of a segmentation grows with the image and with the number of classes: an SD 1.5-shaped UNet.

    python benchmarks/growth.py [--markdown] [--plot docs/images/growth.png] [--threads 1]

Each row is one segmentation and one plain denoiser pass at the same size, in one process after one to warm up: CPU
seconds, and the resident peak above what the process held before (Linux). Many classes do not fit one prompt of 77
tokens; then each prompt takes a row of its own in a batch. The random tokenizer cuts a name into more tokens than a
real one.
About half an hour and 12 GiB.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from overhead import build, counted_rows, peak
from PIL import Image

from goca import GOCA, Segmenter

SIZES = (256, 384, 512, 768, 1024, 1536)
COUNTS = (2, 10, 50, 150)
SIZE, COUNT = 512, 2  # fixed while the other grows


@dataclass(frozen=True)
class Row:
    """A measurement: pixels per side, classes, denoiser rows; CPU seconds and GiB, segmenting and plain."""

    size: int
    classes: int
    passes: int
    seconds: float
    plain_seconds: float
    gib: float
    plain_gib: float


def names(count: int) -> list[str]:
    """Made-up class names of two letters, none of them a stop word or another's plural."""
    letters = "bcdfgklmprtvwz"
    return [first + second for first in letters for second in letters if first != second][:count]


def measure(pipeline: Any, size: int, count: int) -> Row:
    """Segment an image of noise, and run the denoiser once by itself."""
    segmenter = Segmenter.from_pipeline(pipeline, GOCA, size=size)
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    image, classes = Image.fromarray(noise), names(count)
    latent = torch.zeros(1, pipeline.unet.config.in_channels, *(size // segmenter.backbone.vae_scale_factor,) * 2)
    text = torch.zeros(1, 77, pipeline.unet.config.cross_attention_dim)
    with counted_rows(pipeline.unet) as passes:
        seconds, gib = peak(lambda: segmenter(image, classes=classes, background_classes=()))
    with torch.no_grad():
        plain_seconds, plain_gib = peak(lambda: pipeline.unet(latent, torch.tensor(100), text))
    return Row(size, count, sum(passes), seconds, plain_seconds, gib, plain_gib)


def rows(pipeline: Any, sizes: Sequence[int], counts: Sequence[int]) -> Iterator[Row]:
    """Every size with `COUNT` classes, then every number of classes at `SIZE`; the first is measured twice."""
    measure(pipeline, sizes[0], COUNT)
    for size in sizes:
        yield measure(pipeline, size, COUNT)
    for count in counts:
        yield measure(pipeline, SIZE, count)


def to_markdown(measured: Sequence[Row]) -> str:
    """The rows as a table for a document."""
    lines = [
        "| px a side | classes | passes | CPU-s | plain passes, CPU-s | ratio | peak, GiB | plain, GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in measured:
        plain = row.plain_seconds * row.passes
        lines.append(
            f"| {row.size} | {row.classes} | {row.passes} | {row.seconds:.1f} | {plain:.1f} | "
            f"{row.seconds / plain:.2f} | {row.gib:.2f} | {row.plain_gib:.2f} |"
        )
    return "\n".join(lines)


def plot(measured: Sequence[Row], path: Path) -> None:
    """Seconds against size and against classes, beside each other."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    at_count = {row.size: row for row in measured if row.classes == COUNT}
    at_size = {row.classes: row for row in measured if row.size == SIZE}
    grows = [[some[key] for key in sorted(some)] for some in (at_count, at_size)]
    for panel, some, name in zip(panels, grows, ("size", "classes"), strict=True):
        some = sorted(some, key=lambda row: getattr(row, name))
        places = [getattr(row, name) for row in some]
        panel.plot(places, [row.seconds for row in some], "o-", color="#d1495b", label="segmentation")
        panel.plot(
            places, [row.plain_seconds * row.passes for row in some], "o--", color="#30638e", label="plain passes"
        )
        panel.set(xscale="log", yscale="log", xticks=places, xticklabels=places)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set(xlabel=f"pixels a side, {COUNT} classes", ylabel="CPU seconds")
    panels[1].set(xlabel=f"classes, {SIZE} px")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="print a table instead of one JSON object a row")
    parser.add_argument("--plot", type=Path, help="write an image of it (needs matplotlib)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measured = []
    for row in rows(build(), SIZES, COUNTS):
        measured.append(row)
        if not options.markdown:
            print(json.dumps(asdict(row)), flush=True)
    if options.markdown:
        print(to_markdown(measured))
    if options.plot:
        plot(measured, options.plot)


if __name__ == "__main__":
    main()
