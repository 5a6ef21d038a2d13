"""The page of a segmented folder: failures, classes, and the images with the least evidence."""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from PIL import Image

from goca.errors import GocaError
from goca.exports import EXPORTERS
from goca.exports.labels_png import read_labels
from goca.folders import index_lines
from goca.imaging import draw
from goca.imaging.images import load
from goca.imaging.palette import MAX_COLOURS, palette
from goca.report.page import Thumbnails, bar, card, details, page, plain, plan_rows, swatch, table, text, tiles
from goca.storage.reading import read_json
from goca.text.nouns import without_names

MOST_CLASSES, MOST_ROWS = 12, 200
"""Most classes of a card, and of the table of all images."""


class ClassFigures(NamedTuple):
    """A class in an image: its label, its share of the pixels, and its evidence."""

    label: int
    name: str
    share: float
    evidence: float


@dataclass(frozen=True)
class Entry:
    """A line of the index, with the facts of the image's JSON.

    Attributes:
        error: Why the image was left out.
        damage: What is wrong with its results.
        overlay, labels: Files that show its regions, if the run wrote them.
        classes: None without a readable JSON file.
    """

    image: str
    error: str = ""
    damage: str = ""
    overlay: Path | None = None
    labels: Path | None = None
    size: tuple[int, int] = (0, 0)
    classes: tuple[ClassFigures, ...] | None = None
    notes: tuple[str, ...] = ()

    def rank(self) -> tuple[float, ...]:
        """The rank, worst first: failed; without pixels of any class; by the least evidence of a class with pixels."""
        if self.error or self.damage:
            return (0,)
        if self.classes is None:
            return (3,)
        shown = [figures for figures in self.classes if figures.share]
        if not shown:
            return (1,)
        return (2, min(figures.evidence for figures in shown), min(figures.share for figures in shown))


@dataclass
class Totals:
    """Totals over all images; figures of classes are sums."""

    images: int = 0
    left_out: int = 0
    damaged: int = 0
    described: int = 0
    with_pixels: Counter[str] = field(default_factory=Counter)
    shares: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    evidence: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    notes: Counter[str] = field(default_factory=Counter)
    plan: Mapping[str, Any] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Count an image."""
        self.images += 1
        self.left_out += bool(entry.error)
        self.damaged += bool(entry.damage)
        self.described += entry.classes is not None
        self.notes.update(map(without_names, entry.notes))
        for figures in entry.classes or ():
            self.with_pixels[figures.name] += figures.share > 0
            self.shares[figures.name] += figures.share
            self.evidence[figures.name] += figures.evidence


def folder_page(folder: Path, limit: int) -> tuple[bytes, int, int]:
    """(the page, number of images, number shown). Raises GocaError if the index is damaged or empty."""
    totals = Totals()
    worst = nsmallest(limit, _entries(folder, totals), key=Entry.rank)
    if not totals.images:
        raise GocaError(f"{folder} has no images yet: wait for its goca segment, or run it again")
    thumbnails = Thumbnails()
    cards = "".join(_image_card(entry, thumbnails) for entry in worst)
    parts = [
        *_head(totals),
        f"<h2>Images</h2><p>{len(worst)} of {totals.images}: those left out or with damaged or "
        "missing results, then those without pixels of any class, then by least evidence of a class with pixels.</p>",
        f'<div class="cards">{cards}</div>',
    ]
    return page(f"Segmented: {folder.resolve().name}", parts), totals.images, len(worst)


def _head(totals: Totals) -> list[str]:
    plan = totals.plan
    facts: dict[str, object] = {
        "Images": totals.images,
        "Segmented": totals.images - totals.left_out - totals.damaged,
        "Left out": totals.left_out,
        "Damaged or missing": totals.damaged,
    }
    if plan:
        chosen = {"Recipe": plan.get("recipe"), "Model": Path(str(plan.get("model"))).name, "Size": plan.get("size")}
        facts |= {**chosen, "Timestep": plain(plan.get("timestep"))}
    names = sorted(totals.shares, key=lambda name: totals.evidence[name])
    rows = [
        [
            text(name),
            str(totals.with_pixels[name]),
            *(bar(sums[name] / totals.described) for sums in (totals.shares, totals.evidence)),
        ]
        for name in names[:MOST_ROWS]
    ]
    more = f'<p class="faint">and {len(names) - MOST_ROWS} more classes</p>' if len(names) > MOST_ROWS else ""
    notes = [f"{note} ({count} image{'s' * (count != 1)})" for note, count in totals.notes.most_common(MOST_CLASSES)]
    header = ["class", "images", "mean share", "mean evidence"]
    return [
        tiles(facts),
        *([details("Notes", notes)] if notes else []),
        *([plan_rows(plan)] if plan else []),
        *([f"<h2>Classes, least evidence first</h2>{table(header, rows, 'narrow')}{more}"] if rows else []),
    ]


def _entries(folder: Path, totals: Totals) -> Iterator[Entry]:
    """The lines of the index, counted as they pass."""
    run = _Moved(folder)
    for line in index_lines(folder).stream():
        entry, plan = _entry(run, line)
        totals.add(entry)
        totals.plan = totals.plan or plan
        yield entry


def _entry(run: "_Moved", line: Mapping[str, Any]) -> tuple[Entry, Mapping[str, Any]]:
    """An image, and the plan in its JSON."""
    image = str(line["image"])
    if "error" in line:
        return Entry(image, str(line["error"]) or "no reason was recorded"), {}
    files = {path.name: run.file(path) for path in _outputs(line)}
    overlay, labels = (
        next((file for name, file in files.items() if name.endswith(EXPORTERS[kind].suffix)), None)
        for kind in ("overlay", "labels")
    )
    if not any(files.values()):
        return Entry(image, damage="all of its results are missing"), {}
    document = next((name for name in files if _is_document(name, _path(image).name)), None)
    if document is None:
        return Entry(image, overlay=overlay, labels=labels), {}
    file = files[document]
    if file is None:
        return Entry(image, damage=f"{document} is missing", overlay=overlay, labels=labels), {}
    try:
        facts = read_json(file)
        classes = tuple(
            ClassFigures(int(each["id"]), str(each["name"]), float(each["share"]), float(each["evidence"]))
            for each in facts["classes"]
        )
        size, plan = (int(facts["width"]), int(facts["height"])), dict(facts["plan"])
        notes = tuple(map(str, plan.pop("notes")))
    except (GocaError, KeyError, TypeError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else f"it has values of another kind ({error})"
        damage = str(error) if isinstance(error, GocaError) else f"{document} is damaged: {reason}"
        return Entry(image, damage=damage, overlay=overlay, labels=labels), {}
    return Entry(image, overlay=overlay, labels=labels, size=size, classes=classes, notes=notes), plan


def _is_document(name: str, image: str) -> bool:
    """Whether a result of this name is the image's own JSON; cat.labelme.json is that of cat.labelme.png only."""
    suffix = EXPORTERS["json"].suffix
    others = tuple(other.suffix for other in EXPORTERS.values() if other.suffix != suffix)
    return name.endswith(suffix) and (not name.endswith(others) or image.startswith(name.removesuffix(suffix)))


