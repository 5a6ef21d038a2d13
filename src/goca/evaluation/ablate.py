"""Heads x layers x rescaling: what each part of the method contributes on the scenes, beside the paper's table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from goca.diffusion.backbone import Backbone
from goca.errors import GocaError
from goca.evaluation.choices import caption_style
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.datasets.base import Dataset
from goca.evaluation.evaluator import evaluate_dataset
from goca.evaluation.metrics import Interval, Tally, gain, percentage
from goca.evaluation.oracle import OracleTagger
from goca.evaluation.protocol import Protocol, honest
from goca.evaluation.remap import narrowed
from goca.imaging import html
from goca.plan import Options
from goca.recipe import GOCA, GOCA_BALANCED, GOCA_COMPOUND, VANILLA, Recipe
from goca.segmenter import Segmenter


def _with(*fields: str) -> Recipe:
    """`VANILLA` with some fields of `GOCA`."""
    ours: dict[str, Any] = {field: getattr(GOCA, field) for field in fields}
    return replace(VANILLA, **ours)


@dataclass(frozen=True)
class Variant:
    """A recipe of the ablation. paper: its mIoU on VOC in per cent, (SD 1.5, SDXL), as the paper reports it."""

    name: str
    recipe: Recipe
    paper: tuple[float, float] | None = None


VARIANTS = (
    Variant("none (vanilla)", VANILLA, (44.3, 51.1)),
    Variant("heads", _with("heads"), (44.8, 56.1)),
    Variant("layers", _with("layers"), (52.1, 51.3)),
    Variant("rescaling", _with("rescale"), (52.6, 51.4)),
    # Maps are normalised over all tokens, so this is also the share that includes special tokens.
    Variant("heads, layers", _with("heads", "layers")),
    Variant("heads, rescaling", _with("heads", "rescale")),
    Variant("layers, rescaling", _with("layers", "rescale")),
    Variant("all (goca)", GOCA, (60.7, 65.6)),
    Variant("all, stop words keep their share", replace(GOCA, rescale=("share-of-prompt", "blur", "minmax"))),
    Variant("all, balanced layers (goca-balanced)", GOCA_BALANCED),
    Variant("balanced layers alone", replace(VANILLA, layers=GOCA_BALANCED.layers)),
    Variant("all, compound rescaling (goca-compound)", GOCA_COMPOUND),
)


@dataclass(frozen=True)
class AblationRow(html.Row):
    """A variant's scores, 0 to 1, and its paired gain in mIoU over the first variant, with 95 % intervals."""

    name: str
    miou: float
    ci95: Interval
    pixel_accuracy: float
    gain: float
    gain_ci95: Interval
    paper: tuple[float, float] | None

    def columns(self) -> dict[str, str]:
        """The columns, in per cent except for the name."""
        return {
            "parts of the method": self.name,
            "mIoU [95 %]": percentage(self.miou, self.ci95),
            "pixel accuracy": f"{100 * self.pixel_accuracy:.1f}",
            "gain [95 %]": percentage(self.gain, self.gain_ci95, "+"),
            "paper: SD 1.5, SDXL": html.listed(self.paper or ()),
        }


def scenes_benchmark(captions: str = "nouns", limit: int | None = None) -> tuple[Dataset, Protocol]:
    """The first `limit` scenes with their categories, and their protocol. Raises GocaError for unknown captions."""
    dataset = EvaluationConfig(dataset="scenes", captions=captions, limit=limit).open_dataset()
    shown = {name for sample in dataset.samples for name in sample.captions["nouns"].split(", ")}
    absent = [name for name in dataset.class_names if name not in shown]
    dataset = narrowed(dataset, absent, background=False)
    return dataset, replace(honest(dataset, OracleTagger().name), captions=caption_style(captions))


def ablate(backbone: Backbone, dataset: Dataset, protocol: Protocol, batch: int) -> Iterator[AblationRow]:
    """Score `VARIANTS` on the same images, `batch` at a time, and yield the row of each.

    In a notebook, `goca.imaging.html.Rows` shows them as a table.

    Raises:
        GocaError: An image cannot be segmented.
    """
    first: Tally | None = None
    for variant in VARIANTS:
        segmenter = Segmenter(backbone, variant.recipe, Options(), batch)
        report = evaluate_dataset(segmenter, dataset, OracleTagger(), protocol)
        for image in report.left_out:
            raise GocaError(image.left_out)
        score, tally = report.score(), report.tally()
        first = tally if first is None else first
        scores = (score.miou, score.ci95, score.pixel_accuracy)
        yield AblationRow(variant.name, *scores, *gain(tally, first), variant.paper)


def to_markdown(rows: Sequence[AblationRow]) -> str:
    """A table for docs/results.md; percentages, as in the paper."""
    lines = [
        "| parts of the method | mIoU [95 %] | pixel accuracy | gain of mIoU [95 %] | paper, VOC: SD 1.5 / SDXL |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        paper = f"{row.paper[0]} / {row.paper[1]}" if row.paper else ""
        change = f"{row.gain:+.1%} {_percent(row.gain_ci95)}" if row is not rows[0] else ""
        cells = f"{row.miou:.1%} {_percent(row.ci95)} | {row.pixel_accuracy:.1%} | {change} | {paper}"
        lines.append(f"| {row.name} | {cells} |")
    return "\n".join(lines)


def _percent(interval: Interval) -> str:
    return f"[{interval[0]:.1%}, {interval[1]:.1%}]"
