"""Stage guidance: whether guidance with regions makes better images than plain classifier-free guidance.

Captions of held-out scenes are painted in 20 steps, each method from the same noise: first SWEPT of them at a range of
scales, then FINAL others at the scale where plain guidance came closest to real scenes. Plain guidance is also painted
at the effective scale that GoCA's rates had, for a rate that is above 1 on average is a larger scale before it is
anything else. The namer says which requested nouns an image shows, and its features how far images are from the real
held-out scenes (FID): as wholes, and the quarter of each with the least of its things.

Every batch of images is a file, so that the stage resumes where it was stopped.

    python -m training.guidance [--work FOLDER] [--model unet] [--swept 300] [--final 1000]
"""

import io
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from goca import GOCA, GOCA_BALANCED, VANILLA, Segmenter, guide
from goca.evaluation.generation_metrics import frechet_distance
from goca.evaluation.metrics import interval
from goca.imaging.sheet import Cell, contact_sheet
from goca.request import SegmentationRequest
from goca.storage.atomic import write_atomic

from . import namer, scenes
from .captions import caption
from .commands import command
from .export import MODELS
from .judge import halved
from .nouns import NAMES, THINGS
from .vae import to_tensor

STEPS, BATCH, SEED = 20, 25, 0
SCALES = (1.5, 2.0, 3.0, 4.0, 5.0, 7.5)
CROP = scenes.SIZE // 2
STRIDE = CROP // 4
LARGEST_SHARE = 0.05  # of things, in a crop that counts as background
PIPELINES = {"unet": "bundled", "dit": "bundled-dit", "joint": "bundled-joint"}
DRAWS = 300
ROWS = 8  # of the sheet

Method = Callable[[DiffusionPipeline, Sequence[np.ndarray]], AbstractContextManager[Any]]
"""Enters a method for one batch, given the label maps of the images that plain guidance makes of it."""

PLAIN = "plain"
METHODS: dict[str, Method] = {
    "goca": lambda pipeline, layouts: guide(pipeline, GOCA),
    "vanilla": lambda pipeline, layouts: guide(pipeline, VANILLA),
    "energy": lambda pipeline, layouts: guide(pipeline, None),
    "layout": lambda pipeline, layouts: guide(pipeline, masks=layouts),
}
"""Besides plain guidance. `layout`: the regions of the finished image that plain guidance makes of the same noise."""


@dataclass(frozen=True)
class Painted:
    """The images that a method generated from the captions.

    Attributes:
        images: [n, 64, 64, 3] uint8.
        scales: [n], the effective scale of each, averaged over the steps.
    """

    images: np.ndarray
    scales: np.ndarray


@dataclass(frozen=True)
class Measured:
    """The namer's judgement of images.

    Attributes:
        hits: [n, noun] bool, asked and shown.
        whole: [n, channel], features of the images.
        background: [n, channel], features of a crop of each without things; NaN where there is none.
    """

    hits: np.ndarray
    whole: np.ndarray
    background: np.ndarray

    def figures(self, asked: np.ndarray, real: "Measured", pick: np.ndarray) -> dict[str, float]:
        """Shares of asked things and stuff that are shown, and distances from real scenes, of the captions `pick`."""
        things, stuff = slice(0, len(THINGS)), slice(len(THINGS), len(NAMES))
        hits, wanted = self.hits[pick].sum(0), asked[pick].sum(0)
        return {
            "things": hits[things].sum() / wanted[things].sum(),
            "stuff": hits[stuff].sum() / wanted[stuff].sum(),
            "fid": distance(self.whole[pick], real.whole),
            "background": distance(self.background[pick], real.background),
        }