class _Moved:
    """A run's folder, which may have been moved since its index was written.

    The recorded name of the folder is not stored: it is taken as the beginning of the results' paths without which most
    of them are files here. Paths that are not text are stored in full, and have a beginning of their own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        votes = Counter[tuple[str, ...]]()
        for line in index_lines(folder).stream():
            for path in _outputs(line):
                parts = path.parts
                starts = range(int(path.is_absolute()), len(parts))
                votes.update(parts[:start] for start in starts if self._lies(parts[start:]))
        # Of equally good ones the shortest: files that match by name only are in fewer folders than were stored.
        ranked = sorted(votes, key=lambda beginning: (-votes[beginning], len(beginning)))
        self.beginnings = {
            absolute: next((parts for parts in ranked if Path(*parts).is_absolute() == absolute), ())
            for absolute in (False, True)
        }

    def file(self, path: Path) -> Path | None:
        """The path of a result; None if it does not exist."""
        beginning = self.beginnings[path.is_absolute()]
        rest = path.parts[len(beginning) :]
        return self._lies(rest) if path.parts[: len(beginning)] == beginning else None

    def _lies(self, parts: Sequence[str]) -> Path | None:
        file = self.folder.joinpath(*parts)
        try:
            return file if file.is_file() and file.resolve().is_relative_to(self.folder.resolve()) else None
        except (OSError, ValueError):  # not a valid file name
            return None


def _outputs(line: Mapping[str, Any]) -> list[Path]:
    """The files of an image's results, as they were named."""
    outputs = line.get("outputs")
    return [_path(str(output)) for output in outputs] if isinstance(outputs, list) else []


def _path(stored: str) -> Path:
    """A path as `goca.folders.stored_path` wrote it."""
    return (
        Path(os.fsdecode(unquote_to_bytes(stored.removeprefix("file://")))) if stored[:7] == "file://" else Path(stored)
    )


def _image_card(entry: Entry, thumbnails: Thumbnails) -> str:
    if entry.error:
        return card(entry.image, "left out", [], [f'<p class="bad">{text(entry.error)}</p>'])
    damage = f'<p class="bad">{text(entry.damage)}</p>' if entry.damage else ""
    thumbnail = thumbnails(lambda: _drawn(entry), "Regions" if entry.overlay or entry.labels else "Image")
    notes = "".join(f'<p class="faint">{text(note)}</p>' for note in entry.notes)
    if entry.classes is None:
        return card(entry.image, "no numbers", [thumbnail], [damage])
    colours = palette(MAX_COLOURS)
    largest = sorted(entry.classes, key=lambda figures: (-figures.share, -figures.evidence))
    rows = [
        [
            (swatch(colours[1 + (figures.label - 1) % MAX_COLOURS].tolist()) if figures.share else "")
            + text(figures.name),
            bar(figures.share),
            bar(figures.evidence),
        ]
        for figures in largest[:MOST_CLASSES]
    ]
    rest = len(largest) - len(rows)
    more = f'<p class="faint">and {rest} more classes</p>' if rest else ""
    background = 1 - sum(figures.share for figures in entry.classes)
    figure = f"{max(0.0, background):.0%} background"
    return card(entry.image, figure, [thumbnail], [table(["class", "share", "evidence"], rows), more, notes])


def _drawn(entry: Entry) -> Image.Image:
    """The overlay without its legend; without one, the image under its labels if it has some."""
    if entry.overlay is None:
        original = load(_path(entry.image))
        if entry.labels is None:
            return original
        labels = read_labels(entry.labels)
        count = int(labels.max()) if entry.classes is None else len(entry.classes)
        # Labels that were edited since may be of anything.
        if labels.shape != (original.height, original.width) or labels.max() > count:
            return original
        return draw.painted(original, labels, count)
    image, longest = load(entry.overlay), max(entry.size)
    if not longest:
        return image
    factor = max(1, math.ceil(draw.SHORTEST_LONG_SIDE / longest))
    width, height = (min(factor * side, whole) for side, whole in zip(entry.size, image.size, strict=True))
    return image.crop((0, 0, width, height))
