"""An evaluation as plain values: what a process, on this machine or another, needs to do its part of it."""

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
from goca.recipe import Recipe, recipe_named
from goca.segmenter import Segmenter
from goca.self_tagging import tagger_for
from goca.tagging import GIVEN, is_self
from goca.tagging.base import Prices, Tagger
from goca.tagging.caption_nouns import HONEST, captioned

AHEAD = ("vlm", "local", "clip")
"""Taggers that one process asks about all images before the first is segmented."""
MOST_NAMES = 12
"""Most classes that a message lists."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What to evaluate, and how; names as the command line takes them.

    Attributes:
        dataset: Its name, see `open_dataset`.
        root: Its folder; None for the scenes, which ship with goca.
        split: The split; None leaves it to the protocol.
        as_background: Categories that count as background.
        limit: Use only the first N images, 1 or more.
        protocol: Name of the preset.
        switches: Changes to it, see `goca.evaluation.protocol.changed`.
        tagger: "oracle", or a name for `tagger_named`.
        captions: "nouns", or "sentences", which only scenes have.
        model: As for `Segmenter.from_pretrained`; so are recipe (a name, or a `Recipe` of your own), device, dtype and
            overrides.
        batch: Images per denoiser pass, 1 or more.
        threads: Number of torch threads per process, on a CPU.
        prices: Prices of a vlm tagger, see `goca.tagging.base.Prices`.
        concurrency: Concurrent requests to a vlm tagger, 1 or more.
    """

    dataset: str
    root: Path | str | None = None
    split: str | None = None
    as_background: tuple[str, ...] = ()
    limit: int | None = None
    protocol: str = "honest"
    switches: tuple[str, ...] = ()
    tagger: str = "oracle"
    captions: str = "nouns"
    model: str = bundled.DEFAULT
    recipe: Recipe | str = "goca"
    device: str | None = None
    dtype: str | None = None
    batch: int = 8
    threads: int = 1
    overrides: Mapping[str, Any] = field(default_factory=dict)
    prices: Prices | None = None
    concurrency: int = 4

    def open_dataset(self) -> Dataset:
        """The images to evaluate. Raises GocaError if the data set, root or split is not valid."""
        scenes = self.dataset == "scenes" and self.tagger == "oracle" and not self.as_background
        if caption_style(self.captions) == "sentences" and not scenes:
            raise GocaError('only scenes with oracle tags have sentences: set captions to "nouns"')
        dataset = open_dataset(self.dataset, self.root, split_of(self.protocol, self.dataset, self.split))
        dataset = narrowed(dataset, self.as_background)
        return replace(dataset, samples=dataset.samples[: self.limit])

    def protocol_for(self, dataset: Dataset, tags: str) -> Protocol:
        """The complete protocol. Raises GocaError if the preset lacks the data set, or for an unknown switch."""
        captions = caption_style(self.captions)
        preset = replace(PRESETS[self.protocol](dataset, tags), captions=captions, as_background=self.as_background)
        return changed(preset, self.switches)

    def check_given(self, dataset: Dataset, protocol: Protocol) -> None:
        """Raise GocaError for a fixed list of nouns none of which is a class of the data set."""
        kind, _, caption = self.tagger.partition(":")
        words = replace(HONEST, synonyms=protocol.nouns.synonyms)
        if kind == GIVEN and not captioned(caption, protocol.categories(dataset.categories), words).classes:
            names = ", ".join(dataset.class_names[:MOST_NAMES])
            more = f" and {len(dataset.class_names) - MOST_NAMES} more" * (len(dataset.class_names) > MOST_NAMES)
            raise GocaError(
                f'"{caption.strip()}" names no class of {dataset.name}: choose from {names}{more}', "tagger"
            )

    def load_segmenter(self) -> Segmenter:
        """Load the model; on a CPU, this sets torch to `threads` threads."""
        recipe = recipe_named(self.recipe)
        segmenter = Segmenter.from_pretrained(
            self.model, recipe, device=self.device, dtype=self.dtype, batch=self.batch, **self.overrides
        )
        if torch.device(segmenter.backbone.device).type == "cpu":
            torch.set_num_threads(self.threads)
        return segmenter

    @property
    def tags_ahead(self) -> bool:
        """Whether the tagger is asked about all images before the first is segmented."""
        return self.tagger.partition(":")[0] in AHEAD

    @property
    def tags_itself(self) -> bool:
        """Whether the tagger is the segmenter's own model."""
        return is_self(self.tagger)

    def load_tagger(self, segmenter: Segmenter | None, captions: Path | None = None) -> Tagger:
        """Load the tagger; "self" uses the segmenter's model, and vlm and local save their captions to the file."""
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
        """Load an evaluator in this process. protocol: as in the run's leading process."""
        segmenter = self.load_segmenter()
        tagger = None if self.tags_ahead else self.load_tagger(segmenter)
        return Evaluator(segmenter, self.open_dataset(), tagger, protocol)
