"""What `goca segment` prints of its results: of each image, and a summary of several."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from goca.cli.console import described, say, show, show_json, table
from goca.errors import GocaError

if TYPE_CHECKING:
    from goca.batches import Facts
    from goca.folders import FolderProgress, ImageJob, ImageOutcome

MOST_ROWS = 20
"""Most classes of a table that lists them all; of more, only those with pixels are listed."""
MOST_LINES = 10
"""Most lines of notes, and of images that were left out."""
MOST_NAMES = 3
"""Most images that such a line names."""


def print_json(outcome: "ImageOutcome", datasets: Iterable[Path]) -> None:
    """Print an image as a line of JSON, with its files and those of the data sets that it has to itself."""
    from goca.folders import stored_path

    if isinstance(outcome.result, GocaError):
        show_json(outcome.to_json())
        return
    files = [stored_path(path) for path in (*outcome.job.targets, *datasets)]
    show_json({"image": stored_path(outcome.job.image), **outcome.result, "files": files})


def print_table(job: "ImageJob", facts: "Facts") -> None:
    """Print a single image: its classes, notes and files."""
    rows = table("class", "share of pixels", "evidence", figures=2)
    entries = facts["classes"]
    if len(entries) > MOST_ROWS:
        entries = sorted((entry for entry in entries if entry["share"]), key=lambda entry: -entry["share"])
    for entry in entries:
        rows.add_row(entry["name"], f"{entry['share']:.1%}", f"{entry['evidence']:.2f}")
    if background := _background(facts):
        rows.add_row("(background)", f"{background:.1%}", "")
    show(str(job.image), rows, *_without_pixels(len(facts["classes"]) - len(entries)))
    show(*(f"note: {note}" for note in facts["plan"]["notes"]), *map(str, job.targets))


def _without_pixels(count: int) -> Iterable[str]:
    if count:
        yield f"{count} more {'class has' if count == 1 else 'classes have'} no pixels"


def _background(facts: "Facts") -> float:
    """The share of pixels without a label; exactly 0 if every pixel has one."""
    pixels = facts["height"] * facts["width"]
    return round((1 - sum(entry["share"] for entry in facts["classes"])) * pixels) / pixels


@dataclass
class Summary:
    """The results of a run over several images, gathered image by image.

    Attributes:
        images: Number of images with results.
        with_pixels, shares: For each class, the number of images in which it has pixels, and the sum of its shares.
        notes: Number of images for each note.
        by_evidence: Whether evidence alone decides which classes get pixels.
        left_out: {reason: the images}.
    """

    images: int = 0
    with_pixels: Counter[str] = field(default_factory=Counter)
    shares: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    notes: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    by_evidence: bool = False

    def add(self, outcome: "ImageOutcome") -> None:
        """Count an image."""
        from goca.text.nouns import without_names

        facts = outcome.result
        if isinstance(facts, GocaError):
            image, reason = outcome.job.image, described(facts)
            if reason.startswith(f"{image} "):
                # Without the image's name, many images share a reason.
                reason = "each" + reason.removeprefix(str(image))
            self.left_out.setdefault(reason, []).append(image)
            return
        self.images += 1
        shares = {entry["name"]: entry["share"] for entry in facts["classes"]} | {"(background)": _background(facts)}
        for name, share in shares.items():
            self.with_pixels[name] += share > 0
            self.shares[name] += share
        self.notes.update(without_names(note) for note in facts["plan"]["notes"])
        request = facts["request"]
        self.by_evidence = facts["plan"]["floor"] > 0 and not request["tagger"] and request["background"] == "auto"

    def show(self) -> None:
        """Print the classes, the largest first, and the notes."""
        names = sorted(self.shares, key=self.shares.__getitem__, reverse=True)
        if not self.with_pixels["(background)"]:
            names = [name for name in names if name != "(background)"]
        listed = [name for name in names if self.with_pixels[name] or len(names) <= MOST_ROWS]
        rows = table("class", "images", "mean share", figures=2)
        for name in listed:
            rows.add_row(name, str(self.with_pixels[name]), f"{self.shares[name] / self.images:.1%}")
        if self.images:
            show(rows, *_without_pixels(len(names) - len(listed)))
        notes = self.notes.most_common()
        show(*(f"note: {note} ({count} of {self.images} images)" for note, count in notes[:MOST_LINES]))
        if len(notes) > MOST_LINES:
            show(f"and {len(notes) - MOST_LINES} more notes: each is in the JSON file of its image")

    def say_not_found(self) -> None:
        """Say how to keep classes nonetheless, if too little evidence left none in any image."""
        any_class = any(count for name, count in self.with_pixels.items() if name != "(background)")
        if self.images and self.by_evidence and not any_class:
            what = "the image" if self.images == 1 else f"any of the {self.images} images"
            message = (
                f"no class was found in {what}, so all pixels are background: lower the floor; 0 keeps every class"
            )
            say(described(GocaError(message, "floor")))

    def say_left_out(self, indexed: Path | None) -> None:
        """Say which images were left out and why, in a few lines."""
        from goca.folders import INDEX

        groups = list(self.left_out.items())
        for reason, images in groups[:MOST_LINES]:
            names = ", ".join(map(str, images[:MOST_NAMES]))
            more = f" and {len(images) - MOST_NAMES} more" if len(images) > MOST_NAMES else ""
            if len(images) == 1 and reason.startswith("each "):
                say(f"left out: {names}{reason.removeprefix('each')}")
            elif names in reason:
                say(f"left out: {reason}")
            else:
                say(f"left out: {names}{more}: {reason}")
        if rest := sum(len(images) for _, images in groups[MOST_LINES:]):
            say(f"and {rest} more: see {indexed / INDEX if indexed is not None else INDEX}")


def print_end(done: "FolderProgress", out: Path, indexed: Path | None, resume: bool, as_json: bool) -> None:
    """Print what the run did on stdout; with JSON, only what needs attention, on stderr."""
    from goca.folders import INDEX

    text = f"{done.done} {'image' if done.done == 1 else 'images'} segmented"
    if resume:
        text += f", {done.kept} of them by an earlier run"
    if done.left_out:
        text += f", {done.left_out} left out"
    text += f"; results in {out}" + (f", listed in {indexed / INDEX}" if indexed is not None else "")
    if as_json and (resume or done.left_out):
        say(text)
    elif not as_json and (resume or done.total > 1):
        show(text)
