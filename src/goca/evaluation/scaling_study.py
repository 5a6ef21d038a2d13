"""Results of a scaling study: scores, and how they relate to each model's generative power."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from goca.errors import GocaError
from goca.evaluation.metrics import Figure, Interval, interval, miou, percentage, resampled_miou
from goca.evaluation.power import Power
from goca.evaluation.protocol import Protocol
from goca.evaluation.report import Report
from goca.imaging import html

BASE = "vanilla"
"""The recipe that others are compared with if it is among them; else the first."""


@dataclass(frozen=True)
class RecipeScore:
    """mIoU of a model with a recipe, 0 to 1: the mean over noise seeds, its interval over images, and each seed's."""

    miou: float
    ci95: Interval
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class Trend:
    """How the mIoU of a recipe relates to a measure of power.

    Attributes:
        slope: Slope of the least-squares line, per unit towards the better generator; `range` is from the weakest to
            the strongest.
        rank_correlation: Spearman's; 1 if every better generator segments better.
    """

    power: str
    recipe: str
    slope: Figure
    range: float
    rank_correlation: Figure

    def cells(self) -> tuple[str, str, str]:
        """The recipe, the rise of mIoU from the weakest to the strongest generator, and the correlation, as text."""
        slope, bounds = self.slope
        correlation, sure = self.rank_correlation
        rise = percentage(self.range * slope, [self.range * bound for bound in bounds], "+")
        return self.recipe, rise, f"{correlation:+.2f} [{sure[0]:+.2f}, {sure[1]:+.2f}]"


@dataclass(frozen=True)
class Gap:
    """mIoU of a recipe minus another's, for the weakest and the strongest generator, and the change between them."""

    power: str
    recipe: str
    base: str
    weakest: str
    at_weakest: Figure
    strongest: str
    at_strongest: Figure
    change: Figure

    def cells(self) -> tuple[str, ...]:
        """The recipe, its gain with the weakest and the strongest generator, and the change, as text."""
        figures = (self.at_weakest, self.at_strongest, self.change)
        return (self.recipe, *(percentage(*figure, "+") for figure in figures))


@dataclass(frozen=True, repr=False)
class ScalingStudy:
    """The results. Intervals are bootstraps over images, with the same draws for all; power is taken as measured.

    Attributes:
        models: {label: model}.
        scores: {label: {recipe: score}}.
        left_out: Ids of images that some run could not evaluate, and that are therefore left out of all.
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
        """HTML for notebooks: each model's power as a generator beside its mIoU by each recipe, in per cent."""
        recipes = list(dict.fromkeys(recipe for scores in self.scores.values() for recipe in scores))
        header = ("model", *(power.name for power in self.powers), *(f"mIoU, {recipe}" for recipe in recipes))
        return html.figure(repr(self), None, header, self.rows(recipes))

    def rows(self, recipes: Sequence[str]) -> list[tuple[str, ...]]:
        """Each model's label, powers, and mIoU by each of the recipes, in per cent, as text."""
        rows = []
        for label, scores in self.scores.items():
            powers = [f"{power.values[label]:.3f}" for power in self.powers]
            mious = [percentage(scores[recipe].miou, scores[recipe].ci95) for recipe in recipes]
            rows.append((label, *powers, *mious))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Every figure, with the protocol, as JSON; undefined figures, such as of equally good models, are null."""
        return _finite({**asdict(self), "protocol": self.protocol.to_json()})


def compared(
    models: Mapping[str, str], powers: Sequence[Power], reports: Mapping[tuple[str, str, int], Report]
) -> ScalingStudy:
    """Make a study from runs over the same images.

    Args:
        models: {label: model}.
        powers: Measures of the power of each of them.
        reports: {(label, recipe, seed): report of the run}.

    Raises:
        GocaError: No image was evaluated by all runs.
    """
    everything = list(reports.values())
    first = everything[0]
    counted = set.intersection(*({image.id for image in report.counted} for report in everything))
    if not counted:
        raise GocaError("no image was evaluated in every run: check what each run left out")
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
    # For every recipe [1 + resample, model]; the first row has the measured values.
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
    """Ranks within each row, centred on 0; ties share a rank."""
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
