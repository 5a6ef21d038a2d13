"""Heads x layers x rescaling: what each part of the method adds, on the scenes benchmark, beside the paper's table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from goca.bundled import Scene
from goca.diffusion.backbone import Backbone
from goca.evaluation.metrics import Interval, gain
from goca.evaluation.protocol import Protocol
from goca.evaluation.scenes import Evaluation, evaluate_scenes
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
    # Maps are normalised over all tokens, so this is also the share that counts special tokens.
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
class Row:
    """A variant's scores (0 to 1), and its gain of mIoU over the first variant, paired, with 95 % intervals."""

    name: str
    miou: float
    ci95: Interval
    pixel_accuracy: float
    gain: float
    gain_ci95: Interval
    paper: tuple[float, float] | None


@dataclass(frozen=True)
class Ablation:
    """protocol: of every row."""

    rows: tuple[Row, ...]
    protocol: Protocol

    def to_json(self) -> dict[str, Any]:
        """{"rows": [...], "protocol": {...}}."""
        return {"rows": [asdict(row) for row in self.rows], "protocol": self.protocol.to_json()}

    def to_markdown(self) -> str:
        """A table for docs/results.md; percentages, as in the paper."""
        lines = [
            "| parts of the method | mIoU [95 %] | pixel accuracy | gain of mIoU [95 %] | paper, VOC: SD 1.5 / SDXL |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in self.rows:
            paper = f"{row.paper[0]} / {row.paper[1]}" if row.paper else ""
            change = f"{row.gain:+.1%} {_percent(row.gain_ci95)}" if row is not self.rows[0] else ""
            cells = f"{row.miou:.1%} {_percent(row.ci95)} | {row.pixel_accuracy:.1%} | {change} | {paper}"
            lines.append(f"| {row.name} | {cells} |")
        return "\n".join(lines)


def ablate_scenes(
    backbone: Backbone, captions: str, batch: int, scenes: Sequence[Scene], done: Callable[[], None] = lambda: None
) -> Ablation:
    """Every variant on the same scenes; `done` is called after each variant."""
    runs = []
    for variant in VARIANTS:
        runs.append(evaluate_scenes(Segmenter(backbone, variant.recipe, Options(), batch), captions, scenes))
        done()
    return Ablation(tuple(_rows(runs)), runs[0].protocol)


def _rows(runs: list[Evaluation]) -> Iterator[Row]:
    for variant, run in zip(VARIANTS, runs, strict=True):
        score = run.score
        change, interval = gain(run.tally, runs[0].tally)
        yield Row(variant.name, score.miou, score.ci95, score.pixel_accuracy, change, interval, variant.paper)


def _percent(interval: Interval) -> str:
    return f"[{interval[0]:.1%}, {interval[1]:.1%}]"
