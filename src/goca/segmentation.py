"""The result for one image: labels, scores, masks, and their drawings and files."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt16
from PIL import Image
from torch import Tensor

from goca.class_maps import ClassMaps
from goca.errors import GocaError
from goca.exports import DEFAULT_FORMATS, dataset_formats, exporters
from goca.exports.base import DatasetImage, ExportContext
from goca.exports.coco import coco
from goca.exports.cutout import cutout
from goca.exports.labelme import labelme
from goca.exports.objects import ObjectOptions, regions
from goca.imaging import draw, html
from goca.imaging.masks import Box, Mask, as_image
from goca.imaging.palette import palette
from goca.imaging.sheet import Cell
from goca.maths.background import Background, labels
from goca.maths.resize import resize, resize_rows, strips
from goca.plan import Plan
from goca.storage.atomic import write_into
from goca.tagging.candidates import Kept

PREVIEW_SIDE = 640
"""Longest side, in pixels, at which a notebook shows a result."""
LISTED_CLASSES = 5
"""Most classes that a result's repr names, and most results in a list's."""
PRESENCE_HEADER = ("class", "share of pixels", "evidence")


class Presence(NamedTuple):
    """A class in an image.

    Attributes:
        share: Share of the pixels that have its label, 0 to 1.
        evidence: How surely the image shows it, 0 to 1. Recipes that measure evidence do so before classes are put in
            the prompt, and a class below their floor gets no pixels; the more classes are named, the more evidence each
            needs (docs/presence.md). For other recipes it is the highest share of a cell's attention to everything that
            the class has, before rescaling.
    """

    share: float
    evidence: float

    def _repr_html_(self) -> str:
        return html.figure("Presence", None, PRESENCE_HEADER[1:], [_texts(self)])


class Instance(NamedTuple):
    """A connected region of a class.

    Attributes:
        class_name: The class.
        mask: (height, width) bool, in the image's size.
        box: (left, top, right, bottom) in pixels, right and bottom exclusive, as `PIL.Image.crop` takes it.
        area: Number of pixels.
        score: Mean of the class's scores over them, 0 to 1; it compares regions of one class in one image.
    """

    class_name: str
    mask: Mask
    box: Box
    area: int
    score: float

    def __repr__(self) -> str:
        return f"Instance({self.class_name}: {self.area:,} px in {tuple(self.box)}, score {self.score:.2f})"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the region in white on black, and the rest in words."""
        row = self.class_name, str(tuple(self.box)), f"{self.area:,}", f"{self.score:.2f}"
        step = _step(max(self.mask.shape))
        cells = [Cell(as_image(self.mask[::step, ::step]), self.class_name)]
        return html.gallery("Instance", cells, ("class", "box", "pixels", "score"), [row])


@dataclass(frozen=True, repr=False, eq=False)
class ScoreMaps:
    """Scores on the common grid; with refinement each class is min-maxed, before any refitting.

    Attributes:
        grid: (class, height, width) float32 in [0, 1].
        background: Map of the background classes, (height, width), or None.
        ensemble_std: Standard deviation of `grid` over several passes; None for a single pass.
    """

    grid: Float32[np.ndarray, "class height width"]
    background: Float32[np.ndarray, "height width"] | None
    ensemble_std: Float32[np.ndarray, "class height width"] | None = None

    def __repr__(self) -> str:
        return "ScoreMaps({} classes on {} x {} cells)".format(*self.grid.shape)

    @classmethod
    def of(cls, maps: ClassMaps, ensemble_std: Tensor | None = None) -> "ScoreMaps":
        """The same maps as arrays."""
        background = None if maps.background is None else maps.background.cpu().numpy()
        std = None if ensemble_std is None else ensemble_std.cpu().numpy()
        return cls(maps.classes.cpu().numpy(), background, std)

    def among(self, count: int, indices: Sequence[int]) -> "ScoreMaps":
        """The maps assigned to the classes at `indices` of `count`; those of the others are 0 everywhere."""

        def spread(maps: Float32[np.ndarray, "kept height width"]) -> Float32[np.ndarray, "class height width"]:
            out = np.zeros((count, *maps.shape[1:]), np.float32)
            out[list(indices)] = maps
            return out

        std = None if self.ensemble_std is None else spread(self.ensemble_std)
        return ScoreMaps(spread(self.grid), self.background, std)

    def at(self, size: tuple[int, int]) -> Float32[np.ndarray, "class height width"]:
        """The class maps, bilinearly resized to `size` = (height, width) in pixels.

        Raises:
            GocaError: The size is anything but two whole numbers of 1 or more.
        """
        sides = tuple(size) if isinstance(size, Sequence) else ()
        if len(sides) != 2 or not all(isinstance(side, Integral) and side >= 1 for side in sides):
            raise GocaError(f"{size!r} is not a size: give (height, width) in pixels, each 1 or more")
        height, width = map(int, sides)
        return resize(torch.from_numpy(self.grid), (height, width)).numpy()


