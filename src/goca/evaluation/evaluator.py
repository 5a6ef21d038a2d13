"""A segmenter against ground truth, a few images at a time: caption, question, labels, counts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from goca.diffusion.conditioning import EncodedPrompts
from goca.errors import GocaError
from goca.evaluation.caption_nouns import CaptionedRequest, captioned
from goca.evaluation.datasets.base import VOID, Dataset, Sample
from goca.evaluation.protocol import FIXED, NONE, SENTENCES, Protocol
from goca.evaluation.records import Counts, ImageRecord, Labels, count
from goca.evaluation.scenes import SceneOracle
from goca.recipe import AUTO
from goca.request import SegmentationRequest
from goca.segmentation import Segmentation
from goca.segmenter import Segmenter
from goca.tagging.base import Tagger
from goca.text.token_spans import Noun


class Said(NamedTuple):
    """What a tagger said of an image: its caption, or why it has none."""

    caption: str = ""
    reason: str = ""


class _Open(NamedTuple):
    """An image on its way: its ground truth as counted, what is asked of it, and what is to be written down of it."""

    sample: Sample
    truth: Labels
    asked: CaptionedRequest
    image: ImageRecord


@dataclass
class Evaluator:
    """Does units of work: a few images of a data set, which are one batch wherever and whenever they are done."""

    segmenter: Segmenter
    dataset: Dataset
    tagger: Tagger
    protocol: Protocol
    _prompts: EncodedPrompts = field(default_factory=dict, repr=False)

    def unit(self, samples: Sequence[Sample], said: Mapping[str, Said]) -> list[ImageRecord]:
        """Segment images and count, in their order; one that cannot be read, tagged or asked is left out.

        said: captions that are known already, by the images' ids.
        """
        done: dict[str, ImageRecord] = {}
        opened: list[_Open] = []
        for sample in samples:
            caption = None
            try:
                caption = _caption(said[sample.id]) if sample.id in said else self.tagger.tag(sample, self.dataset)
                opened.append(self._open(sample, caption))
            except GocaError as error:
                done[sample.id] = ImageRecord(sample.id, caption, left_out=str(error))
        pending: list[tuple[SegmentationRequest, _Open]] = []
        for opened_image in opened:
            label = self._without_asking(opened_image.asked)
            if label is None:
                pending.append(self._question(opened_image))
            else:
                done[opened_image.sample.id] = self._settled(opened_image, label)
        outcomes = self.segmenter.stream((request for request, _ in pending), self._prompts)
        for (_, opened_image), (_, outcome) in zip(pending, outcomes, strict=True):
            if isinstance(outcome, GocaError):
                done[opened_image.sample.id] = replace(opened_image.image, left_out=str(outcome))
            else:
                done[opened_image.sample.id] = self._counted(opened_image, outcome)
        return [done[sample.id] for sample in samples]

    def _open(self, sample: Sample, caption: str) -> _Open:
        truth = self.protocol.truth(sample.truth())
        there = [label for label in np.unique(truth).tolist() if 0 < label != VOID]
        if there and there[-1] > len(self.dataset.categories):
            raise GocaError(
                f'the ground truth of "{sample.id}" has label {there[-1]}, and {self.dataset.name} has '
                f"{len(self.dataset.categories)} categories: is this the right data set?"
            )
        names = [self.dataset.categories[label - 1].name for label in there]
        categories = self.protocol.categories(self.dataset.categories)
        asked = captioned(caption, categories, self.protocol.nouns, names, self.segmenter.plan.background_classes)
        image = ImageRecord(sample.id, caption, tuple(asked.classes), asked.background_classes, asked.notes)
        return _Open(sample, truth, asked, image)

    def _without_asking(self, asked: CaptionedRequest) -> int | None:
        """The label of every pixel, where that is plain: no class was named, or one alone without a background."""
        if not asked.classes:
            return 0
        if len(asked.classes) == 1 and self.protocol.threshold == NONE:
            return self._labels(asked.classes)[1]
        return None

    def _question(self, one: _Open) -> tuple[SegmentationRequest, _Open]:
        """The question, and what is written down of it now."""
        background = None if self.protocol.threshold == NONE else AUTO
        question = one.asked.of(one.sample.image, background)
        if self.protocol.captions == SENTENCES:
            assert isinstance(self.tagger, SceneOracle)  # `Job` refuses sentences of others
            return replace(question, caption=self.tagger.sentence(one.sample)), one
        listed = (*one.asked.classes, *one.asked.background_classes)
        if self._fits(one.asked.caption.split(", ")):
            return (replace(question, caption=None) if one.asked.caption == ", ".join(listed) else question), one
        # As the segmenter would write it: left to it, a list that is too long is spread over several prompts, in each
        # of which there has to be room for all background classes.
        background_classes, image = one.asked.background_classes, one.image
        assert isinstance(question.classes, Mapping)
        words = {name: tuple(more) for name, more in question.classes.items()}
        while background_classes and not all(
            self._fits((name, *more, *background_classes)) for name, more in words.items()
        ):
            background_classes = background_classes[:-1]
        for name in words:
            while words[name] and not self._fits((name, *words[name], *background_classes)):
                words[name] = words[name][:-1]
        without = [*image.background_classes[len(background_classes) :]]
        without += [word for name, more in question.classes.items() for word in more[len(words[name]) :]]
        if without:
            note = f"too long a caption for this model: without {', '.join(without)}"
            image = replace(image, background_classes=background_classes, notes=(*image.notes, note))
        return replace(question, caption=None, classes=words, background_classes=background_classes), one._replace(
            image=image
        )

    def _fits(self, nouns: Sequence[str]) -> bool:
        """Whether one prompt holds so many nouns."""
        return self.segmenter.backbone.fits([Noun(noun, (noun,)) for noun in nouns])

    def _labels(self, classes: Iterable[str]) -> list[int]:
        """From the labels of a result to those of the data set; 0 stays."""
        names = [one.name for one in self.dataset.categories]
        return [0, *(names.index(name) + 1 for name in classes)]

    def _settled(self, one: _Open, label: int) -> ImageRecord:
        counts = self._count(one, np.full_like(one.truth, label))
        return replace(one.image, counts=dict.fromkeys(self.protocol.labellings, counts))

    def _counted(self, one: _Open, result: Segmentation) -> ImageRecord:
        if one.truth.shape != result.labels.shape:
            reason = f"{one.sample.image} and its ground truth differ in size: download or write them again"
            return replace(one.image, left_out=reason)
        place = self.protocol.found(np.array(self._labels(result.classes), np.uint16))
        first = NONE if self.protocol.threshold == NONE else FIXED
        counts = {first: self._count(one, place[result.labels])}
        if first == FIXED:
            names = self.protocol.labellings[1:]
            for name, labels in zip(names, result.relabelled(self.protocol.backgrounds), strict=True):
                counts[name] = self._count(one, place[labels])
        notes = tuple(dict.fromkeys((*one.image.notes, *result.plan.notes)))
        return replace(one.image, counts=counts, notes=notes)

    def _count(self, one: _Open, found: Labels) -> Counts:
        return count(one.truth, found, len(self.dataset.categories) + 1)


def _caption(said: Said) -> str:
    if said.reason:
        raise GocaError(said.reason)
    return said.caption
