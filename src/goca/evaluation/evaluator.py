"""Scores a segmenter against ground truth, a batch at a time: caption, request, labels, counts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np

from goca.diffusion.backbone import BackboneSession
from goca.errors import GocaError
from goca.evaluation.datasets.base import Dataset, LabelMap, Sample
from goca.evaluation.oracle import true_classes
from goca.evaluation.protocol import Protocol
from goca.evaluation.records import ImageRecord, count
from goca.evaluation.report import Report
from goca.imaging.images import ImageLike
from goca.recipe import AUTO
from goca.request import SegmentationRequest
from goca.segmentation import Segmentation
from goca.segmenter import Segmenter
from goca.tagging.answers import key
from goca.tagging.base import Tagger
from goca.tagging.caption_nouns import CaptionedRequest, captioned, company
from goca.text.nouns import Noun

Tags = Mapping[str, str | GocaError]
"""A tagger's captions by image id, or the reason why there is none."""


@dataclass(frozen=True)
class ImageBatch:
    """Images that go through the denoiser together, in any process: batches are always composed alike, so that every
    figure is the same to the last digit.

    Attributes:
        indices: Indices of the data set's samples.
        tags: Captions of those that the tagger was asked about in advance.
    """

    indices: range
    tags: Tags = field(default_factory=dict)


def batches(dataset: Dataset, size: int) -> list[ImageBatch]:
    """All images of a data set, `size` at a time."""
    count = len(dataset.samples)
    return [ImageBatch(range(start, min(start + size, count))) for start in range(0, count, size)]


class _OpenImage(NamedTuple):
    """An image in progress: its ground truth as counted, its caption's classes, and its record so far."""

    sample: Sample
    truth: LabelMap
    query: CaptionedRequest
    record: ImageRecord


