"""Does segmentation get better where the generator does? Models side by side, with what each generates like."""

import json
import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from goca.errors import GocaError
from goca.evaluation import generated_images
from goca.evaluation.choices import check_labels
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.generated_images import GenerationConfig, ImagesGenerated
from goca.evaluation.generation_metrics import IMAGES
from goca.evaluation.metrics import Interval, interval, miou, percentage, resampled_miou
from goca.evaluation.power import (
    FOUND,
    LOSS,
    Captioned,
    Power,
    asked_nouns_found,
    captioned_images,
    measure_loss,
    read_power,
)
from goca.evaluation.protocol import Protocol
from goca.evaluation.report import Report
from goca.evaluation.runner import Finished, ImagesDone, Stage
from goca.evaluation.runner import run as run_evaluation
from goca.imaging import html
from goca.parallel import THIS_PROCESS
from goca.plan import Options, versions
from goca.segmenter import Segmenter
from goca.storage.atomic import write_atomic
from goca.tagging.base import Tagger

RECIPES = ("vanilla", "goca", "goca-balanced", "goca-open")
BASE = "vanilla"
"""The recipe that others are compared with, if it is there; else the first is."""
Figure = tuple[float, Interval]
"""A value and its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """What to compare.

    Attributes:
        models: {label: a name, folder or Hub id, as `Segmenter.from_pretrained` takes it}.
        evaluation: how each is evaluated; its model, recipe and seed are replaced.
        recipes: names.
        seeds: noise seeds 0, 1, ...; each is a run of its own.
        power_images: how many images generative power is measured on, at most.
        power: a file with a further measure of it, see `read_power`.
        steps, scale: of the paintings that a judge sees, see `GenerationConfig`.
    """

    models: Mapping[str, str]
    evaluation: EvaluationConfig
    recipes: tuple[str, ...] = RECIPES
    seeds: int = 3
    power_images: int = 200
    power: Path | None = None
    steps: int | None = None
    scale: float | None = None


@dataclass(frozen=True)
class RecipeScore:
    """mIoU of a model by a recipe, 0 to 1: the mean over noise seeds, its interval over images, and each seed's."""

    miou: float
    ci95: Interval
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Trend:
    """How the mIoU of a recipe goes with a measure of power.

    Attributes:
        slope: of the line of least squares, for one unit towards the better generator; `range` is from the weakest
            to the strongest.
        rank_correlation: Spearman's, 1 where every better generator segments better.
    """

    power: str
    recipe: str
    slope: Figure
    range: float
    rank_correlation: Figure


@dataclass(frozen=True)
class Gap:
    """mIoU of a recipe less that of another, for the weakest and the strongest generator, and how it changes."""

    power: str
    recipe: str
    base: str
    weakest: str
    at_weakest: Figure
    strongest: str
    at_strongest: Figure
    change: Figure