class Study:
    """The captions, and all that is painted and measured of them."""

    def __init__(self, model: str, work: Path) -> None:
        self.model, self.folder = model, work / "guidance" / model
        self.segmenter = Segmenter.from_pretrained(PIPELINES[model], recipe=GOCA_BALANCED)
        self.pipeline = self.segmenter.backbone.pipeline
        self.pipeline.set_progress_bar_config(disable=True)
        self.namer = namer.load(work)
        self.real, self.contents = scenes.read(work / "scenes/held-out")
        rng = np.random.default_rng(SEED)
        self.captions = [caption(content, rng) for content in self.contents]

    def paint(self, method: str, scale: float, prompts: range) -> Painted:
        """The captions `prompts` by one method, from the noise that belongs to each."""
        parts = [
            self._batch(method, scale, range(first, min(first + BATCH, prompts.stop)))
            for first in range(prompts.start, prompts.stop, BATCH)
        ]
        images, scales = zip(*parts, strict=True)
        return Painted(np.concatenate(images), np.concatenate(scales))

    def _batch(self, method: str, scale: float, prompts: range) -> tuple[np.ndarray, np.ndarray]:
        path = self.folder / f"{method}-{scale:g}" / f"{prompts.start:05}-{prompts.stop:05}.npz"
        if path.exists():
            with np.load(path) as stored:
                return stored["images"], stored["scales"]
        layouts = self.layouts(self._batch(PLAIN, scale, prompts)[0], prompts) if method == "layout" else []
        asked = MODELS[self.model].call([self.captions[index] for index in prompts], scale)
        generators = [torch.Generator().manual_seed(index) for index in prompts]
        with METHODS[method](self.pipeline, layouts) if method != PLAIN else nullcontext() as guided:
            answer = self.pipeline(**asked, num_inference_steps=STEPS, generator=generators, output_type="np")
        images = halved((answer.images * 255).round().astype(np.uint8))
        if guided is None:
            scales = np.full(len(prompts), scale)
        else:
            scales = np.array(guided.effective_scales).reshape(STEPS, len(prompts)).mean(0)
        _save(path, images=images, scales=scales)
        return images, scales

    def layouts(self, images: np.ndarray, prompts: range) -> list[np.ndarray]:
        """The label map of each image, told what its caption asks for: 0 stuff, then its things."""
        nouns = [self.contents[index].nouns for index in prompts]
        requests = (
            SegmentationRequest(image, list(names), background="none")
            for image, names in zip(images, nouns, strict=True)
        )
        things = {noun.name for noun in THINGS}
        return [
            np.where(
                np.isin(result.labels, [at for at, noun in enumerate(names, 1) if noun in things]), result.labels, 0
            )
            for (_, result), names in zip(self.segmenter.stream(requests), nouns, strict=True)
        ]

    def measure(self, name: str, images: np.ndarray, prompts: range) -> Measured:
        """The namer's answers and features, and those of the crop of each image that has least of its things."""
        path = self.folder / name / f"measured-{prompts.start:05}-{prompts.stop:05}.npz"
        if not path.exists():
            _save(path, **vars(self._measure(images, prompts)))
        with np.load(path) as stored:
            return Measured(**stored)

    @torch.no_grad()
    def _measure(self, images: np.ndarray, prompts: range) -> Measured:
        contents = [self.contents[index] for index in prompts]
        asked = namer.presence(contents) > 0
        crops, shares = map(np.stack, zip(*map(background, images, self.layouts(images, prompts)), strict=True))
        background_features = self._features(crops)
        background_features[shares > LARGEST_SHARE] = np.nan
        said = namer.shown(self.namer, to_tensor(images))
        return Measured((said & asked).cpu().numpy(), self._features(images), background_features)

    def _features(self, images: np.ndarray) -> np.ndarray:
        return namer.features(namer.grids(self.namer, images)[1]).double().numpy()


def _save(path: Path, **arrays: np.ndarray) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_atomic({path: file.getvalue()})


