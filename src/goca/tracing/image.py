"""An image that was traced while a pipeline made it: heat maps of its prompt's words, labelled masks, weights."""

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from goca import export
from goca.aggregation import scores
from goca.errors import GocaError
from goca.imaging import draw, images
from goca.imaging.images import ImageLike
from goca.maths.background import label
from goca.maths.rescale import TokenMass, rescale, share
from goca.maths.resize import centre
from goca.maths.windows import Windows
from goca.recipe import AUTO, Plan, Recipe
from goca.request import background_of, check_rivals
from goca.segmentation import ScoreMaps, Segmentation
from goca.storage.atomic import write_atomic
from goca.text.token_spans import Classes, NounTokens, Word, nouns, occurrences, spoken, words
from goca.tracing.collected import Asked, Collected, Step

GREY = (128, 128, 128)
"""The canvas of an image that was not decoded."""

LONGEST = 255
"""Bytes in a file's name."""


class TracedImage:
    """One image that a traced pipeline made, and what the words of its prompt looked at.

    image: the image as the pipeline returned it; grey where it returned latents. With `padding_mask_crop` it is the
    part that was painted anew, for that is what the denoiser saw, and not the whole that the pipeline pastes it into.
    """

    def __init__(self, collected: Collected) -> None:
        self.collected = collected
        height, width = collected.size
        self.image = Image.new("RGB", (width, height), GREY)

    @property
    def prompt(self) -> str:
        return self.collected.said.prompt

    @property
    def steps(self) -> tuple[Step, ...]:
        """The passes that were read, with the weights of their layers and heads."""
        return tuple(self.collected.steps)

    @cached_property
    def _spoken(self) -> dict[Word, tuple[int, ...]]:
        return spoken(self.collected.said.texts)

    def words(self) -> tuple[Word, ...]:
        """The words of the prompt that have a map, in its order, stop words apart; a word may occur more than once.

        Words are told apart by what is no letter. Scripts that write no spaces, such as Chinese, Japanese or Thai, give
        one word for each clause; `map` finds the same clause only, so put spaces between the words of such a prompt.
        """
        return tuple(self._spoken)

    @torch.no_grad()
    def map(self, word: str | Word, occurrence: int | None = None) -> Float32[np.ndarray, "height width"]:
        """A word's map on the common grid, rescaled as the recipe says (to [0, 1] in all recipes here), not refined.

        word: one of the prompt, or several in a row ("traffic light"). occurrence: which one, from 1; by default all
        together, or what a `Word` says, also as text ("cat#2"). Raises GocaError, listing the words, for
        one that is not there.
        """
        columns = self._columns(*self._asked(word, occurrence))
        content = {column for some in self._spoken.values() for column in some} | set(columns)
        background_classes = (tuple(sorted(content - set(columns))),)
        asked = NounTokens(
            self.prompt, (columns,), background_classes if background_classes[0] else (), self.collected.columns
        )
        seen = self.collected.token_mass(asked)
        first = TokenMass(seen.raw[:1], seen.content, seen.prompt)
        # With one word its share is 1 everywhere and says nothing.
        steps = [step for step in self.collected.plan.rescale if step is not share or asked.background_classes]
        return self._framed(rescale(first, steps), self.image)[0].cpu().numpy()

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
        """Label the image with words of its prompt; arguments are as in `Segmenter.__call__`.

        image: shown in the result instead of the pipeline's own. recipe: another way to rescale, refine and settle the
        background; it must weigh heads and layers as the recipe of the trace does. Raises GocaError for what is not in
        the prompt, listing its words, and for whatever else cannot be done.
        """
        wanted, background_nouns = nouns(classes, background_classes)
        check_rivals(background, wanted)
        for noun in (*wanted, *background_nouns):
            if not any(occurrences(word, self.collected.said.texts) for word in noun.words):
                raise self._missing(noun.name)
        asked = words(self.prompt, self.collected.said.texts, wanted, background_nouns, named=True)
        ran = self._ran(recipe)
        shown = self.image if image is None else images.load(image)
        maps = scores(ran, Windows.whole(self.collected.grid), [Asked(self.collected, asked)])
        grid = self._framed(maps.classes, shown)
        background_scores = None if maps.background is None else self._framed(maps.background[None], shown)[0]
        rule = background_of(background, ran, has_background_classes=bool(background_nouns))
        labels = label(grid, background_scores, rule, (shown.height, shown.width))
        return Segmentation(
            image=shown,
            classes=tuple(classes),
            labels=labels.cpu().numpy().astype(np.uint16),
            scores=ScoreMaps(
                grid.cpu().numpy(), None if background_scores is None else background_scores.cpu().numpy()
            ),
            plan=replace(ran, background=rule),
        )

    def overlay(self, *classes: str) -> Image.Image:
        """The image under the coloured masks of some words, with a legend."""
        return self.segment(classes).overlay()

    def to_json(self) -> dict[str, Any]:
        """The prompt, its words, the passes with the weights of layers and heads, and the plan."""
        return {
            "prompt": self.prompt,
            "words": [str(word) for word in self.words()],
            "height": self.image.height,
            "width": self.image.width,
            "steps": [vars(step) for step in self.steps],
            "plan": self._ran(None).to_json(),
        }

    def save(self, folder: str | Path, stem: str = "image") -> tuple[Path, ...]:
        """Write STEM.png, STEM.WORD.heatmap.png for each word (the second "cat" is "cat-2") and, last, STEM.json; their
        paths. NounTokens that are too long for a file's name are cut.

        All are written, or none. Raises GocaError where the folder cannot be written.
        """
        drawn = {f"{stem}.png": self.image}
        for word in self.words():
            drawn[_named(stem, str(word).replace("#", "-"))] = self.heatmap(word)
        files = {Path(folder) / name: export.png(drawing) for name, drawing in drawn.items()}
        told = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        paths = {**files, Path(folder) / f"{stem}.json": told.encode()}
        write_atomic(paths)
        return tuple(paths)

    def _asked(self, word: object, occurrence: object) -> tuple[str, int | None]:
        """A name, and which of its occurrences or None for all."""
        if not isinstance(occurrence, Integral | None) or isinstance(occurrence, bool):
            raise GocaError(f"occurrence {occurrence!r} is no number: give one from 1, or leave it out for all")
        chosen = None if occurrence is None else int(occurrence)
        if isinstance(word, Word):
            return word.name, word.occurrence if chosen is None else chosen
        if not isinstance(word, str):
            raise GocaError(f'{word!r} is no word: give one of the prompt, such as "{next(iter(self.words()), "cat")}"')
        numbered = re.fullmatch(r"(.+)#([0-9]{1,9})", word, re.DOTALL)
        if numbered is None or chosen is not None or occurrences(word, self.collected.said.texts):
            return word, chosen
        return numbered[1], int(numbered[2])

    def _columns(self, name: str, occurrence: int | None) -> tuple[int, ...]:
        found = [columns for columns in occurrences(name, self.collected.said.texts) if columns]
        if not found:
            raise self._missing(name)
        if occurrence is None:
            return tuple(sorted({column for columns in found for column in columns}))
        if not 1 <= occurrence <= len(found):
            raise GocaError(f'"{name}" is {len(found)} times in the prompt: give an occurrence from 1 to {len(found)}')
        return found[occurrence - 1]

    def _missing(self, name: str) -> GocaError:
        known = ", ".join(dict.fromkeys(word.name for word in self.words())) or "nothing, it has no words"
        return GocaError(f'the prompt "{self.prompt}" does not say "{name}", so it has no map: choose from {known}')

    def _ran(self, recipe: Recipe | str | None) -> Plan:
        """The plan of the trace, with what another recipe does differently once everything is collected."""
        collected = self.collected
        steps = collected.steps
        made = replace(
            collected.plan,
            timestep=tuple(round(step.timestep) for step in steps),
            size=round(math.sqrt(collected.size[0] * collected.size[1])),
            captions=(self.prompt,),
            notes=(*collected.plan.notes, f"traced over {len({step.step for step in steps})} of the sampler's steps"),
        )
        if recipe is None:
            return made
        asked = collected.planner.plan(recipe)
        alike = all(getattr(asked, name) == getattr(made, name) for name in ("heads", "layers", "cross", "reference"))
        if not alike or (asked.order and (asked.refine, True) != (made.refine, made.order > 0)):
            raise GocaError(
                f'recipe "{asked.recipe}" reads the attention otherwise than the trace did: name it where the trace '
                "begins, trace(pipe, recipe=...)"
            )
        origin = {**made.origin, **{name: asked.origin[name] for name in ("rescale", "order", "background")}}
        return replace(
            made,
            recipe=asked.recipe,
            rescale=asked.rescale,
            order=asked.order,
            background=asked.background,
            origin=origin,
        )

    def _framed(self, maps: Tensor, shown: Image.Image) -> Tensor:
        """The part of the maps that the image shows: a pipeline that works at sizes of its own cuts its edges off."""
        height, width = self.collected.size
        scale = max(shown.height / height, shown.width / width)
        return centre(maps, (shown.height / (height * scale), shown.width / (width * scale)))


def _named(stem: str, word: str) -> str:
    """A heat map's file name, within the limit of file systems; a word that is cut ends in a digest of the whole."""
    room = LONGEST - len(os.fsencode(f"{stem}..heatmap.png"))
    if len(word.encode()) > room:
        digest = blake2b(word.encode(), digest_size=4).hexdigest()
        word = word.encode()[: max(0, room - 9)].decode(errors="ignore") + "-" + digest
    return f"{stem}.{word}.heatmap.png"
