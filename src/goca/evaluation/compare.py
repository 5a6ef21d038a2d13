"""Runs side by side: scores, and paired differences to the first."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goca.errors import GocaError
from goca.evaluation.fingerprint import differences
from goca.evaluation.metrics import Interval, gain, percentage
from goca.evaluation.protocol import Protocol
from goca.evaluation.report import Report
from goca.evaluation.run_folder import FACTS, IMAGES, image_lines, read_facts
from goca.imaging import html


@dataclass(frozen=True)
class FinishedRun:
    """A finished run. name: its recipe and model. settings: everything that decides its figures."""

    folder: Path
    name: str
    settings: dict[str, Any] = field(repr=False)
    report: Report

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


@dataclass(frozen=True)
class ComparedRun(html.Row):
    """A run's scores, 0 to 1, and its paired gain in mIoU over the first run, with 95 % intervals."""

    run: str
    name: str
    miou: float
    ci95: Interval
    pixel_accuracy: float
    threshold: str
    gain: float
    gain_ci95: Interval

    def columns(self) -> dict[str, str]:
        """The columns, in per cent except for the names."""
        return {
            "run": self.run,
            "recipe, model": self.name,
            "mIoU [95 %]": percentage(self.miou, self.ci95),
            "pixel accuracy": f"{100 * self.pixel_accuracy:.1f}",
            "threshold": self.threshold,
            "gain over the first [95 %]": percentage(self.gain, self.gain_ci95, "+"),
        }


def load_run(folder: Path) -> FinishedRun:
    """Read a run. Raises GocaError if the folder is not a run's, or the run is unfinished or lacks images."""
    facts = read_facts(folder)
    if facts is None:
        raise GocaError(f"{folder} is not the folder of a run: name one that goca evaluate has written")
    if "prompts" in facts["settings"]:
        raise GocaError(f"{folder} has generated images, not masks: compare such folders with goca evaluate-generation")
    if facts.get("state") != "finished":
        raise GocaError(f"{folder} is not finished: run the same goca evaluate again to resume it")
    settings = facts["settings"]
    images = {image.id: image for image in image_lines(folder).read()}
    try:
        dataset, plan = settings["dataset"], settings["plan"]
        protocol = Protocol.from_json(settings["protocol"])
        report = Report(tuple(dataset["categories"]), protocol, tuple(images.values()))
        name = f"{plan['recipe']}, {Path(plan['model']).name}"
        count, _ = int(dataset["images"]), dataset["listing"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GocaError(
            f"{folder / FACTS} lacks part of a run's settings ({type(error).__name__}: {error}): name a folder that "
            "goca evaluate has written"
        ) from None
    if len(images) < count:
        raise GocaError(
            f"{folder} has only {len(images)} of its {count} images: run the same goca evaluate again to complete it"
        )
    if len(images) > count or not report.is_plausible():
        raise GocaError(f"{folder / IMAGES} has lines of another run: restore it, or start a new run")
    return FinishedRun(folder, name, settings, report)


def compare(runs: Sequence[FinishedRun]) -> html.Rows[ComparedRun]:
    """The scores of each run, compared with the first.

    Raises:
        GocaError: The runs have different protocols or images; the message names the differences.
    """
    first, *others = runs
    for run in others:
        _refuse_different(first, run)
    ids = sorted(image.id for image in first.report.counted)
    names, protocol = first.report.names, first.report.protocol
    rows = []
    for run in runs:
        images = {image.id: image for image in run.report.images}
        report = Report(names, protocol, tuple(images[name] for name in ids))
        tally = report.tally()
        if run is first:
            first_tally = tally
        score = report.score()
        change, interval = gain(tally, first_tally, protocol.counting)
        scores = (score.miou, score.ci95, score.pixel_accuracy)
        rows.append(ComparedRun(str(run.folder), run.name, *scores, report.labelling, change, interval))
    return html.Rows(rows)


def _refuse_different(first: FinishedRun, run: FinishedRun) -> None:
    refusal = f"{run.folder} and {first.folder} cannot be compared,"
    for part in ("dataset", "protocol"):
        different = list(differences(run.settings[part], first.settings[part], part))
        if different:
            raise GocaError(
                f"{refusal} they differ in {'; '.join(different[:3])}: compare runs of one protocol on the same images"
            )
    # The listings are equal, but they have the data set's order, while lines have the order of completion.
    unmatched = {image.id for image in first.report.images} ^ {image.id for image in run.report.images}
    if unmatched:
        raise GocaError(
            f"{refusal} only one of them has {min(unmatched)}, so the {IMAGES} of one is from another run: restore "
            "it, or start a new run"
        )
    unmatched = {image.id for image in first.report.left_out} ^ {image.id for image in run.report.left_out}
    if unmatched:
        raise GocaError(
            f"{refusal} only one of them left out {min(unmatched)}: fix the cause, and run the same goca evaluate again"
        )
