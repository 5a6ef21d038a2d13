"""Runs side by side: figures, and paired differences to the first."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from goca.errors import GocaError
from goca.evaluation.caption_nouns import Policy
from goca.evaluation.datasets.base import Category
from goca.evaluation.fingerprint import differences
from goca.evaluation.metrics import Interval, gain
from goca.evaluation.protocol import Protocol
from goca.evaluation.report import Report, in_order
from goca.evaluation.run_folder import FACTS, IMAGES, read_facts, read_images


@dataclass(frozen=True)
class Finished:
    """A run that has its figures. name: its recipe and model. settings: all that decided them."""

    folder: Path
    name: str
    settings: dict[str, Any]
    report: Report


@dataclass(frozen=True)
class Row:
    """A run's scores, 0 to 1, and its gain of mIoU over the first run, paired, with 95 % intervals."""

    run: str
    name: str
    miou: float
    ci95: Interval
    pixel_accuracy: float
    threshold: str
    gain: float
    gain_ci95: Interval


def load_run(folder: Path) -> Finished:
    """Read a run back. Raises GocaError where it is none, is not finished, or lacks images."""
    facts = read_facts(folder)
    if facts is None:
        raise GocaError(f"{folder} is not the folder of a run: name one that goca evaluate wrote with --out")
    if facts.get("state") != "finished":
        raise GocaError(f"{folder} is not finished: run its goca evaluate again, which goes on where it stopped")
    settings = facts["settings"]
    images = {image.id: image for image in read_images(folder)}
    try:
        dataset, plan = settings["dataset"], settings["plan"]
        report = Report(tuple(dataset["categories"]), _protocol(settings["protocol"]), tuple(images.values()))
        name = f"{plan['recipe']}, {Path(plan['model']).name}"
        count, _ = int(dataset["images"]), dataset["listing"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GocaError(
            f"{folder / FACTS} does not say all that was asked ({type(error).__name__}: {error}): is it a folder that "
            "goca evaluate wrote?"
        ) from None
    if len(images) < count:
        has = f"{len(images)} of its {count} images"
        raise GocaError(f"{folder} has only {has}: ask the same goca evaluate again to complete it")
    counted = [image.counts for image in report.images if image.counts is not None]
    most = len(report.names)
    strange = any(not counts.keys() >= {*report.protocol.labellings} for counts in counted) or any(
        not (0 <= true <= most and 0 <= found <= most and pixels > 0)
        for counts in counted
        for some in counts.values()
        for true, found, pixels in some
    )
    if len(images) > count or strange:
        raise GocaError(f"{folder / IMAGES} has lines of another run: restore it, or begin a new run")
    return Finished(folder, name, settings, report)


def compare(runs: Sequence[Finished]) -> tuple[Row, ...]:
    """A row for each run. Raises GocaError, naming what differs, unless they are of one protocol and its images."""
    first, *others = runs
    for run in others:
        _refuse_others(first, run)
    ids = sorted(image.id for image in first.report.counted)
    names, protocol = first.report.names, first.report.protocol
    tallies, rows = [], []
    for run in runs:
        known = {image.id: image for image in run.report.images}
        report = Report(names, protocol, in_order(ids, known))
        tallies.append(report.tally())
        score = report.score()
        change, interval = gain(tallies[-1], tallies[0], protocol.counting)
        rows.append(
            Row(
                str(run.folder),
                run.name,
                score.miou,
                score.ci95,
                score.pixel_accuracy,
                report.labelling,
                change,
                interval,
            )
        )
    return tuple(rows)


def _refuse_others(first: Finished, run: Finished) -> None:
    for part in ("dataset", "protocol"):
        ours, theirs = (one.settings[part] for one in (run, first))
        other = list(differences(ours, theirs, part))
        if other:
            raise GocaError(
                f"{run.folder} and {first.folder} cannot be ranked, they differ in {'; '.join(other[:3])}: compare "
                "runs of one protocol on the same images"
            )
    # The listings are alike, but they are of images in the data set's order, and lines come as images were done.
    there = [{image.id for image in one.report.images} for one in (first, run)]
    if there[0] != there[1]:
        odd = min(there[0] ^ there[1])
        raise GocaError(
            f"{run.folder} and {first.folder} cannot be ranked, only one of them has {odd}, so that the {IMAGES} of "
            "one is of another run: restore it, or begin a new run"
        )
    left_out = [{image.id for image in one.report.left_out} for one in (first, run)]
    if left_out[0] != left_out[1]:
        odd = min(left_out[0] ^ left_out[1])
        raise GocaError(
            f"{run.folder} and {first.folder} cannot be ranked, only one of them left out {odd}: mend it, and run the "
            "same goca evaluate again"
        )


def _protocol(told: dict[str, Any]) -> Protocol:
    """A protocol from what `Protocol.to_json` made of it."""
    policy = dict(told["nouns"])
    policy["synonyms"] = tuple(Category(one["name"], tuple(one["synonyms"])) for one in policy["synonyms"])
    policy["suffix"] = tuple(policy["suffix"])
    lists = {"as_background": tuple(told["as_background"]), "merged": tuple((a, b) for a, b in told["merged"])}
    return Protocol(**{**told, **lists, "nouns": Policy(**policy)})


def to_json(rows: Sequence[Row], protocol: Protocol) -> dict[str, Any]:
    """{"rows": [...], "protocol": {...}}."""
    return {"rows": [asdict(row) for row in rows], "protocol": protocol.to_json()}
