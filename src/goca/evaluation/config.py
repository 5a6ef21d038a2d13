"""An evaluation as plain values: what a process on this machine or another needs to do its part of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from goca import bundled
from goca.errors import GocaError
from goca.evaluation.choices import caption_style, split_of
from goca.evaluation.datasets import open_dataset
from goca.evaluation.datasets.base import Dataset
from goca.evaluation.evaluator import Evaluator
from goca.evaluation.oracle import OracleTagger
from goca.evaluation.protocol import PRESETS, Protocol, changed
from goca.evaluation.remap import narrowed
from goca.recipe import recipe_named
from goca.segmenter import Segmenter
from goca.self_tagging import tagger_for
from goca.tagging import GIVEN, is_self
from goca.tagging.base import Prices, Tagger
from goca.tagging.caption_nouns import HONEST, captioned

AHEAD = ("vlm", "local", "clip")
"""Taggers that are asked for all images before the first is segmented, by one process."""
MOST_NAMES = 12
"""Classes that a message lists."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What to evaluate, and how; names as the command line takes them.

    Attributes:
        dataset: its name, see `open_dataset`.
        root: the folder where it lies; None for the scenes, which ship with goca.
        split: None leaves it to the protocol.
        as_background: categories that count as background.
        limit: only the first N images, 1 or more.
        protocol: the preset.
        switches: what differs from it, see `goca.evaluation.protocol.changed`.
        tagger: "oracle", or as `tagger_named` takes it.
        captions: "nouns", or "sentences", which only scenes have.
        model: as `Segmenter.from_pretrained` takes it; so are recipe, device, dtype and overrides.
        batch: images that go through the denoiser together, 1 or more.
        threads: of torch in each process, on a CPU.
        prices: of a vlm tagger, see `goca.tagging.base.Prices`.
        concurrency: questions to a vlm tagger at a time, 1 or more.
    """

    dataset: str
    root: Path | None = None
    split: str | None = None
    as_background: tuple[str, ...] = ()
    limit: int | None = None
    protocol: str = "honest"
    switches: tuple[str, ...] = ()
    tagger: str = "oracle"
    captions: str = "nouns"
    model: str = bundled.DEFAULT
    recipe: str = "goca"
    device: str | None = None
    dtype: str | None = None
    batch: int = 8
    threads: int = 1
    overrides: Mapping[str, Any] = field(default_factory=dict)
    prices: Prices | None = None
    concurrency: int = 4

    def open_dataset(self) -> Dataset:
        """The images to evaluate. Raises GocaError for what there is not."""
        scenes = self.dataset == "scenes" and self.tagger == "oracle" and not self.as_background
        if caption_style(self.captions) == "sentences" and not scenes:
            raise GocaError('sentences are those of the scenes with their oracle tags: say captions "nouns"')
        dataset = open_dataset(self.dataset, self.root, split_of(self.protocol, self.dataset, self.split))
        dataset = narrowed(dataset, self.as_background)
        return replace(dataset, samples=dataset.samples[: self.limit])

    def protocol_for(self, dataset: Dataset, tags: str) -> Protocol:
        """The protocol, whole. Raises GocaError where the preset does not know the data set, or for an odd switch."""
        captions = caption_style(self.captions)
        preset = replace(PRESETS[self.protocol](dataset, tags), captions=captions, as_background=self.as_background)
        return changed(preset, self.switches)

    def check_given(self, dataset: Dataset, protocol: Protocol) -> None:
        """Raise GocaError for a list of nouns, the same for every image, of which none is a class of the data set."""
        kind, _, caption = self.tagger.partition(":")
        words = replace(HONEST, synonyms=protocol.nouns.synonyms)
        if kind == GIVEN and not captioned(caption, protocol.categories(dataset.categories), words).classes:
            names = ", ".join(dataset.class_names[:MOST_NAMES])
            more = f" and {len(dataset.class_names) - MOST_NAMES} more" * (len(dataset.class_names) > MOST_NAMES)
            raise GocaError(f'"{caption.strip()}" names no class of {dataset.name}: there are {names}{more}', "tagger")

    def load_segmenter(self) -> Segmenter:
        """The model, loaded; on a CPU, torch is set to `threads` threads from then on."""
        recipe = recipe_named(self.recipe)
        segmenter = Segmenter.from_pretrained(
            self.model, recipe, device=self.device, dtype=self.dtype, batch=self.batch, **self.overrides
        )
        if torch.device(segmenter.backbone.device).type == "cpu":
            torch.set_num_threads(self.threads)
        return segmenter

    @property
    def tags_ahead(self) -> bool:
        """Whether the tagger is asked before the model is."""
        return self.tagger.partition(":")[0] in AHEAD

    @property
    def tags_itself(self) -> bool:
        """Whether the tagger is the segmenter's model."""
        return is_self(self.tagger)

    def load_tagger(self, segmenter: Segmenter | None, captions: Path | None = None) -> Tagger:
        """The tagger; "self" uses the segmenter's model, and vlm and local save their captions in the file."""
        if self.tagger == "oracle":
            return OracleTagger()
        return tagger_for(
            self.tagger,
            segmenter,
            captions=captions,
            prices=self.prices,
            concurrency=self.concurrency,
            batch=self.batch,
        )

    def load_evaluator(self, protocol: Protocol) -> Evaluator:
        """Ready to work, in whatever process this is. protocol: as the process that leads the run has it."""
        segmenter = self.load_segmenter()
        tagger = None if self.tags_ahead else self.load_tagger(segmenter)
        return Evaluator(segmenter, self.open_dataset(), tagger, protocol)
