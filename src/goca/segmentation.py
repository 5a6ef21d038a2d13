"""Segmentation: what an image was found to show."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt16
from PIL import Image

from goca import export
from goca.errors import GocaError
from goca.imaging import draw
from goca.maths.background import Background, labels
from goca.maths.edges import labels_along_edges
from goca.maths.resize import resize
from goca.recipe import Plan
from goca.storage.atomic import write_atomic


class Presence(NamedTuple):
    """How much of a class was found: its share of the image's pixels (0 to 1), and its highest score (0 to 1)."""

    share: float
    peak: float


@dataclass(frozen=True)
class ScoreMaps:
    """Scores on the common grid, after rescaling and refinement; where there is refinement each class is min-maxed.

    grid: (class, height, width) float32 in [0, 1]. background: the background classes' map, (height, width), or None.
    ensemble_std: the standard deviation of `grid` over several passes (timesteps, seeds, sides), or None for one pass.
    """

    grid: Float32[np.ndarray, "class height width"]
    background: Float32[np.ndarray, "height width"] | None
    ensemble_std: Float32[np.ndarray, "class height width"] | None = None

    def at(self, size: tuple[int, int]) -> Float32[np.ndarray, "class height width"]:
        """The class maps, bilinearly resized to `size` = (height, width) pixels; GocaError for what is no size."""
        sides = tuple(size) if isinstance(size, Sequence) else ()
        if len(sides) != 2 or not all(isinstance(side, Integral) and side > 0 for side in sides):
            raise GocaError(f"{size!r} is no size: give (height, width) in pixels, each 1 or more")
        return resize(torch.from_numpy(self.grid), size).numpy()


@dataclass(frozen=True)
class Segmentation:
    """The result for one image.

    image: the image, upright, RGB. classes: names in the order asked for. labels: (height, width) uint16 in the
    image's size; 0 is background, i is classes[i - 1]. scores: see `ScoreMaps`. plan: the plan that ran.
    """

    image: Image.Image
    classes: tuple[str, ...]
    labels: UInt16[np.ndarray, "height width"]
    scores: ScoreMaps
    plan: Plan

    def mask(self, name: str) -> Bool[np.ndarray, "height width"]:
        """The pixels of one class; GocaError, listing the classes, for a name that was not asked for."""
        return self.labels == self._index(name) + 1

    @cached_property
    def present(self) -> Mapping[str, Presence]:
        """{class: (share of pixels, peak score)}, for every class asked for."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes) + 1)[1:] / self.labels.size
        peaks = self.scores.grid.max((1, 2))
        triples = zip(self.classes, counts, peaks, strict=True)
        return {name: Presence(float(share), float(peak)) for name, share, peak in triples}

    @cached_property
    def uncertainty(self) -> Float32[np.ndarray, "height width"] | None:
        """How much the score of each pixel's class (of its best class, on the background) differs between passes: the
        standard deviation over them, in the image's size; None where there was one pass only.
        """
        if self.scores.ensemble_std is None:
            return None
        height, width = self.labels.shape
        wide = resize(torch.from_numpy(self.scores.ensemble_std), (height, width)).numpy()
        best = self.scores.at((height, width)).argmax(0)
        shown = np.where(self.labels > 0, self.labels.astype(np.int64) - 1, best)
        return np.take_along_axis(wide, shown[None], 0)[0]

    def relabelled(self, backgrounds: Iterable[Background]) -> Iterator[UInt16[np.ndarray, "height width"]]:
        """The labels under each of some other backgrounds, from scores that are upsampled once; no pass is made."""
        classes = torch.from_numpy(self.scores.grid)
        background = None if self.scores.background is None else torch.from_numpy(self.scores.background)
        if self.plan.refine_edges:
            every = labels_along_edges(classes, background, backgrounds, torch.from_numpy(np.array(self.image)))
        else:
            height, width = self.labels.shape
            every = labels(classes, background, backgrounds, (height, width))
        for found in every:
            yield found.numpy().astype(np.uint16)

    def overlay(self) -> Image.Image:
        """The image under its coloured masks, with a legend."""
        return draw.overlay(self.image, self.labels, self.classes)

    def heatmap(self, name: str) -> Image.Image:
        """The image under the scores of one class, from dark (0) to bright (1)."""
        height, width = self.labels.shape
        return draw.heatmap(self.image, self.scores.at((height, width))[self._index(name)])

    def to_coco(self, image_id: int, file_name: str) -> dict[str, Any]:
        """The masks as COCO images, annotations (RLE) and categories; needs the extra `goca[export]`."""
        return export.coco(self.labels, self.classes, image_id, file_name)

    def to_labelme(self, file_name: str) -> dict[str, Any]:
        """The masks as labelme polygons, to correct by hand."""
        return export.labelme(self.labels, self.classes, file_name)

    def to_json(self) -> dict[str, Any]:
        """Classes, their ids in `labels`, shares of pixels and peak scores; the plan; over several passes, the mean
        uncertainty.
        """
        found = [
            {"id": index, "name": name, "share": self.present[name].share, "peak": self.present[name].peak}
            for index, name in enumerate(self.classes, start=1)
        ]
        height, width = self.labels.shape
        uncertainty = {} if self.uncertainty is None else {"uncertainty": float(self.uncertainty.mean())}
        return {"height": height, "width": width, "classes": found, **uncertainty, "plan": self.plan.to_json()}

    def save(self, folder: str | Path, stem: str = "image", facts: Mapping[str, Any] | None = None) -> tuple[Path, ...]:
        """Write STEM.labels.png, STEM.overlay.png and, last, STEM.json into `folder`, each whole or not at all.

        facts: further entries for the JSON. Returns the paths. Raises GocaError where the folder cannot be written.
        """
        files = {
            ".labels.png": export.labels_png(self.labels, self.classes),
            ".overlay.png": export.png(self.overlay()),
            ".json": (json.dumps({**self.to_json(), **(facts or {})}, indent=2, ensure_ascii=False) + "\n").encode(),
        }
        paths = {Path(folder) / f"{stem}{suffix}": content for suffix, content in files.items()}
        write_atomic(paths)
        return tuple(paths)

    def _index(self, name: str) -> int:
        if name not in self.classes:
            raise GocaError(f'"{name}" was not asked for: the classes are {", ".join(self.classes)}')
        return self.classes.index(name)
