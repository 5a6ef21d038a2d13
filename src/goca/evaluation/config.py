"""An evaluation as plain values: what a process on this machine or another needs to do its part of it."""

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from goca.errors import GocaError
from goca.evaluation.datasets import open_dataset
from goca.evaluation.datasets.base import Dataset, Sample
from goca.evaluation.evaluator import Evaluator
from goca.evaluation.oracle import OracleTagger
from goca.evaluation.protocol import NOUNS, PRESETS, SENTENCES, Protocol, changed, split_of
from goca.evaluation.remap import narrowed
from goca.evaluation.scenes import SceneOracle, check_captions
from goca.recipe import recipe_named
from goca.segmenter import Segmenter
from goca.tagging import TaggerOptions, tagger_named
from goca.tagging.base import Prices, Tagger

AHEAD = ("vlm", "local")
"""Taggers that are asked for all images before the first is segmented, by one process."""


@dataclass(frozen=True)
class Job:
    """What to evaluate, and how; names as the command line takes them.

    dataset, root, split: see `open_dataset`; split None leaves it to the protocol. as_background: categories that count
    as background. limit: only the first so many images. protocol: the preset; switches: what differs from it, see
    `changed`. tagger: see `tagger_named`. captions: "nouns" or "sentences", which only scenes have. model, recipe,
    device, dtype, overrides: see `Segmenter.from_pretrained`. batch: images of a unit of work, which go through the
    denoiser together. threads: of torch in each process, on a CPU. prices, together: see `TaggerOptions`.
    """

    dataset: str
    root: Path | None = None
    split: str | None = None
    as_background: tuple[str, ...] = ()
    limit: int | None = None
    protocol: str = "honest"
    switches: tuple[str, ...] = ()
    tagger: str = "oracle"
    captions: str = NOUNS
    model: str = "bundled"
    recipe: str = "goca"
    device: str | None = None
    dtype: str | None = None
    batch: int = 8
    threads: int = 1
    overrides: dict[str, Any] = field(default_factory=dict)
    prices: Prices | None = None
    together: int = 4

    def open(self) -> Dataset:
        """The images to evaluate. Raises GocaError for what there is not."""
        check_captions(self.captions)
        if self.captions == SENTENCES and (self.dataset != "scenes" or self.tagger != "oracle" or self.as_background):
            raise GocaError('sentences are those of the scenes with their oracle tags: say captions "nouns"')
        dataset = open_dataset(self.dataset, self.root, split_of(self.protocol, self.dataset, self.split))
        dataset = narrowed(dataset, self.as_background)
        return replace(dataset, samples=dataset.samples[: self.limit])

    def protocol_of(self, dataset: Dataset, tags: str) -> Protocol:
        """The protocol, whole. Raises GocaError where the preset does not know the data set, or for an odd switch."""
        preset = replace(
            PRESETS[self.protocol](dataset, tags), captions=self.captions, as_background=self.as_background
        )
        return changed(preset, self.switches)

    def segmenter(self) -> Segmenter:
        """The model, loaded; on a CPU, torch is set to `threads` threads from then on."""
        recipe = recipe_named(self.recipe)
        loaded = Segmenter.from_pretrained(
            self.model, recipe, self.device, self.dtype, batch=self.batch, **self.overrides
        )
        if torch.device(loaded.backbone.device).type == "cpu":
            torch.set_num_threads(self.threads)
        return loaded

    @property
    def tags_ahead(self) -> bool:
        """Whether the tagger is asked before the model is."""
        return self.tagger.partition(":")[0] in AHEAD

    def tagger_for(self, segmenter: Segmenter | None, captions: Path | None = None) -> Tagger:
        """The tagger. segmenter: whose model "self" is. captions: the file in which some save what they say.

        Raises GocaError for one there is not.
        """
        if self.tagger == "oracle":
            return SceneOracle() if self.dataset == "scenes" else OracleTagger()
        options = TaggerOptions(
            captions=captions, prices=self.prices, concurrency=self.together, batch=self.batch, segmenter=segmenter
        )
        return tagger_named(self.tagger, options)

    def evaluator(self, protocol: Protocol) -> Evaluator:
        """Ready to work, in whatever process this is. protocol: as the process that leads the run has it."""
        dataset = self.open()
        segmenter = self.segmenter()
        tagger = Silent(protocol.tags) if self.tags_ahead else self.tagger_for(segmenter)
        return Evaluator(segmenter, dataset, tagger, protocol)


@dataclass(frozen=True)
class Silent:
    """Stands in for a tagger that was asked before, by another process."""

    name: str

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        raise GocaError(f'"{self.name}" was not asked about "{sample.id}": run again')


def listing(dataset: Dataset) -> str:
    """A fingerprint of which images a data set has, in their order."""
    return blake2b("\n".join(sample.id for sample in dataset.samples).encode(), digest_size=8).hexdigest()


def units(dataset: Dataset, batch: int) -> list[tuple[Sample, ...]]:
    """The images in fixed groups, each of which is done as a whole: whoever does them, no batch is composed
    otherwise, so that every figure is the same to the last digit.
    """
    return [dataset.samples[start : start + batch] for start in range(0, len(dataset.samples), batch)]