@dataclass(frozen=True, repr=False, eq=False)
class Segmentation:
    """The result for one image. It can be pickled, and read as a mapping from classes to masks.

    Attributes:
        image: Upright, RGB.
        classes: Names, in the order of the request.
        labels: (height, width) uint16 in the image's size; 0 is background, i is `classes[i - 1]`.
        scores: See `ScoreMaps`.
        plan: The plan as it ran.
        evidence: Of each class, see `Presence`.
        kept: The classes that a tagger names, if there was one.
        asked: Indices of the classes that were put in the prompt, None for all; the scores of the others are 0, and
            they have no pixels.
    """

    image: Image.Image
    classes: tuple[str, ...]
    labels: UInt16[np.ndarray, "height width"]
    scores: ScoreMaps
    plan: Plan
    evidence: tuple[float, ...]
    kept: Kept | None = None
    asked: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"Segmentation({self.image.width} x {self.image.height} px: {self._largest()}; {self.plan!r})"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the masks over the image, and the classes with their shares, the largest first."""
        rows = [(name, *_texts(presence)) for name, presence in self._by_share()]
        colours = dict(zip(self.classes, palette(len(self))[1:].tolist(), strict=True))
        return html.figure(repr(self), self._preview(), PRESENCE_HEADER, rows, [colours[name] for name, *_ in rows])

    def _preview(self) -> Image.Image:
        """The masks over the image without a legend, between 384 and 640 px on its long side."""
        step = _step(max(self.image.size))
        small = draw.enlarged(self.image.reduce(step), self.labels[::step, ::step])
        return draw.painted(*small, len(self))

    def _largest(self) -> str:
        """The largest classes with their shares, in words."""
        largest = self._by_share()[:LISTED_CLASSES]
        shares = ", ".join(f"{name} {presence.share:.0%}" for name, presence in largest)
        return shares + (f" and {len(self) - LISTED_CLASSES} more" if len(self) > LISTED_CLASSES else "")

    def _by_share(self) -> list[tuple[str, Presence]]:
        return sorted(self.present.items(), key=lambda item: -item[1].share)

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[str]:
        """The classes."""
        return iter(self.classes)

    def mask(self, name: str) -> Bool[np.ndarray, "height width"]:
        """The pixels of one class. Raises GocaError, listing the classes, for any other name."""
        return self.labels == self._index(name) + 1

    def __getitem__(self, name: str) -> Bool[np.ndarray, "height width"]:
        """The mask of a class; the same as `mask(name)`."""
        return self.mask(name)

    @cached_property
    def present(self) -> Mapping[str, Presence]:
        """{class: (share of pixels, evidence)}, for every class."""
        counts = draw.pixel_counts(self.labels, len(self.classes))[1:] / self.labels.size
        triples = zip(self.classes, counts, self.evidence, strict=True)
        return {name: Presence(float(share), evidence) for name, share, evidence in triples}

    @cached_property
    def uncertainty(self) -> Float32[np.ndarray, "height width"] | None:
        """How much the score of each pixel's class varies between passes; None for a single pass.

        The standard deviation over the passes, bilinearly resized to the image's size; for background pixels, that
        of the best class.
        """
        if self.scores.ensemble_std is None:
            return None
        std, scores = torch.from_numpy(self.scores.ensemble_std), torch.from_numpy(self.scores.grid)
        out = np.empty(self.labels.shape, np.float32)
        for rows in strips(self.labels.shape, len(scores)):
            best = resize_rows(scores, self.labels.shape, rows).argmax(0)
            labels = torch.from_numpy(self.labels[rows].astype(np.int64))
            shown = torch.where(labels > 0, labels - 1, best)
            out[rows] = resize_rows(std, self.labels.shape, rows).gather(0, shown[None])[0]
        return out

    def relabelled(self, backgrounds: Iterable[Background]) -> Iterator[UInt16[np.ndarray, "height width"]]:
        """The labels under each of several backgrounds, without another pass; scores are upsampled only once."""
        background = None if self.scores.background is None else torch.from_numpy(self.scores.background)
        grid = self.scores.grid if self.asked is None else self.scores.grid[list(self.asked)]
        maps = ClassMaps(torch.from_numpy(grid), background, torch.zeros(len(grid)))
        return label_pixels(maps, backgrounds, self.image, self.plan.refine_edges, self.asked)

    def overlay(self, legend: bool = True) -> Image.Image:
        """The image under its coloured masks; with a legend, or without one in the image's own size."""
        return draw.overlay(self.image, self.labels, self.classes, legend)

    def heatmap(self, name: str) -> Image.Image:
        """The scores of one class over the image, from dark (0) to bright (1)."""
        scores = torch.from_numpy(self.scores.grid[self._index(name)])
        return draw.heatmap(self.image, resize(scores, self.labels.shape).numpy())

    def cutout(self, name: str) -> Image.Image:
        """The image, RGBA, transparent outside the mask of a class; `cut.crop(cut.getbbox())` trims it."""
        return cutout(self.image, self.mask(name))

    def instances(self, min_area: int = 1, fill_holes: bool = False) -> tuple[Instance, ...]:
        """The connected regions of the classes, class by class, and of each class from top to bottom.

        Args:
            min_area: Regions of fewer pixels are left out; pixels that touch only at a corner are not connected.
            fill_holes: Whether a region gets the pixels that it surrounds, whatever their class.
        """
        options = ObjectOptions(min_area=min_area, fill_holes=fill_holes)
        instances = []
        for label, of_class in groupby(regions(self.labels, options, instances=True), key=lambda region: region.label):
            scores = resize(torch.from_numpy(self.scores.grid[label - 1]), self.labels.shape).numpy()
            for region in of_class:
                score = float(scores[region.box.slices][region.crop].mean())
                mask = region.mask(self.labels.shape)
                instances.append(Instance(self.classes[label - 1], mask, region.box, region.area, score))
        return tuple(instances)

    def boxes(self, min_area: int = 1) -> dict[str, tuple[Box, ...]]:
        """The boxes of the connected regions of each class, as in `instances`."""
        boxes: dict[str, tuple[Box, ...]] = dict.fromkeys(self.classes, ())
        for region in regions(self.labels, ObjectOptions(min_area=min_area), instances=True):
            boxes[self.classes[region.label - 1]] += (region.box,)
        return boxes

    def to_supervision(self, min_area: int = 1) -> Any:
        """The instances as `supervision.Detections`; class ids count from 0, in the order of `classes`.

        Raises:
            GocaError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise GocaError("detections need supervision: pip install supervision") from None
        instances = self.instances(min_area)
        if not instances:
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=np.array([instance.box for instance in instances], np.float32),
            mask=np.stack([instance.mask for instance in instances]),
            confidence=np.array([instance.score for instance in instances], np.float32),
            class_id=np.array([self.classes.index(instance.class_name) for instance in instances]),
            data={"class_name": np.array([instance.class_name for instance in instances])},
        )

    def to_transformers(self) -> list[dict[str, Any]]:
        """The output of transformers' image segmentation: {"score", "label", "mask"} of each class with pixels.

        The score is the class's evidence, the mask a grey image of 0 and 255; the largest class comes first.
        """
        return [
            {"score": presence.evidence, "label": name, "mask": as_image(self.mask(name))}
            for name, presence in self._by_share()
            if presence.share
        ]

    def to_coco(
        self, image_id: int, file_name: str, instances: bool = False, min_area: int = 1, polygons: bool = False
    ) -> dict[str, Any]:
        """The masks as COCO images, annotations and categories.

        Args:
            image_id: The image's id in the file.
            file_name: The image's name in the file.
            instances: Whether each connected region, and not each class, is an annotation.
            min_area: Regions of fewer pixels are left out.
            polygons: Outlines instead of run lengths, which need pycocotools; they hold the same pixels.
        """
        objects = ObjectOptions(instances=instances, min_area=min_area, polygons=polygons)
        return coco(self.labels, self.classes, image_id, file_name, objects)

    def to_labelme(self, file_name: str) -> dict[str, Any]:
        """The masks as labelme polygons, for correction by hand."""
        return labelme(self.labels, self.classes, file_name)

    def arrays(self) -> dict[str, np.ndarray]:
        """The result as arrays: labels, classes, evidence and the score maps that exist."""
        maps = {"background": self.scores.background, "ensemble_std": self.scores.ensemble_std}
        return {
            "labels": self.labels,
            "classes": np.array(self.classes),
            "evidence": np.array(self.evidence, np.float32),
            "scores": self.scores.grid,
            **{name: values for name, values in maps.items() if values is not None},
        }

    def to_json(self) -> dict[str, Any]:
        """The result as JSON: classes with their ids in `labels`, shares and evidence; the plan; the uncertainty over
        several passes; the tagger and the classes that it kept, if there was one.
        """
        classes = [
            {"id": index, "name": name, **self.present[name]._asdict()}
            for index, name in enumerate(self.classes, start=1)
        ]
        height, width = self.labels.shape
        uncertainty = {} if self.uncertainty is None else {"uncertainty": float(self.uncertainty.mean())}
        tagged = {} if self.kept is None else self.kept.to_json()
        return {
            **{"height": height, "width": width, "classes": classes},
            **uncertainty,
            **tagged,
            "plan": self.plan.to_json(),
        }

    def save(
        self,
        folder: str | Path,
        stem: str = "image",
        formats: Sequence[str] = DEFAULT_FORMATS,
        facts: Mapping[str, Any] | None = None,
        file_name: str | None = None,
        objects: ObjectOptions | None = None,
    ) -> tuple[Path, ...]:
        """Write STEM.labels.png, STEM.overlay.png and STEM.json into a folder, each whole or not at all.

        A data set format, such as "coco" or "yolo", gives a data set of this image: STEM.coco.json, STEM.yolo/.

        Args:
            folder: Created if it is missing.
            stem: Start of the files' names.
            formats: Names of `goca.exports.EXPORTERS`.
            facts: Further entries for the JSON.
            file_name: The image's path relative to the folder, for formats that name it; by default STEM.png.
            objects: How regions become objects, in formats that have them.

        Returns:
            The paths of the image's files, the JSON last (if it exists, the others do too), then those of data sets.

        Raises:
            GocaError: A format is unknown, or the folder cannot be written.
        """
        name, objects = file_name or f"{stem}.png", objects or ObjectOptions()
        context = ExportContext(file_name=name, facts=facts or {}, objects=objects)
        datasets = dataset_formats(formats)
        files = {
            f"{stem}{exporter.suffix}": exporter.write(self, context)
            for form, exporter in exporters(formats).items()
            if form not in datasets
        }
        paths = write_into(folder, files) if files else ()
        image = DatasetImage(file_name=name, stem=stem, source=self.image, read_labels=lambda: self.labels)
        for exporter in datasets.values():
            target = Path(folder) / f"{stem}{exporter.suffix}"
            exporter.write_dataset(target, [image], self.classes, objects)
            paths += (target,)
        return paths

    def _index(self, name: str) -> int:
        if name not in self.classes:
            raise GocaError(f'"{name}" is not a class of this result: there are {", ".join(self.classes)}')
        return self.classes.index(name)


class Segmentations(list[Segmentation]):
    """Results of several images, in their order."""

    def __repr__(self) -> str:
        more = f", and {len(self) - LISTED_CLASSES} more" if len(self) > LISTED_CLASSES else ""
        return f"[{', '.join(map(repr, self[:LISTED_CLASSES]))}{more}]"

    def _repr_html_(self) -> str:
        """HTML for notebooks: each result with its largest classes, and the colours of the classes."""
        cells = []
        for result in self[: html.MAX_CELLS]:
            present = [f"{name} {share:.0%}" for name, (share, _) in result._by_share() if share]
            cells.append(Cell(result._preview(), ", ".join(present) or "background"))
        classes = dict.fromkeys(result.classes for result in self)
        title = f"{len(self)} x Segmentation"
        if len(classes) != 1:
            return html.gallery(title, cells, total=len(self))
        (names,) = classes
        colours = dict(zip(names, palette(len(names))[1:].tolist(), strict=True))
        return html.gallery(title, cells, legend=colours, total=len(self))


def _texts(presence: Presence) -> tuple[str, str]:
    """The share and the evidence as tables show them."""
    return f"{presence.share:.1%}", f"{presence.evidence:.2f}"


def _step(side: int) -> int:
    """Stride at which a notebook shows the pixels of a side of this length."""
    return math.ceil(side / PREVIEW_SIDE)


def label_pixels(
    maps: ClassMaps,
    backgrounds: Iterable[Background],
    image: Image.Image,
    refine_edges: bool,
    indices: Sequence[int] | None = None,
) -> Iterator[UInt16[np.ndarray, "height width"]]:
    """The labels of an image under each background; with `refine_edges` the scores follow the image's edges.

    indices: Indices of the maps' classes; None for all.
    """
    if indices is not None:
        table = np.array([0, *(index + 1 for index in indices)], np.uint16)
        empty = np.zeros((image.height, image.width), np.uint16)
        several = label_pixels(maps, backgrounds, image, refine_edges) if indices else (empty for _ in backgrounds)
        yield from (table[labels] for labels in several)
        return
    guide = torch.from_numpy(np.array(image)).to(maps.classes.device) if refine_edges else None
    yield from labels(maps.classes, maps.background, backgrounds, (image.height, image.width), guide).cpu().numpy()
