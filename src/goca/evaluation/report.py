"""The figures of a run, from the records of its images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64

from goca.errors import GocaError
from goca.evaluation.metrics import Score, SizeScore, Tally, by_size, miou, percentage, score
from goca.evaluation.protocol import SWEEP, Protocol
from goca.evaluation.records import ImageRecord, matrix, tally
from goca.imaging import html


@dataclass(frozen=True, repr=False)
class Report:
    """The results of a run. `names` are those of labels 1, 2, ...; `images` those of the data set, in order."""

    names: tuple[str, ...]
    protocol: Protocol
    images: tuple[ImageRecord, ...]

    def __repr__(self) -> str:
        return f"Report({self.protocol.dataset}, {len(self.images)} images, {len(self.names)} classes)"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the scores, their protocol, and the IoU of each class, the worst first."""
        try:
            score = self.score()
        except GocaError as error:
            return html.figure(f"{self!r}: {error}")
        left_out = f", {len(self.left_out)} left out" if self.left_out else ""
        title = (
            f"{self.protocol.dataset}: mIoU {percentage(score.miou, score.ci95)} %, {score.pixel_accuracy:.1%} of "
            f"pixels correct; {len(self.counted)} images{left_out}; protocol {self.protocol.name}, "
            f"tags {self.protocol.tags}"
        )
        worst = sorted(score.per_class.items(), key=lambda item: item[1])
        return html.figure(title, None, ("class", "IoU"), [(name, f"{iou:.1%}") for name, iou in worst])

    @cached_property
    def counted(self) -> tuple[ImageRecord, ...]:
        """The images behind the figures. Raises GocaError if there are none, or none with a label to score."""
        counted = tuple(image for image in self.images if image.counts is not None)
        if not counted:
            first = f", the first because: {self.left_out[0].left_out}" if self.left_out else ""
            raise GocaError(f"no image of {self.protocol.dataset} could be evaluated{first}")
        self._refuse_unlabelled(counted)
        return counted

    def _refuse_unlabelled(self, counted: Sequence[ImageRecord]) -> None:
        """Raise GocaError if there is no pixel to score, so that every score would be NaN."""
        any_labelling = self.protocol.labellings[0]  # the truth is the same under each
        labels = {true for image in counted for true, _, _ in (image.counts or {})[any_labelling]}
        where = f"{len(counted)} image{'s' if len(counted) > 1 else ''} of {self.protocol.dataset}"
        if not labels:
            raise GocaError(
                f"no labelled pixel in {where}: all of the ground truth is void; correct it, evaluate other images, "
                "or set void=background",
                "set",
            )
        counting = self.protocol.counting
        if labels == {0} and not (counting.background or counting.absent):
            raise GocaError(
                f"no pixel of a class in {where}: all of the ground truth is background; correct it, evaluate other "
                "images, or set counted=and-background",
                "set",
            )

    def is_plausible(self) -> bool:
        """Whether every image's counts match the protocol's labellings and the data set's labels."""
        counted = [image.counts for image in self.images if image.counts is not None]
        labels = range(len(self.names) + 1)
        return all(counts.keys() >= {*self.protocol.labellings} for counts in counted) and all(
            true in labels and predicted in labels
            for counts in counted
            for triples in counts.values()
            for true, predicted, _ in triples
        )

    @property
    def left_out(self) -> tuple[ImageRecord, ...]:
        """The images that have no counts, each with its reason."""
        return tuple(image for image in self.images if image.counts is None)

    @cached_property
    def labelling(self) -> str:
        """The labelling of the protocol's figures; in a sweep, the first of those that score best."""
        if self.protocol.threshold == "oracle":
            return max(self.sweep, key=self.sweep.__getitem__)
        return self.protocol.threshold

    @cached_property
    def sweep(self) -> Mapping[str, float]:
        """{threshold: mIoU} of the oracle sweep; empty if every pixel gets a class."""
        if self.protocol.threshold == "none":
            return {}
        thresholds = map(str, SWEEP)
        return {threshold: miou(self.tally(threshold), self.protocol.counting) for threshold in thresholds}

    def tally(self, labelling: str | None = None) -> Tally:
        """The counts under one labelling, by default the protocol's."""
        return tally(self.counted, labelling or self.labelling, len(self.names) + 1)

    @property
    def confusion(self) -> Int64[np.ndarray, "label label"]:
        """All pixels, truth first, label 0 being background."""
        return matrix(self.counted, self.labelling, len(self.names) + 1)

    def score(self, labelling: str | None = None) -> Score:
        """The scores under one labelling, by default the protocol's."""
        if labelling in (None, self.labelling):
            return self._score
        return score(self.tally(labelling), self.names, self.protocol.counting)

    @cached_property
    def _score(self) -> Score:
        return score(self.tally(), self.names, self.protocol.counting)

    @cached_property
    def _by_size(self) -> list[SizeScore]:
        return by_size(self.tally(), self.protocol.counting)

    def metrics(self) -> dict[str, Any]:
        """The scores, 0 to 1; with a background, those of the fixed and the oracle threshold side by side."""
        out: dict[str, Any] = {
            **asdict(self.score()),
            "images": len(self.counted),
            "left_out": len(self.left_out),
            "threshold": self.labelling,
            "by_size": [asdict(band) for band in self._by_size],
        }
        if self.sweep:
            best = max(self.sweep, key=self.sweep.__getitem__)
            fixed = self.score("fixed")
            out["fixed_threshold"] = {"miou": fixed.miou, "ci95": fixed.ci95}
            out["oracle_threshold"] = {"threshold": float(best), "miou": self.sweep[best]}
            out["sweep"] = [{"threshold": float(name), "miou": value} for name, value in self.sweep.items()]
        return out
