"""What a check leaves behind: a document that says nothing of the machine, and a sheet of what was painted and seen."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from goca.checking.stability import features
from goca.checking.subject import Labels, Shown, Subject
from goca.checking.verdict import Verdict
from goca.imaging import draw
from goca.imaging.palette import magma, palette
from goca.imaging.sheet import Cell, contact_sheet
from goca.maths.attention import probabilities

POINTS = 2
"""Pixels of each image whose affinity is shown."""
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][^\s/\\:;,'\"()]+){2,}[/\\]?")
_KEPT = ("recipe", "settings", "size", "grid", "timestep", "feature", "reference", "refine", "order", "heads", "layers")


def document(subject: Subject, name: str, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Everything that was measured, for the authors of goca; without paths, names of users, or the folder's name."""
    backbone, plan = subject.backbone, subject.plan.to_json()
    facts = {
        "versions": dict(subject.plan.versions),
        "model": {
            "name": name if not Path(name).exists() else "a local folder",
            "pipeline": type(backbone.pipeline).__name__,
            "denoiser": type(backbone.denoiser).__name__,
            "family": backbone.family.name,
            "fingerprint": backbone.session().fingerprint,
            "device": backbone.device.partition(":")[0],
            "dtype": backbone.dtype,
        },
        "settings": {key: plan[key] for key in _KEPT},
        "verdicts": [verdict.to_json() for verdict in verdicts],
    }
    return _without_paths(facts)


def without_paths(text: str) -> str:
    """The text with PATH for every path of several parts."""
    return _PATH.sub("PATH", text)


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        # A block's path has dots, and a Hub id a single slash.
        return without_paths(value)
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    return [_without_paths(inner) for inner in value] if isinstance(value, list | tuple) else value


def sheet(subject: Subject) -> Image.Image:
    """A row for each image: itself, the masks that it was painted with, those that are seen in it, and affinities."""
    with torch.no_grad():
        return contact_sheet(
            [_row(subject, each, seen) for each, seen in zip(subject.shown, subject.seen, strict=True)]
        )


def _row(subject: Subject, shown: Shown, seen: Labels) -> list[Cell]:
    side = 224
    image = shown.image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)

    def masks(labels: Labels) -> Image.Image:
        enlarged = Image.fromarray(labels.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
        return draw.painted(image, np.asarray(enlarged).astype(np.uint16), len(shown.nouns))

    cells = [Cell(image, ", ".join(shown.nouns))]
    if shown.meant is not None:
        cells.append(Cell(masks(shown.meant), "meant: masks of the trace"))
    cells.append(Cell(masks(seen), "seen: masks of the image"))
    feature, grid = features(subject, shown.image, shown.nouns)[subject.plan.reference]
    affinity = probabilities(feature[None], feature[None], feature.shape[-1] ** -0.5)[0].cpu().numpy()
    for label, noun in enumerate(shown.nouns[:POINTS], start=1):
        row, column = _centre(seen, label, grid)
        values = affinity[row * grid[1] + column].reshape(grid).copy()
        values[row, column] = 0  # a point is most like itself
        values = values / max(values.max(), np.finfo(np.float32).tiny)
        heat = Image.fromarray(magma(values)).resize((side, side), Image.Resampling.NEAREST)
        _mark(heat, row, column, grid)
        cells.append(Cell(heat, f"like a point of {noun}", tuple(palette(2)[label].tolist())))
    return cells


def _centre(labels: Labels, label: int, grid: tuple[int, int]) -> tuple[int, int]:
    """The cell of a label that is nearest to the middle of its pixels; the middle of the image without any."""
    small = Image.fromarray(labels.astype(np.uint8)).resize((grid[1], grid[0]), Image.Resampling.NEAREST)
    places = np.argwhere(np.asarray(small) == label)
    if not len(places):
        return grid[0] // 2, grid[1] // 2
    nearest = places[np.square(places - places.mean(0)).sum(1).argmin()]
    return int(nearest[0]), int(nearest[1])


def _mark(image: Image.Image, row: int, column: int, grid: tuple[int, int]) -> None:
    height, width = image.height / grid[0], image.width / grid[1]
    box = (round(column * width), round(row * height), round((column + 1) * width), round((row + 1) * height))
    image.paste((255, 255, 255), box)