def background(image: np.ndarray, layout: np.ndarray) -> tuple[np.ndarray, float]:
    """The quarter of an image with the fewest pixels of things, enlarged to the image's size, and their share of it."""
    starts = range(0, scenes.SIZE - CROP + 1, STRIDE)
    windows = [np.s_[top : top + CROP, left : left + CROP] for top, left in product(starts, starts)]
    shares = [float((layout[window] > 0).mean()) for window in windows]
    least = int(np.argmin(shares))
    return image[windows[least]].repeat(2, 0).repeat(2, 1), shares[least]


def distance(features: np.ndarray, real: np.ndarray) -> float:
    """The FID of features [n, channel]; rows of NaN are left out."""
    of_real, generated = (torch.from_numpy(each[np.isfinite(each[:, 0])]) for each in (real, features))
    return frechet_distance(of_real, generated)


def compare(study: Study, real: Measured, runs: Sequence[tuple[str, float]], prompts: range) -> list[dict[str, Any]]:
    """The figures of methods at scales, with intervals, and their differences from each run of plain guidance."""
    asked = (namer.presence([study.contents[index] for index in prompts]) > 0).cpu().numpy()
    rng = np.random.default_rng(SEED)
    picks = [np.arange(len(prompts)), *(rng.integers(0, len(prompts), len(prompts)) for _ in range(DRAWS))]
    rows, drawn = [], {}
    for method, scale in runs:
        painted = study.paint(method, scale, prompts)
        measured = study.measure(f"{method}-{scale:g}", painted.images, prompts)
        figures = [measured.figures(asked, real, pick) for pick in picks]
        drawn[method, scale] = {name: np.array([each[name] for each in figures]) for name in figures[0]}
        rows.append({"method": method, "scale": scale, "effective_scale": float(painted.scales.mean())})
        rows[-1] |= {name: _interval(values) for name, values in drawn[method, scale].items()}
        for base in [run for run in drawn if run[0] == PLAIN and method != PLAIN]:
            rows[-1][f"minus plain at {base[1]:g}"] = {
                name: _interval(values - drawn[base][name]) for name, values in drawn[method, scale].items()
            }
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _interval(values: np.ndarray) -> list[float]:
    """The figure itself, which is first, and the 95 % interval of the draws."""
    return [round(float(each), 4) for each in (values[0], *interval(torch.from_numpy(values[1:])))]


def sheet(study: Study, runs: Sequence[tuple[str, float]], prompts: range) -> Image.Image:
    """A row for each of a few captions, a column for each method, from the same noise."""
    images = {run: study.paint(*run, prompts).images for run in runs}
    captions = [study.captions[index] for index in prompts]
    return contact_sheet(
        [
            [
                Cell(
                    Image.fromarray(images[run][row]).resize((2 * scenes.SIZE,) * 2),
                    f"{run[0]} {run[1]:g}" if column else text,
                )
                for column, run in enumerate(runs)
            ]
            for row, text in enumerate(captions[:ROWS])
        ]
    )


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--model", default="unet", choices=PIPELINES)
    parser.add_argument(
        "--swept", type=int, default=300, help="number of captions on which the scale is chosen (%(default)s)"
    )
    parser.add_argument(
        "--final", type=int, default=1000, help="number of further captions that are reported (%(default)s)"
    )
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw the first of these to FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    study = Study(arguments.model, arguments.work)
    real = study.measure("real", study.real, range(len(study.real)))
    swept, final = range(arguments.swept), range(arguments.swept, arguments.swept + arguments.final)
    rows = compare(study, real, [(method, scale) for method in (PLAIN, "goca") for scale in SCALES], swept)
    scale = min(rows[: len(SCALES)], key=lambda row: row["fid"][0])["scale"]
    effective = next(row["effective_scale"] for row in rows if (row["method"], row["scale"]) == ("goca", scale))
    runs = [(PLAIN, scale), (PLAIN, round(effective, 2)), *((method, scale) for method in METHODS)]
    compare(study, real, runs, final)
    if arguments.draw is not None:
        sheet(study, runs, final).save(arguments.draw)


if __name__ == "__main__":
    main()
