"""The output of a check: a document without details of the machine, and a sheet of images and their masks."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from goca.checking.stability import features
from goca.checking.subject import Labels, Shown, Subject
from goca.checking.verdict import Verdict
from goca.imaging import draw
from goca.imaging.palette import magma, palette
from goca.imaging.sheet import Cell, contact_sheet
from goca.maths.attention import probabilities
from goca.plan import versions

POINTS = 2
"""Number of pixels of each image whose affinity is shown."""
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[/\\][^\s/\\:;,'\"()]+){2,}[/\\]?")
_KEPT = ("recipe", "settings", "size", "grid", "timestep", "feature", "reference", "refine", "order", "heads", "layers")


def document(verdicts: Sequence[Verdict], name: str, subject: Subject | None) -> dict[str, Any]:
    """Everything that was measured, for the authors of goca; without paths, user names, or the folder's name.

    Args:
        verdicts: The verdicts of all checks.
        name: Name or folder from which the model was loaded.
        subject: The checked model; None if it could not be loaded.
    """
    model: dict[str, Any] = {"name": "a local folder" if Path(name).exists() else name}
    facts: dict[str, Any] = {"versions": dict(versions()), "model": model}
    if subject is not None:
        backbone, plan = subject.backbone, subject.plan.to_json()
        model |= {
            "pipeline": type(backbone.pipeline).__name__,
            "denoiser": type(backbone.denoiser).__name__,
            "family": backbone.family.name,
            "fingerprint": backbone.session().fingerprint,
            "device": backbone.device.partition(":")[0],
            "dtype": backbone.dtype,
        }
        facts["settings"] = {key: plan[key] for key in _KEPT}
    facts["verdicts"] = [_without_paths(verdict.to_json(), _folder(name)) for verdict in verdicts]
    return facts


def _folder(name: str) -> re.Pattern[str]:
    """A pattern for the model's folder, as named and as an absolute path; it matches nothing for a Hub id."""
    known = {name, str(Path(name).absolute()), str(Path(name).resolve())} if Path(name).exists() else set()
    longest_first = sorted(known, key=len, reverse=True)
    return re.compile("|".join(rf"(?<![\w.]){re.escape(each)}(?=[/\\\s:;,'\")]|$)" for each in longest_first) or "(?!)")


def _without_paths(value: Any, folder: re.Pattern[str]) -> Any:
    """Replace the model's folder by MODEL, other paths with slashes by PATH; the paths of blocks have dots."""
    if isinstance(value, dict):
        return {key: _without_paths(inner, folder) for key, inner in value.items()}
    return _PATH.sub("PATH", folder.sub("MODEL", value)) if isinstance(value, str) else value


@torch.no_grad()
def sheet(subject: Subject) -> Image.Image:
    """A row for each image: itself, the masks of its generation, those of its segmentation, and affinities."""
    return contact_sheet([_row(subject, each, seen) for each, seen in zip(subject.shown, subject.seen, strict=True)])


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
        row, column = _inside(seen, label, grid)
        values = affinity[row * grid[1] + column].reshape(grid).copy()
        values[row, column] = 0  # a point is most similar to itself
        values = values / max(values.max(), np.finfo(np.float32).tiny)
        heat = Image.fromarray(magma(values)).resize((side, side), Image.Resampling.NEAREST)
        _mark(heat, row, column, grid)
        cells.append(Cell(heat, f"like a point of {noun}", tuple(palette(2)[label].tolist())))
    return cells


def _inside(labels: Labels, label: int, grid: tuple[int, int]) -> tuple[int, int]:
    """A cell deep inside a label's pixels: the one with most of them around it."""
    image = Image.fromarray((labels == label).astype(np.uint8) * 255)
    small = image.resize((grid[1], grid[0]), Image.Resampling.BOX)
    around = np.asarray(small.filter(ImageFilter.GaussianBlur(min(grid) / 8)), np.float32)
    row, column = np.unravel_index(np.where(np.asarray(small) > 127, around + 1, 0).argmax(), around.shape)
    return int(row), int(column)


def _mark(image: Image.Image, row: int, column: int, grid: tuple[int, int]) -> None:
    height, width = image.height / grid[0], image.width / grid[1]
    box = (round(column * width), round(row * height), round((column + 1) * width), round((row + 1) * height))
    image.paste((255, 255, 255), box)