@dataclass
class Evaluator:
    """Evaluates batches of a data set's images.

    Args:
        segmenter: The model.
        dataset: All images.
        tagger: Captions the images that have no caption in their batch; None if all have one.
        protocol: What is counted, and how.
    """

    segmenter: Segmenter
    dataset: Dataset
    tagger: Tagger | None
    protocol: Protocol

    @cached_property
    def _session(self) -> BackboneSession:
        """One session for all batches, because captions recur."""
        return self.segmenter.backbone.session()

    def __call__(self, batch: ImageBatch) -> list[ImageRecord]:
        """Segment images and count pixels, in order; an image that cannot be read, tagged or segmented is left out."""
        samples = self.dataset.samples[batch.indices.start : batch.indices.stop]
        records: dict[str, ImageRecord] = {}
        pending: list[tuple[SegmentationRequest, _OpenImage]] = []
        for sample in samples:
            caption = None
            try:
                caption = self._caption(sample, batch.tags)
                image = self._open(sample, caption)
            except GocaError as error:
                records[sample.id] = ImageRecord(sample.id, caption, left_out=str(error))
                continue
            label = self._only_label(image.query)
            if label is None:
                pending.append(self._request(image))
            else:
                records[sample.id] = self._with_counts(image, [np.full_like(image.truth, label)])
        outcomes = self.segmenter.stream((request for request, _ in pending), self._session)
        for (_, image), (_, outcome) in zip(pending, outcomes, strict=True):
            if isinstance(outcome, GocaError):
                records[image.sample.id] = replace(image.record, left_out=str(outcome))
            else:
                records[image.sample.id] = self._segmented(image, outcome)
        return [records[sample.id] for sample in samples]

    def _caption(self, sample: Sample, tags: Tags) -> str:
        tag = tags.get(sample.id)
        if isinstance(tag, GocaError):
            raise tag
        if tag is not None:
            return tag
        assert self.tagger is not None
        return self.tagger.tag(sample, self.dataset)

    def _open(self, sample: Sample, caption: str) -> _OpenImage:
        truth = self.protocol.truth(sample.truth())
        names = true_classes(sample, self.dataset, truth)
        categories = self.protocol.categories(self.dataset.categories)
        query = captioned(
            caption, categories, self.protocol.nouns, names, company(self.segmenter.backbone.settings.nouns)
        )
        record = ImageRecord(sample.id, caption, tuple(query.classes), query.background_classes, query.notes)
        return _OpenImage(sample, truth, query, record)

    def _only_label(self, query: CaptionedRequest) -> int | None:
        """The label of every pixel if that is trivial: for no class, or a single class without background."""
        if not query.classes:
            return 0
        if len(query.classes) == 1 and self.protocol.threshold == "none":
            return self._dataset_labels(query.classes)[1]
        return None

    def _request(self, image: _OpenImage) -> tuple[SegmentationRequest, _OpenImage]:
        """The request, and the image with its updated record."""
        query = image.query
        request = request_for(query, image.sample.image, None if self.protocol.threshold == "none" else AUTO)
        if self.protocol.captions == "sentences":
            return replace(request, caption=image.sample.captions["sentences"]), image
        if not self._fits(query.caption.split(", ")):
            return self._shortened(image, replace(request, caption=None))
        # The segmenter's own caption names the same nouns, unless their order differs.
        if query.caption == ", ".join((*query.classes, *query.background_classes)):
            request = replace(request, caption=None)
        return request, image

    def _shortened(self, image: _OpenImage, request: SegmentationRequest) -> tuple[SegmentationRequest, _OpenImage]:
        """The request without the nouns that do not fit.

        The segmenter spreads a list that is too long over several prompts, each of which must have room for all
        background classes.
        """
        assert isinstance(request.classes, Mapping)
        words = {name: tuple(synonyms) for name, synonyms in request.classes.items()}
        kept = image.query.background_classes
        while kept and not all(self._fits((name, *synonyms, *kept)) for name, synonyms in words.items()):
            kept = kept[:-1]
        for name in words:
            while words[name] and not self._fits((name, *words[name], *kept)):
                words[name] = words[name][:-1]
        dropped = [*image.query.background_classes[len(kept) :]]
        dropped += [word for name, synonyms in request.classes.items() for word in synonyms[len(words[name]) :]]
        record = image.record
        if dropped:
            note = f"the caption is too long for this model: left out {', '.join(dropped)}"
            record = replace(record, background_classes=kept, notes=(*record.notes, note))
        request = replace(request, classes=words, background_classes=kept)
        return request, image._replace(record=record)

    def _fits(self, nouns: Sequence[str]) -> bool:
        """Whether one prompt holds these nouns."""
        return self.segmenter.backbone.fits([Noun(noun, (noun,)) for noun in nouns])

    def _dataset_labels(self, classes: Iterable[str]) -> list[int]:
        """The data set's labels for the labels of a result; 0 stays 0."""
        names = self.dataset.class_names
        return [0, *(names.index(name) + 1 for name in classes)]

    def _segmented(self, image: _OpenImage, result: Segmentation) -> ImageRecord:
        if image.truth.shape != result.labels.shape:
            reason = f"{image.sample.image} and its ground truth differ in size: replace the wrong one"
            return replace(image.record, left_out=reason)
        table = self.protocol.merge(np.array(self._dataset_labels(image.query.classes), np.uint16))
        notes = tuple(dict.fromkeys((*image.record.notes, *result.plan.notes)))
        backgrounds = self.protocol.backgrounds
        labellings = chain([result.labels], result.relabelled(backgrounds) if backgrounds else ())
        return replace(self._with_counts(image, (table[labels] for labels in labellings)), notes=notes)

    def _with_counts(self, image: _OpenImage, predictions: Iterable[LabelMap]) -> ImageRecord:
        """The record with the counts of each labelling; a single prediction counts for all."""
        counts = [count(image.truth, predicted, len(self.dataset.categories) + 1) for predicted in predictions]
        labellings = self.protocol.labellings
        if len(counts) == 1:
            counts *= len(labellings)
        return replace(image.record, counts=dict(zip(labellings, counts, strict=True)))


def request_for(
    query: CaptionedRequest, image: ImageLike, background: str | float | None = AUTO
) -> SegmentationRequest:
    """The request for an image, with the caption as the prompt; there must be a class to segment."""
    # A segmenter takes a class's name as one of its words, although it may not be in the caption.
    synonyms = {name: [word for word in words if key(word) != key(name)] for name, words in query.classes.items()}
    return SegmentationRequest(image, synonyms, query.background_classes, background, query.caption)


def evaluate_dataset(segmenter: Segmenter, dataset: Dataset, tagger: Tagger, protocol: Protocol) -> Report:
    """Evaluate a loaded segmenter in this process, `segmenter.batch` images at a time; nothing is written."""
    evaluator = Evaluator(segmenter, dataset, tagger, protocol)
    records = (record for batch in batches(dataset, segmenter.batch) for record in evaluator(batch))
    return Report(dataset.class_names, protocol, tuple(records))
