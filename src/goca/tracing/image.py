"""An image that was traced while a pipeline made it: heat maps of its prompt's words, labelled masks, weights."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from goca.class_maps import ClassMaps, peaks_of, refined, rescaled
from goca.errors import GocaError
from goca.exports.json_document import document
from goca.imaging import draw, html, images
from goca.imaging.images import ImageLike
from goca.imaging.sheet import Cell, contact_sheet
from goca.maths.resize import centre
from goca.plan import Plan
from goca.recipe import AUTO, Recipe
from goca.request import background_of
from goca.segmentation import ScoreMaps, Segmentation, label_pixels
from goca.storage.atomic import short_stem, write_into
from goca.text.nouns import Classes, check_rivals, parse_nouns
from goca.text.spelling import plain
from goca.text.token_spans import NounTokens, Word, find_noun_tokens, shortened, token_indices_of, why_absent
from goca.tracing.steps import TracedAttention, TracedStep

GREY = (128, 128, 128)
"""The canvas of an image that was not decoded."""

NUMBERED = re.compile(r"(.+)#([0-9]{1,9})", re.DOTALL)
"""A word and its occurrence, as in "cat#2"."""
SHOWN_WORDS = 6
"""How many heat maps a notebook shows of an image."""
MAX_WORDS = 20
"""Words that a message lists."""
HEATMAP = ".heatmap.png"
"""How the file name of a heat map ends."""


class TracedImage:
    """One image that a traced pipeline made, and what the words of its prompt attended to."""

    def __init__(self, attention: TracedAttention) -> None:
        self._attention = attention
        self.decoded: Image.Image | None = None

    def __repr__(self) -> str:
        prompt = shorten(self.prompt, 60, placeholder=" …")
        return (
            f'{type(self).__name__}({self.image.width} x {self.image.height} px, {len(self.steps)} calls, "{prompt}")'
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the image beside the heat maps of its first words."""
        words = self.words()[:SHOWN_WORDS]
        cells = [Cell(self.image, "image"), *(Cell(self.heatmap(word), str(word)) for word in words)]
        return html.figure(repr(self), contact_sheet([cells]))

    @property
    def attention(self) -> TracedAttention:
        """What was collected of the image's denoiser calls."""
        return self._attention

    @property
    def image(self) -> Image.Image:
        """The image as the pipeline returned it, grey where it returned latents.

        With `padding_mask_crop` it is the part that was painted anew, which is what the denoiser saw, and not the whole
        that the pipeline pastes it into.
        """
        if self.decoded is None:
            height, width = self.attention.size
            return Image.new("RGB", (width, height), GREY)
        return self.decoded.convert("RGB")

    @property
    def prompt(self) -> str:
        """The prompt of the image."""
        return self.attention.prompt.prompt

    @property
    def steps(self) -> tuple[TracedStep, ...]:
        """The traced denoiser calls, with the weights of their layers and heads."""
        return tuple(self.attention.steps)

    def words(self) -> tuple[Word, ...]:
        """The words of the prompt that have a map, in its order, without stop words; a word may occur more than once.

        Words end where letters end. Scripts without spaces, such as Chinese, Japanese or Thai, give one word for each
        clause; `map` finds the same clause only, so put spaces between the words of such a prompt.
        """
        return tuple(self.attention.word_indices)

    @torch.no_grad()
    def map(self, word: str | Word, occurrence: int | None = None) -> Float32[np.ndarray, "height width"]:
        """A word's map, rescaled as the recipe says (to [0, 1] in all recipes here) but not refined.

        Args:
            word: A word of the prompt, or several in a row ("traffic light"); "cat#2" is the second "cat".
            occurrence: Which occurrence of it, from 1; by default what a `Word` says, or all together.

        Returns:
            The map on the common grid of the attention, cut to what the image shows.

        Raises:
            GocaError: The word has no map: the prompt does not say it, or says it behind the tokenizer's limit, or only
                another text of the call does. The message says which, and lists the words that have one.
        """
        indices = self._indices(word, occurrence)
        content = {index for indices in self.attention.word_indices.values() for index in indices} | set(indices)
        rivals = tuple(sorted(content - set(indices)))
        nouns = NounTokens(self.prompt, (indices,), (rivals,) if rivals else (), self.attention.token_indices)
        maps = rescaled(self.attention.plan, self.attention.token_mass(nouns), nouns)
        return self._cropped(maps[:1], self.image)[0].cpu().numpy()

    def heatmap(self, word: str | Word, occurrence: int | None = None) -> Image.Image:
        """The image under a word's map, from dark (0) to bright (1); see `map`."""
        return draw.heatmap(self.image, self.map(word, occurrence))

    @torch.no_grad()
    def segment(
        self,
        classes: Classes,
        background_classes: Sequence[str] = (),
        background: str | float | None = AUTO,
        image: ImageLike | None = None,
        recipe: Recipe | str | None = None,
    ) -> Segmentation:
        """Label the image with words of its prompt; see `Segmenter.__call__` for the first three arguments.

        Args:
            classes: Words of the prompt that get a label.
            background_classes: Words of the prompt whose pixels become background.
            background: The background rule.
            image: Shown in the result instead of the pipeline's own.
            recipe: Another way to rescale, refine and find the background; it must weigh heads and layers as the recipe
                of the trace does.

        Raises:
            GocaError: A name has no map, as in `map`, or an argument is not valid.
        """
        wanted, background_nouns = parse_nouns(classes, background_classes)
        check_rivals(background, wanted)
        prompt = self.attention.prompt
        for noun in (*wanted, *background_nouns):
            if not any(any(token_indices_of(word, prompt.texts)) for word in noun.words):
                raise self._missing(noun.name, noun.words)
        tokens = find_noun_tokens(prompt.prompt, prompt.texts, wanted, background_nouns, named=True)
        plan = self._plan(recipe)
        shown = self.image if image is None else images.load(image)
        mass = self.attention.token_mass(tokens)
        maps = refined(plan, self.attention.affinity, rescaled(plan, mass, tokens), tokens, peaks_of(mass))
        background_map = None if maps.background is None else self._cropped(maps.background[None], shown)[0]
        cropped = ClassMaps(self._cropped(maps.classes, shown), background_map, maps.peaks)
        rule = background_of(background, plan, has_background_classes=bool(background_nouns))
        (labels,) = label_pixels(cropped, [rule], shown, refine_edges=False)
        ran = plan.as_run(rule, background != AUTO, [noun.name for noun in background_nouns], plan.captions, plan.notes)
        names = tuple(noun.name for noun in wanted)
        return Segmentation(shown, names, labels, ScoreMaps.of(cropped), ran, tuple(cropped.peaks.tolist()))

    def overlay(self, *classes: str) -> Image.Image:
        """The image under the coloured masks of some words, with a legend."""
        return self.segment(classes).overlay()

    def to_json(self) -> dict[str, Any]:
        """The prompt, its words, the traced calls with the weights of layers and heads, and the plan."""
        image = self.image
        return {
            "prompt": self.prompt,
            "words": [str(word) for word in self.words()],
            "height": image.height,
            "width": image.width,
            "steps": [vars(step) for step in self.steps],
            "plan": self._plan(None).to_json(),
        }

    def save(self, folder: str | Path, stem: str = "image") -> tuple[Path, ...]:
        """Write STEM.png, STEM.WORD.heatmap.png for each word (the second "cat" is "cat-2") and, last, STEM.json.

        Words that are too long for a file's name are cut. All files are written, or none.

        Returns:
            The paths.

        Raises:
            GocaError: The folder cannot be written.
        """
        drawings = {f"{stem}.png": self.image}
        for word in self.words():
            drawings[heatmap_name(stem, str(word).replace("#", "-"))] = self.heatmap(word)
        files = {name: draw.png(drawing) for name, drawing in drawings.items()}
        return write_into(folder, {**files, f"{stem}.json": document(self.to_json())})

    def _indices(self, word: str | Word, occurrence: int | None) -> tuple[int, ...]:
        """The token indices of a word, or of one of its occurrences."""
        texts = self.attention.prompt.texts
        name = word.name if isinstance(word, Word) else word
        if not isinstance(name, str) or not plain(name) or not isinstance(occurrence, int | None):
            raise GocaError(
                f"{word!r} with occurrence {occurrence!r} is not a word and a number: give a word of the prompt, and "
                "which of its occurrences from 1"
            )
        if isinstance(word, Word):
            occurrence = word.occurrence if occurrence is None else occurrence
            word = word.name
        elif occurrence is None and not token_indices_of(word, texts) and (numbered := NUMBERED.fullmatch(word)):
            word, occurrence = numbered[1], int(numbered[2])
        places = token_indices_of(word, texts)
        by_occurrence = [indices for indices in places if indices]
        if not by_occurrence:
            raise self._missing(word, (word,))
        if occurrence is None:
            return tuple(sorted({index for indices in by_occurrence for index in indices}))
        count = len(by_occurrence)
        if not 1 <= occurrence <= count:
            where = "the prompt" if count == len(places) else "the part of the prompt that its tokens hold"
            times = "once" if count == 1 else f"{count} times"
            raise GocaError(f'"{shortened(word)}" is {times} in {where}: give an occurrence from 1 to {count}')
        return by_occurrence[occurrence - 1]

    def _missing(self, name: str, words: Sequence[str]) -> GocaError:
        """Why a name has no map; `words` are all that it may be called."""
        prompt = self.attention.prompt
        reason = why_absent(words, prompt.texts, prompt.prompt, prompt.unread)
        if reason is None:
            reason = f'the prompt "{shortened(self.prompt)}" does not say "{shortened(name)}", so it has no map'
        names = list(dict.fromkeys(word.name for word in self.words()))
        more = ["..."] if len(names) > MAX_WORDS else []
        listed = ", ".join([*map(shortened, names[:MAX_WORDS]), *more]) or "nothing, it has no words"
        return GocaError(f"{reason}{', or' if ': ' in reason else ':'} choose from {listed}")

    def _plan(self, recipe: Recipe | str | None) -> Plan:
        """The plan of the trace, with what another recipe does differently once everything is collected."""
        attention = self.attention
        steps = len({step.step for step in attention.steps})
        traced = replace(
            attention.plan,
            timestep=tuple(round(step.timestep) for step in attention.steps),
            size=round(math.sqrt(attention.size[0] * attention.size[1])),
            captions=(self.prompt,),
            notes=(*attention.plan.notes, f"traced over {steps} of the sampler's steps"),
        )
        if recipe is None:
            return traced
        other = attention.plan_for(recipe)
        fixed = ("heads", "layers", "cross", "reference", *(["refine"] if other.order else []))
        differs = any(getattr(other, name) != getattr(traced, name) for name in fixed)
        if differs or (other.order and not traced.order):
            raise GocaError(
                f'recipe "{other.recipe}" reads the attention otherwise than the trace did: name it where the trace '
                "begins, trace(pipe, recipe=...)"
            )
        changed = {name: getattr(other, name) for name in ("rescale", "order", "background")}
        origin = {**traced.origin, **{name: other.origin[name] for name in changed}}
        return replace(traced, recipe=other.recipe, origin=origin, **changed)

    def _cropped(self, maps: Tensor, shown: Image.Image) -> Tensor:
        """The part of the maps that the image shows: a pipeline that works at sizes of its own cuts its edges off."""
        height, width = self.attention.size
        scale = max(shown.height / height, shown.width / width)
        return centre(maps, (shown.height / (height * scale), shown.width / (width * scale)))


def heatmap_name(stem: str, word: str) -> str:
    """The file name of a word's heat map, within the limit of file systems."""
    return short_stem(f"{stem}.{word}", [HEATMAP]) + HEATMAP