@dataclass(frozen=True, repr=False)
class ScalingStudy:
    """What was found. Intervals are bootstraps over images, the same draws for all; power is taken as it was measured.

    Attributes:
        models: {label: model}.
        scores: {label: {recipe: score}}.
        left_out: ids of images that some run could not evaluate, and that therefore count in none.
    """

    models: Mapping[str, str]
    protocol: Protocol
    powers: tuple[Power, ...]
    scores: Mapping[str, Mapping[str, RecipeScore]]
    trends: tuple[Trend, ...]
    gaps: tuple[Gap, ...]
    left_out: tuple[str, ...]

    def __repr__(self) -> str:
        powers = ", ".join(power.name for power in self.powers)
        return (
            f"ScalingStudy({self.protocol.dataset}, {self.protocol.images} images: {len(self.models)} models; {powers})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: each model's power as a generator beside its mIoU by each recipe, in per cent."""
        recipes = list(dict.fromkeys(recipe for scores in self.scores.values() for recipe in scores))
        header = ("model", *(power.name for power in self.powers), *(f"mIoU, {recipe}" for recipe in recipes))
        rows = []
        for label, scores in self.scores.items():
            powers = [f"{power.values[label]:.3f}" for power in self.powers]
            mious = [percentage(scores[recipe].miou, scores[recipe].ci95) for recipe in recipes]
            rows.append((label, *powers, *mious))
        return html.figure(repr(self), None, header, rows)

    def to_json(self) -> dict[str, Any]:
        """Every figure, with the protocol, as JSON; what no number is, as of models that are all alike, is null."""
        return _finite({**asdict(self), "protocol": self.protocol.to_json()})


def run(
    config: ScalingConfig, out: Path, command: Sequence[str] = (), judge: Tagger | None = None
) -> Generator[Stage | int | ScalingStudy, None, None]:
    """Measure every model, or go on with what `out` has, and write scaling.json there.

    Each model is loaded once. What is done stays in a folder for each model, and in it one for each recipe and seed.

    Args:
        config: what to compare.
        out: the study's folder.
        command: as the user gave it, for the record.
        judge: says which classes paintings show; None to paint nothing.

    Yields:
        Stages, how many images of a stage are done, and the study at the end.

    Raises:
        GocaError: something of this cannot be done, or the folder is of another study.
    """
    labels = tuple(config.models)
    check_labels(labels)
    given = () if config.power is None else (read_power(config.power, labels),)
    dataset = config.evaluation.open_dataset()
    config.evaluation.protocol_for(dataset, config.evaluation.tagger)
    pool = captioned_images(dataset, config.power_images)
    prompts = out / "prompts.jsonl"
    if judge is not None:
        write_atomic({prompts: "".join(json.dumps({"text": each.caption}) + "\n" for each in pool).encode()})
    losses: dict[str, Figure] = {}
    found: dict[str, Figure] = {}
    reports: dict[tuple[str, str, int], Report] = {}
    for label, model in config.models.items():
        yield Stage(f"{label}: loading")
        # No name here keeps a model while the next one is loaded.
        of_model = _Measuring(config, label, model, out / label, command)
        losses[label] = yield from _named(
            label, measure_loss(of_model.segmenter, pool, out / label / "denoising", command)
        )
        if judge is not None:
            yield from _named(label, of_model.paint(prompts))
            paintings = [
                Captioned(each.id, of_model.paintings / f"{index:06d}.png", each.caption)
                for index, each in enumerate(pool)
            ]
            yield Stage(f"{label}: judging")
            found[label] = asked_nouns_found(paintings, dataset, judge)
        for recipe, seed in product(config.recipes, range(config.seeds)):
            reports[label, recipe, seed] = yield from _named(f"{label}, {recipe}", of_model.evaluate(recipe, seed))
        del of_model
    powers = [_power(LOSS, False, losses), *([_power(FOUND, True, found)] if found else []), *given]
    study = compared(config.models, powers, reports)
    facts = {
        **study.to_json(),
        "judge": None if judge is None else judge.name,
        "painted": None if judge is None else {"steps": config.steps, "scale": config.scale},
        "power_images": len(pool),
        "command": list(command),
        "versions": dict(versions()),
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic({out / "scaling.json": f"{text}\n".encode()})
    yield study


class _Measuring:
    """A loaded model, and what is measured of it."""

    def __init__(self, config: ScalingConfig, label: str, model: str, folder: Path, command: Sequence[str]) -> None:
        self._config, self._folder, self._command = config, folder, command
        self._evaluation = replace(config.evaluation, model=model, recipe=config.recipes[0])
        self.segmenter = self._evaluation.load_segmenter()
        self.segmenter.backbone.pipeline.set_progress_bar_config(disable=True)

    @property
    def paintings(self) -> Path:
        """Where `paint` puts its images."""
        return self._folder / "paintings" / IMAGES

    def paint(self, prompts: Path) -> Generator[Stage | int, None, None]:
        """Paint an image for each prompt."""
        shared = {name: getattr(self._evaluation, name) for name in ("model", "device", "dtype", "batch", "threads")}
        config = GenerationConfig(
            prompts=prompts,
            steps=self._config.steps,
            scale=self._config.scale,
            size=self.segmenter.plan.size,
            **shared,
        )
        events = generated_images.run(
            config,
            self._folder / "paintings",
            command=self._command,
            pipeline=self.segmenter.backbone.pipeline,
        )
        for event in events:
            if isinstance(event, ImagesGenerated):
                yield len(event.images)
            elif isinstance(event, Stage):
                yield event

    def evaluate(self, recipe: str, seed: int) -> Generator[Stage | int, None, Report]:
        """One run of the study."""
        overrides = {**self._evaluation.overrides, "seed": seed}
        config = replace(self._evaluation, recipe=recipe, overrides=overrides)
        loaded = self.segmenter
        segmenter = Segmenter(loaded.backbone, recipe, Options(**overrides), config.batch, loaded.prototypes)
        out = self._folder / f"{recipe}-seed{seed}"
        for event in run_evaluation(config, out, THIS_PROCESS, self._command, segmenter):
            if isinstance(event, ImagesDone):
                yield len(event.images)
            elif isinstance(event, Stage):
                yield event
            elif isinstance(event, Finished):
                report = event.report
        return report


def _named(label: str, events: "Generator[Stage | int, None, Any]") -> "Generator[Stage | int, None, Any]":
    """The same events, their stages named after a model too."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value
        yield replace(event, name=f"{label}: {event.name}") if isinstance(event, Stage) else event


def _power(name: str, higher: bool, figures: Mapping[str, Figure]) -> Power:
    values = {label: value for label, (value, _) in figures.items()}
    return Power(name, higher, values, {label: bounds for label, (_, bounds) in figures.items()})


def compared(
    models: Mapping[str, str], powers: Sequence[Power], reports: Mapping[tuple[str, str, int], Report]
) -> ScalingStudy:
    """A study of runs over the same images.

    Args:
        models: {label: model}.
        powers: measures of each of them.
        reports: {(label, recipe, seed): what the run found}.

    Raises:
        GocaError: no image was evaluated by all runs.
    """
    everything = list(reports.values())
    first = everything[0]
    counted = set.intersection(*({image.id for image in report.counted} for report in everything))
    if not counted:
        raise GocaError("no image was evaluated in every run: see what each run left out")
    mious: dict[tuple[str, str], list[float]] = {}
    draws: dict[tuple[str, str], list[Tensor]] = {}
    for (label, recipe, _), report in reports.items():
        kept = tuple(image for image in report.images if image.id in counted)
        tally = replace(report, images=kept).tally(report.labelling)
        mious.setdefault((label, recipe), []).append(miou(tally, report.protocol.counting))
        draws.setdefault((label, recipe), []).append(resampled_miou(tally, report.protocol.counting))
    means = {key: math.fsum(values) / len(values) for key, values in mious.items()}
    resampled = {key: torch.stack(values).mean(0) for key, values in draws.items()}
    recipes = list(dict.fromkeys(recipe for _, recipe in means))
    scores = {
        label: {
            recipe: RecipeScore(means[label, recipe], interval(resampled[label, recipe]), tuple(mious[label, recipe]))
            for recipe in recipes
        }
        for label in models
    }
    # Of every recipe [1 + resample, model], the first row being what was measured.
    table = {
        recipe: torch.stack(
            [torch.cat([torch.tensor([means[label, recipe]]).double(), resampled[label, recipe]]) for label in models],
            1,
        )
        for recipe in recipes
    }
    trends, gaps = [], []
    for power in powers:
        strength = torch.tensor([power.values[label] for label in models]).double() * (1 if power.higher else -1)
        if len(strength.unique()) > 1:
            trends += [_trend(power.name, recipe, strength, rows) for recipe, rows in table.items()]
            gaps += _gaps(power.name, list(models), strength, table)
    left_out = tuple(image.id for image in first.images if image.id not in counted)
    return ScalingStudy(models, first.protocol, tuple(powers), scores, tuple(trends), tuple(gaps), left_out)


def _trend(power: str, recipe: str, strength: Float[Tensor, " model"], rows: Float[Tensor, "draw model"]) -> Trend:
    centred = strength - strength.mean()
    slopes = (rows - rows.mean(1, keepdim=True)) @ centred / centred.square().sum()
    ranks, wanted = _centred_ranks(rows), _centred_ranks(strength[None])[0]
    correlations = ranks @ wanted / (ranks.norm(dim=1) * wanted.norm())
    span = float(strength.max() - strength.min())
    return Trend(power, recipe, _figure(slopes), span, _figure(correlations))


def _gaps(
    power: str, labels: Sequence[str], strength: Float[Tensor, " model"], table: Mapping[str, Tensor]
) -> list[Gap]:
    base = BASE if BASE in table else next(iter(table))
    weakest, strongest = int(strength.argmin()), int(strength.argmax())
    gaps = []
    for recipe in table:
        if recipe != base:
            gain = table[recipe] - table[base]
            at_weakest, at_strongest = gain[:, weakest], gain[:, strongest]
            gaps.append(
                Gap(
                    power,
                    recipe,
                    base,
                    labels[weakest],
                    _figure(at_weakest),
                    labels[strongest],
                    _figure(at_strongest),
                    _figure(at_strongest - at_weakest),
                )
            )
    return gaps


def _centred_ranks(rows: Float[Tensor, "row value"]) -> Float[Tensor, "row value"]:
    """Ranks within each row, ties sharing theirs, with a mean of 0."""
    below, equal = (compare(rows[:, :, None], rows[:, None]).double().sum(2) for compare in (torch.gt, torch.eq))
    ranks = below + equal / 2
    return ranks - ranks.mean(1, keepdim=True)


def _figure(values: Float[Tensor, " draw"]) -> Figure:
    """The first value, and the interval of the others."""
    return float(values[0]), interval(values[1:])


def _finite(value: Any) -> Any:
    """JSON without NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
