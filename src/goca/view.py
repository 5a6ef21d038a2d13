"""An image under one of its prompts, on its way through the denoiser; and the maps of several such views as one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from goca.aggregation import AttentionAggregator, Maps
from goca.maths import Grid
from goca.maths.windows import Windows
from goca.recipe import Plan
from goca.request import PreparedImage
from goca.text.token_spans import NounTokens


@dataclass(frozen=True)
class Row:
    """One row of a batch: a window of an image under one of its prompts, and the readout that listens to it."""

    latent: Tensor
    caption: str
    size: Grid
    readout: AttentionAggregator


@dataclass(frozen=True)
class View:
    """An image under one of its prompts: the encodings of its windows, and the readouts that listen to them."""

    image: PreparedImage
    words: NounTokens
    latents: Tensor
    mirrored: bool
    readouts: list[AttentionAggregator]

    @classmethod
    def of(cls, plan: Plan, image: PreparedImage, words: NounTokens, latents: Tensor, mirrored: bool) -> "View":
        """A view with a fresh readout for every window."""
        alone = len(latents) == 1
        return cls(
            image, words, latents, mirrored, [AttentionAggregator(plan, words, image.grid, alone) for _ in latents]
        )

    @property
    def windows(self) -> Windows:
        return self.image.windows.mirrored() if self.mirrored else self.image.windows

    def rows(self) -> Iterator[Row]:
        for latent, readout in zip(self.latents.split(1), self.readouts, strict=True):
            yield Row(latent, self.words.caption, self.image.size, readout)


def together(parts: Sequence[Maps], mirrored: bool) -> Maps:
    """The maps of an image's prompts, one after the other; their background_nouns maps are merged by maximum."""
    background_maps = [part.background for part in parts if part.background is not None]
    maps = Maps(
        torch.cat([part.classes for part in parts]), torch.stack(background_maps).amax(0) if background_maps else None
    )
    return maps.mirrored() if mirrored else maps


def mean(maps: Sequence[Maps]) -> Maps:
    """Several looks at one image, averaged."""
    background_maps = [one.background for one in maps if one.background is not None]
    classes = torch.stack([one.classes for one in maps]).mean(0)
    return Maps(classes, torch.stack(background_maps).mean(0) if background_maps else None)


def ensemble_std(maps: Sequence[Maps]) -> Tensor | None:
    """The standard deviation of each class score over several passes [class, height, width]; None for a single pass."""
    return torch.stack([one.classes for one in maps]).std(0, correction=0) if len(maps) > 1 else None
