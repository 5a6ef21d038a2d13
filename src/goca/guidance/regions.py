"""The regions of an image for guidance, and its foreground, from attention or from the user."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt16
from torch import Tensor

from goca.aggregation import INDISTINCT, AttentionAggregator
from goca.maths import Grid
from goca.maths import guidance as maths
from goca.text.token_spans import Indices
from goca.text.tokens import Tokens


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of the tokens that a tokenizer puts before a text, after it, and as padding."""

    starts: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()
    pads: frozenset[int] = frozenset()

    @classmethod
    def of(cls, tokenizer: Any) -> "SpecialTokens":
        """The special tokens of a transformers tokenizer."""

        def numbers(*names: str) -> frozenset[int]:
            values = (getattr(tokenizer, name, None) for name in names)
            return frozenset(value for value in values if value is not None)

        return cls(
            numbers("bos_token_id", "cls_token_id"), numbers("eos_token_id", "sep_token_id"), numbers("pad_token_id")
        )

    def is_filling(self, text: Tokens, index: int) -> bool:
        """Whether a token before a prompt is padding, or part of a template, whose characters are blanked."""
        start, end = text.offsets[index]
        return text.ids[index] in self.pads or (start < end and not text.text[start:end].strip())


Specials = Mapping[str, SpecialTokens]
"""{tokenizer, by its name in the pipeline: its special tokens}."""


def start_column(texts: Sequence[Tokens], specials: Specials) -> int | None:
    """The column of the first start token that the denoiser attends to."""
    columns = (
        text.start + index
        for text in texts
        for index, token in enumerate(text.ids)
        if token in specials[text.tokenizer].starts
    )
    return next((column for column in columns if column >= 0), None)


@dataclass(frozen=True)
class Columns:
    """The columns of an image's global map that guidance uses.

    Attributes:
        competing: Tokens that compete for each pixel: in each text all up to the last of the prompt, which includes
            CLIP's start token and T5's lone gaps, but not a template or padding before it.
        prompt: Tokens of the prompt, including stop words and punctuation, without special tokens and templates.
        start: The start token; None if the denoiser gets none.
        end: The end token after the prompt; without one, what follows the prompt.
    """

    competing: Indices
    prompt: Indices
    start: int | None
    end: int

    @classmethod
    def of(cls, texts: Sequence[Tokens], specials: Specials) -> "Columns":
        """Find the columns in each tokenizer's tokens of a prompt."""
        competing, prompt, ends = set[int](), set[int](), list[int]()
        for text in texts:
            positions = [index for index, flag in enumerate(text.special) if not flag]
            if not positions:
                continue
            last, count, special = positions[-1], len(text.special), specials[text.tokenizer]
            before = (index for index in range(positions[0]) if not special.is_filling(text, index))
            competing.update(text.start + index for index in (*before, *range(positions[0], last + 1)))
            prompt.update(text.start + index for index in positions)
            behind = (index for index, token in enumerate(text.ids) if index > last and token in special.ends)
            ends.append(text.start + next(behind, min(last + 1, count - 1)))
        competing = {index for index in competing if index >= 0}  # a pipeline may cut tokens off at the front
        return cls(
            tuple(sorted(competing)), tuple(sorted(prompt)), start_column(texts, specials), ends[0] if ends else 0
        )


@dataclass(frozen=True)
class Regions:
    """The regions of an image, and its foreground, on the grid of the prediction.

    Attributes:
        masks: The pixels of each region; a pixel with several equally strong tokens is in all their regions.
        foreground: The pixels of the foreground.
        labels: The region at each pixel: a token index, or the user's label.
    """

    masks: Bool[Tensor, "region height width"]
    foreground: Bool[Tensor, "height width"]
    labels: UInt16[np.ndarray, "height width"]

    @classmethod
    def read(
        cls, columns: Columns, cond: AttentionAggregator, start_map: Float[Tensor, "high wide"] | None, grid: Grid
    ) -> "Regions":
        """Read the regions from the attention of a step.

        Args:
            columns: Columns of the prompt.
            cond: Attention of the branch with the prompt.
            start_map: The start token's column in the branch without the prompt; None without one. It is constant if
                that branch attends to zeros, as SDXL's does by default, and the prompt's own is then used.
            grid: Grid of the prediction.
        """
        global_map, order = cond.global_map(), cond.plan.order
        affinity = cond.affinity.under(cond.plan.affinity, cond.grid)
        competing = torch.stack([column(global_map, index) for index in columns.competing])
        prompt = torch.stack([column(global_map, index) for index in columns.prompt]).sum(0)
        masks = maths.winners(maths.token_maps(competing, prompt, cond.plan.rescale, affinity, order))
        nothing = column(global_map, columns.end if columns.start is None else columns.start)
        if start_map is not None and float(start_map.amax() - start_map.amin()) > INDISTINCT * float(start_map.amax()):
            nothing = start_map
        foreground = maths.foreground_of(maths.foreground_map(nothing, affinity, order))
        return cls.of(maths.to_grid(masks, grid), maths.to_grid(foreground, grid), columns.competing)

    @classmethod
    def drawn(cls, labels: Int[Tensor, "high wide"], grid: Grid, like: Tensor) -> "Regions":
        """The regions of a user's label map, in which 0 is the background."""
        labels = maths.to_grid(labels, grid).to(like.device)
        return cls.of(maths.regions_of(labels), labels != 0, labels.unique().tolist())

    @classmethod
    def of(
        cls, masks: Bool[Tensor, "_ height width"], foreground: Bool[Tensor, "height width"], numbers: Sequence[int]
    ) -> "Regions":
        """Numbered regions; empty ones, which most tokens of a long prompt have, are left out."""
        present = masks.any(-1).any(-1).cpu()
        labels = np.array(numbers, dtype=np.uint16)[present.numpy()][masks[present].int().argmax(0).cpu().numpy()]
        return cls(masks[present], foreground, labels)


def column(global_map: Float[Tensor, "token high wide"], index: int) -> Float[Tensor, "high wide"]:
    """A token's map; zeros if the pipeline masks it at the end of a text."""
    return global_map[index] if index < len(global_map) else torch.zeros_like(global_map[0])


def column_names(texts: Sequence[Tokens], columns: Columns) -> dict[int, str]:
    """{competing column: its word}."""
    names = dict.fromkeys(columns.competing, "<special>")
    if columns.start in names:
        names[columns.start] = "<start>"
    for text in texts:
        spans = zip(text.offsets, text.special, strict=True)
        names |= {text.start + index: text.text[a:b].strip() for index, ((a, b), flag) in enumerate(spans) if not flag}
    return names
