"""The page of an evaluation: scores, protocol, classes, and the images with the lowest IoU."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from goca.errors import GocaError
from goca.evaluation.datasets import open_dataset
from goca.evaluation.datasets.base import VOID, Dataset, Sample
from goca.evaluation.metrics import band, percentage
from goca.evaluation.protocol import Protocol
from goca.evaluation.records import Counts, ImageRecord
from goca.evaluation.remap import narrowed
from goca.evaluation.run_folder import CONFUSION, FACTS, IMAGES, image_lines
from goca.imaging import draw
from goca.imaging.images import load
from goca.imaging.sheet import fit
from goca.report.page import (
    SIDE,
    Thumbnails,
    bar,
    behind,
    card,
    details,
    page,
    plan_rows,
    swatch,
    table,
    text,
    tiles,
)

MOST_LABELS, MOST_PAIRS = 12, 3
"""Most labels that a card lists."""
SIZE_COLUMNS = ["share", "regions", "mIoU, % [95 %]", "recall"]
MOST_OPEN = 16
"""Most classes with which their table is unfolded."""


@dataclass(frozen=True)
class Run:
    """A finished run, without its images."""

    folder: Path
    protocol: Protocol
    names: tuple[str, ...]
    metrics: Mapping[str, Any]
    plan: Mapping[str, Any]

    def records(self) -> Iterator[ImageRecord]:
        """The last record of each image, one at a time in memory."""
        lines = image_lines(self.folder)
        last = {record.id: number for number, record in enumerate(lines.stream())}
        yield from (record for number, record in enumerate(lines.stream()) if last[record.id] == number)

    def counts(self, record: ImageRecord) -> Counts:
        """The counts under the labelling of the scores."""
        counts = (record.counts or {}).get(self.metrics["threshold"])
        if counts is None or any(max(true, predicted) >= len(self.names) for true, predicted, _ in counts):
            raise GocaError(f"{self.folder / IMAGES} has lines of another run: restore it, or start a new run")
        return counts

    def ious(self, record: ImageRecord) -> dict[int, float]:
        """{label: IoU} of true and predicted labels, with background only if the protocol counts it."""
        hit, union = Counter[int](), Counter[int]()
        for true, predicted, pixels in self.counts(record):
            for label in {true, predicted}:
                union[label] += pixels
            hit[true] += pixels * (true == predicted)
        return {label: hit[label] / union[label] for label in union if label or self.protocol.counting.background}

    def iou(self, record: ImageRecord) -> float | None:
        """The mean of `ious`; None if there are none."""
        ious = self.ious(record)
        return sum(ious.values()) / len(ious) if ious else None


def evaluation_page(folder: Path, facts: Mapping[str, Any], limit: int) -> tuple[bytes, int, int]:
    """(the page, number of images, number shown). facts: the content of run.json.

    Raises:
        GocaError: The run is not finished, is of generated images, or is damaged.
    """
    settings = facts["settings"]
    if "prompts" in settings:
        raise GocaError(f"{folder} has generated images without scores of each: look at the images instead")
    if facts.get("state") != "finished":
        raise GocaError(f"{folder} is not finished: run the same goca evaluate again to resume it")
    try:
        names = ("background", *map(str, settings["dataset"]["categories"]))
        metrics = {**facts["metrics"], "threshold": str(facts["metrics"]["threshold"])}
        run = Run(folder, Protocol.from_json(settings["protocol"]), names, metrics, dict(settings["plan"]))
        head = _head(run, settings["model"]["name"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GocaError(
            f"{folder / FACTS} lacks part of a run ({type(error).__name__}: {error}): name a folder that "
            "goca evaluate has written"
        ) from None
    worst = nsmallest(limit, run.records(), key=lambda record: _rank(run, record))
    images = int(metrics["images"]) + int(metrics["left_out"])
    thumbnails = Thumbnails()
    samples, missing = _samples(run, facts, {record.id for record in worst})
    cards = [_image_card(run, record, samples, missing, thumbnails) for record in worst]
    confusion = thumbnails(lambda: load(folder / CONFUSION), "Rows: ground truth; columns: predicted", 1200)
    parts = [
        *head,
        f"<h2>Images</h2><p>{len(worst)} of {images}: those left out, then those with the lowest IoU, here "
        "the mean over the image's true and predicted labels.</p>",
        '<p class="faint">An evaluation keeps pixel counts, not masks: to see an image\'s masks, run goca segment with '
        "the classes that were asked for.</p>",
        *([f'<p class="bad">{text(missing)}</p>'] if missing else []),
        f'<div class="cards">{"".join(cards)}</div>',
        f'<h2>Where the pixels of each class went</h2><div class="wide">{confusion}</div>',
    ]
    return page(f"Evaluation: {folder.resolve().name}", parts), images, len(worst)


def _head(run: Run, model: str) -> list[str]:
    metrics, protocol = run.metrics, run.protocol
    low, high = metrics["ci95"]
    figures = {
        "mIoU [95 %]": f"{metrics['miou']:.1%} [{low:.1%}, {high:.1%}]",
        "Pixel accuracy": f"{metrics['pixel_accuracy']:.1%}",
        "Frequency-weighted IoU": f"{metrics['frequency_weighted_iou']:.1%}",
        "Images": metrics["images"],
        "Left out": metrics["left_out"],
        "Data set": f"{protocol.dataset} {protocol.split}",
        "Recipe": run.plan["recipe"],
        "Model": Path(model).name,
        "Classes named by": protocol.tags,
        "Threshold": metrics["threshold"],
    }
    scores = sorted(metrics["per_class"].items(), key=lambda item: item[1])
    rows = [[text(name), bar(float(value))] for name, value in scores]
    # Runs from before figures by region size lack them.
    sizes = [
        [band(each["shares"]), text(each["regions"]), percentage(each["miou"], each["ci95"]), bar(each["recall"])]
        for each in metrics.get("by_size", ())
    ]
    return [
        tiles(figures),
        details(f"Protocol: {protocol.name}", protocol.lines()),
        plan_rows(run.plan),
        *([behind("Regions by their share of the image", table(SIZE_COLUMNS, sizes, "narrow"), True)] if sizes else []),
        behind("Classes, lowest IoU first", table(["class", "IoU"], rows, "narrow"), len(rows) <= MOST_OPEN),
    ]


def _rank(run: Run, record: ImageRecord) -> tuple[int, float]:
    if record.counts is None:
        return 0, 0.0
    iou = run.iou(record)
    return (2, 0.0) if iou is None else (1, iou)


def _samples(run: Run, facts: Mapping[str, Any], wanted: set[str]) -> tuple[Mapping[str, tuple[Sample, Dataset]], str]:
    """({id: (image, its data set)}, why there are none)."""
    protocol = run.protocol
    if "root" not in facts and protocol.dataset != "scenes":
        return {}, "The run does not record where its images are: run the same goca evaluate again to add that."
    root = facts.get("root")
    try:
        dataset = open_dataset(protocol.dataset, None if root is None else Path(str(root)), protocol.split)
        dataset = narrowed(dataset, protocol.as_background)
    except GocaError as error:
        return {}, f"The images have been moved: {error}"
    if dataset.class_names != run.names[1:]:
        return {}, "The data set's classes have changed: its images are not shown."
    return {sample.id: (sample, dataset) for sample in dataset.samples if sample.id in wanted}, ""


def _image_card(
    run: Run,
    record: ImageRecord,
    samples: Mapping[str, tuple[Sample, Dataset]],
    missing: str,
    thumbnails: Thumbnails,
) -> str:
    colours, images = None, []
    if record.id in samples:
        sample, dataset = samples[record.id]
        colours = dataset.palette
        image = cache(lambda: load(sample.image))
        images = [
            thumbnails(image, "Image"),
            thumbnails(lambda: _truth(image(), sample, dataset, run.protocol), "Ground truth"),
        ]
    elif not missing:
        images = ['<div class="none">The data set no longer has this image.</div>']
    request = f'<p class="faint">asked for: {text(", ".join(record.classes) or "nothing")}</p>'
    notes = "".join(f'<p class="faint">{text(note)}</p>' for note in record.notes)
    if record.counts is None:
        return card(record.id, "left out", images, [f'<p class="bad">{text(record.left_out)}</p>', request])
    counts, ious, iou = run.counts(record), run.ious(record), run.iou(record)
    total = max(1, sum(pixels for _, _, pixels in counts))
    true, predicted, wrong = Counter[int](), Counter[int](), Counter[tuple[int, int]]()
    for truth, label, pixels in counts:
        true[truth] += pixels
        predicted[label] += pixels
        if truth != label:
            wrong[truth, label] += pixels
    rows = [
        [
            (swatch(colours[label].tolist()) if colours is not None else "") + text(run.names[label]),
            *(f"{pixels[label] / total:.1%}" for pixels in (true, predicted)),
            bar(ious[label]) if label in ious else "",
        ]
        for label in sorted(true | predicted, key=lambda label: (ious.get(label, 2.0), -true[label]))
    ]
    more = f'<p class="faint">and {len(rows) - MOST_LABELS} more labels</p>' if len(rows) > MOST_LABELS else ""
    mistakes = "".join(
        f"<li>{pixels / total:.1%} of the pixels are {text(run.names[truth])}, predicted {text(run.names[label])}"
        for (truth, label), pixels in wrong.most_common(MOST_PAIRS)
    )
    body = [table(["label", "true", "found", "IoU"], rows[:MOST_LABELS]), more, f"<ul>{mistakes}</ul>", request, notes]
    return card(record.id, "no label" if iou is None else f"IoU {iou:.1%}", images, body)


def _truth(image: Image.Image, sample: Sample, dataset: Dataset, protocol: Protocol) -> Image.Image:
    """A thumbnail of the ground truth over the image; void and background as photographed."""
    labels = protocol.truth(sample.truth())
    if labels.shape != (image.height, image.width):
        raise GocaError(f"{sample.image} and its ground truth differ in size")
    small = fit(image, SIDE)
    rows, columns = (
        np.arange(few) * many // few for few, many in zip((small.height, small.width), labels.shape, strict=True)
    )
    labels = labels[np.ix_(rows, columns)]
    return draw.painted(small, np.where(labels == VOID, 0, labels), len(dataset.categories), dataset.palette)
