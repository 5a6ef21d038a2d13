"""Does segmentation improve with the generator? Models side by side, with their generative power."""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from goca.errors import GocaError
from goca.evaluation import generated_images
from goca.evaluation.choices import DENOISING, check_labels, is_measured, refuse_study
from goca.evaluation.compare import load_run
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.datasets.base import Dataset
from goca.evaluation.fingerprint import differences, facts_of
from goca.evaluation.generated_images import GenerationConfig, ImagesGenerated
from goca.evaluation.generation_metrics import IMAGES
from goca.evaluation.metrics import Figure
from goca.evaluation.power import (
    FOUND,
    LOSS,
    Captioned,
    Power,
    asked_nouns_found,
    captioned_images,
    measure_loss,
    pool_digest,
    read_judgement,
    read_loss,
    read_power,
)
from goca.evaluation.report import Report
from goca.evaluation.runner import Finished, ImagesDone, Stage
from goca.evaluation.runner import run as run_evaluation
from goca.evaluation.scaling_study import ScalingStudy, compared
from goca.parallel import THIS_PROCESS
from goca.plan import Options, versions
from goca.segmenter import Segmenter
from goca.storage.atomic import write_atomic
from goca.tagging.base import Tagger

RECIPES = ("vanilla", "goca", "goca-balanced", "goca-open")
PROMPTS = "prompts.jsonl"
"""File of the prompts from which every model generates."""
JUDGEMENT = "judgement.json"
"""File of a judge's findings, in a model's folder."""


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """What to compare.

    Attributes:
        models: {label: a name, folder or Hub id, as for `Segmenter.from_pretrained`; or the model's folder inside
            another study, perhaps from another machine}.
        evaluation: How each is evaluated; its model, recipe and seed are replaced.
        recipes: Names of recipes.
        seeds: Number of noise seeds 0, 1, ..., each a run of its own.
        power_images: Most images on which generative power is measured.
        power: File with a further measure of it, see `read_power`.
        steps, scale: Options for the images that a judge sees, see `GenerationConfig`.
    """

    models: Mapping[str, str]
    evaluation: EvaluationConfig
    recipes: tuple[str, ...] = RECIPES
    seeds: int = 3
    power_images: int = 200
    power: Path | None = None
    steps: int | None = None
    scale: float | None = None


def run(
    config: ScalingConfig, out: Path, command: Sequence[str] = (), judge: Tagger | None = None
) -> Generator[Stage | int | ScalingStudy, None, None]:
    """Measure every model, resuming what `out` has, and write scaling.json there.

    Each model is loaded once. Finished work is kept in a folder for each model, with a folder for each recipe and seed.

    Args:
        config: What to compare.
        out: The study's folder.
        command: The user's command, for the record.
        judge: Says which classes generated images show; None to generate none.

    Yields:
        Stages, the number of images that are newly done, and finally the study.

    Raises:
        GocaError: A part of this cannot be done, or the folder is another study's.
    """
    labels = tuple(config.models)
    check_labels(labels)
    for model in config.models.values():
        refuse_study(model)
    given = () if config.power is None else (read_power(config.power, labels),)
    dataset = config.evaluation.open_dataset()
    config.evaluation.protocol_for(dataset, config.evaluation.tagger)
    pool = captioned_images(dataset, config.power_images)
    if judge is not None:
        write_atomic({out / PROMPTS: "".join(json.dumps({"text": each.caption}) + "\n" for each in pool).encode()})
    everything: dict[str, _Figures] = {}
    for label, model in config.models.items():
        if is_measured(model):
            everything[label] = _read(Path(model), config, dataset, pool, judge)
        else:
            # No reference here keeps a model while the next one is loaded.
            everything[label] = yield from _named(
                label, _measure(config, model, out / label, command, pool, dataset, judge)
            )
    losses = {label: figures.loss for label, figures in everything.items()}
    found = {label: figures.found for label, figures in everything.items() if figures.found is not None}
    reports = {
        (label, recipe, seed): report
        for label, figures in everything.items()
        for (recipe, seed), report in figures.reports.items()
    }
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


@dataclass(frozen=True)
class _Figures:
    """A study's figures of a model. found: None without a judge. reports: {(recipe, seed): report}."""

    loss: Figure
    found: Figure | None
    reports: Mapping[tuple[str, int], Report]


