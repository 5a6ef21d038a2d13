"""The cost per named class: denoiser rows and CPU seconds per image, for 2 to 1,000 classes.

    python benchmarks/vocabulary.py [--counts 2,10,32,150,1000]

A tiny random pipeline of SD 1.5's kind, and the bundled one as far as it has words. The first image of a stream pays
for work that the others reuse: encoded names, and the calibration on images without content, which is on disk from
then on. Rows that encode names are passes over the smallest image that there is. No background classes, batches of one.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from overhead import counted_rows
from PIL import Image
from tables import markdown

from goca import GOCA_BALANCED, GOCA_OPEN, Segmenter, bundled
from goca.recipe import Recipe
from goca.request import SegmentationRequest
from goca.testing import tiny

COUNTS = (2, 10, 32, 150, 1000)
RECIPES: Mapping[str, Recipe] = {
    "goca-balanced": GOCA_BALANCED,
    "goca-balanced, keys on the side": replace(GOCA_BALANCED, keys="side"),
    "goca-open": GOCA_OPEN,
}
SIZE: int | None = None
"""Pixels a side; None for the model's own."""
FOLLOWING = 3
"""Number of images after the first."""


@dataclass(frozen=True)
class Row:
    """Rows through the denoiser and CPU seconds, of the first image and of each that follows it."""

    pipeline: str
    recipe: str
    classes: int
    first: tuple[int, float]
    following: tuple[float, float]


def names(count: int) -> list[str]:
    """Made-up words of three consonants: no stop words, and none is another's plural."""
    return ["".join(word) for word in itertools.islice(itertools.permutations("bcdfgklmprtvwz", 3), count)]


def measure(pipeline: Any, name: str, recipe: str, classes: Sequence[str]) -> Row:
    """Segment images of noise in one stream."""
    segmenter = Segmenter.from_pipeline(pipeline, RECIPES[recipe], batch=1, size=SIZE)
    side = segmenter.plan.size
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(1 + FOLLOWING)]
    requests = (SegmentationRequest(image, classes, ()) for image in images)
    with TemporaryDirectory() as folder, counted_rows(pipeline.unet) as rows:
        if segmenter.plan.evidence is not None:
            segmenter.evidence.content_free.folder = Path(folder)
        stream = segmenter.stream(requests)
        start = time.process_time()
        next(stream)
        first, middle = sum(rows), time.process_time()
        list(stream)
        rest, end = sum(rows) - first, time.process_time()
    return Row(name, recipe, len(classes), (first, middle - start), (rest / FOLLOWING, (end - middle) / FOLLOWING))


def rows(pipelines: Mapping[str, Any], counts: Sequence[int]) -> Iterator[Row]:
    """Every pipeline, recipe and number of classes that the pipeline has words for."""
    for name, pipeline in pipelines.items():
        words = bundled.vocabulary() if name == "bundled" else names(max(counts))
        for recipe in RECIPES:
            measure(pipeline, name, recipe, words[:2])  # to warm up
            for count in counts:
                if count <= len(words):
                    row = measure(pipeline, name, recipe, words[:count])
                    print(row, file=sys.stderr, flush=True)
                    yield row


def to_markdown(measured: Sequence[Row]) -> str:
    """The rows as a table for a document."""
    header = ("pipeline", "recipe", "classes", "first image: rows", "CPU-s", "each following image: rows", "CPU-s")
    return markdown(
        header,
        (
            (
                *(row.pipeline, row.recipe, str(row.classes)),
                *(f"{row.first[0]}", f"{row.first[1]:.2f}", f"{row.following[0]:.0f}", f"{row.following[1]:.2f}"),
            )
            for row in measured
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--counts", default=",".join(map(str, COUNTS)), help="numbers of classes, comma-separated (%(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipelines = {"tiny": tiny.sd15(), "bundled": Segmenter.from_pretrained("bundled", device="cpu").backbone.pipeline}
    print(to_markdown(list(rows(pipelines, [int(count) for count in options.counts.split(",")]))))


if __name__ == "__main__":
    main()