def _measure(
    config: ScalingConfig,
    model: str,
    folder: Path,
    command: Sequence[str],
    pool: Sequence[Captioned],
    dataset: Dataset,
    judge: Tagger | None,
) -> Generator[Stage | int, None, _Figures]:
    """Load a model and measure it, resuming what its folder has."""
    yield Stage("loading")
    measuring = _Measuring(config, model, folder, command)
    loss = yield from measure_loss(measuring.segmenter, pool, folder / DENOISING, command)
    found = None
    if judge is not None:
        yield from measuring.paint(folder.parent / PROMPTS)
        paintings = [
            Captioned(each.id, measuring.paintings / f"{index:06d}.png", each.caption)
            for index, each in enumerate(pool)
        ]
        yield Stage("judging")
        judgement = replace(asked_nouns_found(paintings, dataset, judge), steps=config.steps, scale=config.scale)
        write_atomic({folder / JUDGEMENT: f"{json.dumps(asdict(judgement))}\n".encode()})
        found = judgement.share
    reports = {}
    for recipe, seed in product(config.recipes, range(config.seeds)):
        reports[recipe, seed] = yield from _named(recipe, measuring.evaluate(recipe, seed))
    return _Figures(loss, found, reports)


def _read(
    folder: Path, config: ScalingConfig, dataset: Dataset, pool: Sequence[Captioned], judge: Tagger | None
) -> _Figures:
    """Read the figures of a model that another study measured on the same images in the same way."""
    protocol = config.evaluation.protocol_for(dataset, config.evaluation.tagger)
    # As in a run's folder: JSON has no tuples.
    wanted = json.loads(json.dumps({"dataset": facts_of(dataset), "protocol": protocol.to_json()}))
    reports = {}
    for recipe, seed in product(config.recipes, range(config.seeds)):
        run_folder = folder / run_name(recipe, seed)
        if not run_folder.is_dir():
            raise GocaError(
                f"{folder} was not measured with {recipe} and seed {seed}: use what it has, or name the model itself"
            )
        finished = load_run(run_folder)
        different = list(differences(wanted, {part: finished.settings[part] for part in wanted}))
        if different:
            raise GocaError(
                f"{run_folder} was measured differently, {'; '.join(different[:3])}: use the same, or name the model"
            )
        reports[recipe, seed] = finished.report
    found = None
    if judge is not None:
        judgement = read_judgement(folder / JUDGEMENT)
        painted = (judge.name, pool_digest(pool), config.steps, config.scale)
        if (judgement.judge, judgement.images, judgement.steps, judgement.scale) != painted:
            raise GocaError(
                f"{folder / JUDGEMENT} has another judge, other images or other options ({judgement.judge}, "
                f"{len(judgement.asked)} images, steps {judgement.steps}, scale {judgement.scale}): use the "
                "same, or name the model",
                "judge",
            )
        found = judgement.share
    return _Figures(read_loss(folder / DENOISING, pool), found, reports)


class _Measuring:
    """Measures a loaded model."""

    def __init__(self, config: ScalingConfig, model: str, folder: Path, command: Sequence[str]) -> None:
        self._config, self._folder, self._command = config, folder, command
        self._evaluation = replace(config.evaluation, model=model, recipe=config.recipes[0])
        self.segmenter = self._evaluation.load_segmenter()
        self.segmenter.backbone.pipeline.set_progress_bar_config(disable=True)

    @property
    def paintings(self) -> Path:
        """The folder of generated images."""
        return self._folder / "paintings" / IMAGES

    def paint(self, prompts: Path) -> Generator[Stage | int, None, None]:
        """Generate an image for each prompt."""
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
        out = self._folder / run_name(recipe, seed)
        for event in run_evaluation(config, out, THIS_PROCESS, self._command, segmenter):
            if isinstance(event, ImagesDone):
                yield len(event.images)
            elif isinstance(event, Stage):
                yield event
            elif isinstance(event, Finished):
                report = event.report
        return report


def run_name(recipe: str, seed: int) -> str:
    """The name of the folder of a run."""
    return f"{recipe}-seed{seed}"


def _named(label: str, events: "Generator[Stage | int, None, Any]") -> "Generator[Stage | int, None, Any]":
    """The same events, with the model's label in the names of stages."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value
        yield replace(event, name=f"{label}: {event.name}") if isinstance(event, Stage) else event


def _power(name: str, higher: bool, figures: Mapping[str, Figure]) -> Power:
    values = {label: value for label, (value, _) in figures.items()}
    return Power(name, higher, values, {label: bounds for label, (_, bounds) in figures.items()})
