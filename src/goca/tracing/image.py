"""An image that was traced while a pipeline generated it: heat maps of its prompt's words, labelled masks, weights."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from operator import index
from pathlib import Path
from textwrap import shorten
from typing import Any, SupportsIndex

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
from goca.inspection.pixel import PixelAttention, array, cell_of, ranked, sinks
from goca.maths.frames import apart, together
from goca.maths.rescale import TokenMass
from goca.maths.resize import centre
from goca.plan import Plan
from goca.recipe import AUTO, Recipe
from goca.request import background_of
from goca.segmentation import ScoreMaps, Segmentation, label_pixels
from goca.storage.atomic import short_stem, write_into
from goca.text.nouns import Classes, check_rivals, parse_nouns
from goca.text.token_spans import (
    NounTokens,
    Word,
    find_noun_tokens,
    prompt_words,
    token_indices_of,
)
from goca.text.tokens import Token
from goca.tracing.animation import Animation
from goca.tracing.selection import indices_of, missing, require_special, texts_of
from goca.tracing.steps import TracedAttention, TracedStep
from goca.tracing.tensors import write_tensors

GREY = (128, 128, 128)
"""The canvas of an image that was not decoded."""

SHOWN_WORDS = 6
"""Most heat maps of an image that a notebook shows."""
HEATMAP = ".heatmap.png"
"""The suffix of a heat map's file name."""


class TracedImage:
    """An image that a traced pipeline generated, with the attention to the words of its prompt."""

    def __init__(self, attention: TracedAttention) -> None:
        self._attention = attention
        self.decoded: Image.Image | None = None

    def __repr__(self) -> str:
        prompt = shorten(self.prompt, 60, placeholder=" …")
        return (
            f'{type(self).__name__}({self.image.width} x {self.image.height} px, {len(self.steps)} calls, "{prompt}")'
        )

    def _repr_html_(self) -> str:
        """HTML for notebooks: the image beside the heat maps of its first words."""
        words = self.words()[:SHOWN_WORDS]
        cells = [Cell(self.image, "image"), *(Cell(self.heatmap(word), str(word)) for word in words)]
        return html.gallery(repr(self), cells)

    @property
    def attention(self) -> TracedAttention:
        """The attention collected from the image's denoiser calls."""
        return self._attention

    @property
    def image(self) -> Image.Image:
        """The image as the pipeline returned it, or grey if it returned latents.

        With `padding_mask_crop` it is the part that was inpainted, as the denoiser saw it, and not the whole into which
        the pipeline pastes it.
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
        """The words of the prompt that have a map, in order, without stop words; a word may occur more than once.

        Words end where letters end. Scripts without spaces, such as Chinese, Japanese or Thai, give one word for each
        clause; `map` only finds whole clauses, so put spaces between the words of such a prompt.
        """
        return tuple(self.attention.word_indices)

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens that the denoiser attends to, including special ones."""
        return self.attention.tokens

    @property
    def negative(self) -> "TracedImage":
        """The same image, with the attention to the words of its negative prompt.

        Raises:
            GocaError: It was not kept, or there was none.
        """
        attention = self.attention.negative
        if attention is None:
            if self.attention.keep.negative:
                raise GocaError("the image has no negative prompt as text: give the pipeline one, and use guidance")
            raise GocaError('the negative prompt is not kept: ask for it with trace(pipe, keep="negative")')
        negative = TracedImage(attention)
        negative.decoded = self.image
        return negative

    @property
    def references(self) -> "tuple[TracedImage, ...]":
        """The reference images that the denoiser got beside the image, with their attention to the prompt's words.

        Such as an image that is edited: the words' maps on it. They are grey unless the pipeline was given just these
        images.

        Raises:
            GocaError: They were not kept.
        """
        if not self.attention.keep.references:
            raise GocaError('reference images are not kept: ask for them with trace(pipe, keep="references")')
        references = tuple(map(TracedImage, self.attention.references))
        given = self.attention.given
        for reference, image in zip(references, given if len(given) == len(references) else (), strict=False):
            reference.decoded = image.resize(reference.image.size)
        return references

    @property
    def sinks(self) -> dict[str, float]:
        """{special token: its share of all attention, 0 to 1, averaged over the image}, the largest first.

        Raises:
            GocaError: They are not kept.
        """
        require_special(self.attention)
        attention = self.attention
        means = attention.maps().mean((-2, -1)).tolist()
        return sinks(attention.tokens, dict(zip(attention.token_indices, means, strict=True)))

    @torch.no_grad()
    def map(
        self,
        word: str | Word | None = None,
        occurrence: int | None = None,
        *,
        token: SupportsIndex | None = None,
        encoder: str | None = None,
        step: SupportsIndex | None = None,
    ) -> Float32[np.ndarray, "*frame height width"]:
        """A word's map, rescaled by the recipe (to [0, 1] in all of goca's recipes) but not refined.

        Args:
            word: A word of the prompt, or several in a row ("traffic light"); "cat#2" is the second "cat".
            occurrence: Which occurrence of it, from 1; by default that of a `Word`, or all together.
            token: The index of a single token instead of a word; special tokens need `keep="special"`.
            encoder: Use the tokens of only one text encoder, by its name in the pipeline ("text_encoder_3"), among
                the words that it reads; by default those of all.
            step: The map in one sampling step, from 0, with `keep="steps"`; by default in all.

        Returns:
            The map on the common grid of the attention, cropped to the image; for a video (frame, height, width)
            on the grid of its patches, one frame for each of the latent's, rescaled over all of them.

        Raises:
            GocaError: The word has no map: the prompt does not say it, or has it beyond the tokenizer's limit, or only
                another text of the call does. The message says which, and lists the words with a map. Or what is
                asked for is not kept.
        """
        indices = indices_of(self.attention, word, occurrence, token, encoder)
        words = prompt_words(texts_of(self.attention, encoder))
        content = {index for of_word in words.values() for index in of_word} | set(indices)
        rivals = tuple(sorted(content - set(indices)))
        nouns = NounTokens(self.prompt, (indices,), (rivals,) if rivals else (), self.attention.prompt_indices)
        mass, plan = self.attention.token_mass(nouns, step), self.attention.plan
        if self.attention.frames > 1:
            mass = TokenMass(*(apart(part, self.attention.frames) for part in mass))
            return array(together(rescaled(plan, mass, nouns)[0], self.attention.frames))
        return array(self._cropped(rescaled(plan, mass, nouns)[:1], self.image)[0])

    @torch.no_grad()
    def layer_map(
        self,
        word: str | Word | None = None,
        layer: str = "",
        head: SupportsIndex | None = None,
        *,
        occurrence: int | None = None,
        token: SupportsIndex | None = None,
        encoder: str | None = None,
    ) -> Float32[np.ndarray, "*frame height width"]:
        """A word's map in one layer, on the layer's grid: the mean over its tokens of their share of all attention.

        Arguments that are not listed here are as in `map`.

        Args:
            layer: The path of its block, as `steps` has it, with `keep="layers"`.
            head: One of its heads, from 0, with `keep="heads"`; by default all, by their weights.

        Raises:
            GocaError: As for `map`.
        """
        layer_maps = self.attention.layer_maps
        if layer_maps is None:
            raise GocaError('only the sum over layers is kept: keep each with trace(pipe, keep="layers")')
        part = layer_maps.map(layer, indices_of(self.attention, word, occurrence, token, encoder), head)
        if (frames := self.attention.frames) > 1:
            return array(part.unflatten(0, (frames, -1)))
        return array(self._cropped(part[None], self.image)[0])

    def heatmap(
        self,
        word: str | Word | None = None,
        occurrence: int | None = None,
        *,
        token: SupportsIndex | None = None,
        encoder: str | None = None,
        step: SupportsIndex | None = None,
    ) -> Image.Image:
        """The image under a word's map, from dark (0) to bright (1); for a video its middle frame. See `map`."""
        word_map = self.map(word, occurrence, token=token, encoder=encoder, step=step)
        return draw.heatmap(self.image, word_map if word_map.ndim == 2 else word_map[len(word_map) // 2])

    def animation(
        self,
        word: str | Word | None = None,
        occurrence: int | None = None,
        *,
        token: SupportsIndex | None = None,
        encoder: str | None = None,
    ) -> Animation:
        """A word's heat map step by step, with `keep="steps"`, each rescaled separately; for a video, frame by frame.

        Without a word or token, the image and the heat maps of its first six words side by side.
        """
        if word is None and token is None:
            words = self.words()[:SHOWN_WORDS]
            parts = [self.animation(each, encoder=encoder).frames for each in words]
            count = max(map(len, parts), default=0)
            images = [Cell(self.image, f"step {number} of {count}") for number in range(1, 1 + count)]
            columns = [map(partial(Cell, caption=str(each)), part) for each, part in zip(words, parts, strict=True)]
            return Animation(tuple(contact_sheet([row]) for row in zip(images, *columns, strict=True)))
        if self.attention.frames > 1:
            maps = self.map(word, occurrence, token=token, encoder=encoder)
            frames = self.attention.decoded or (self.image,) * len(maps)
            return Animation(tuple(draw.heatmap(*pair) for pair in zip(frames, maps, strict=True)))
        numbers = dict.fromkeys(call.step for call in self.steps)
        heatmaps = (self.heatmap(word, occurrence, token=token, encoder=encoder, step=number) for number in numbers)
        return Animation(tuple(heatmaps))

    @torch.no_grad()
    def at(self, x: SupportsIndex, y: SupportsIndex, step: SupportsIndex | None = None) -> PixelAttention:
        """What a pixel attends to: the words, ranked, and the places that its patch attends to, over all steps.

        Args:
            x: The pixel's column, from the image's left.
            y: Its row, from the top.
            step: The words in one sampling step, with `keep="steps"`; by default in all.

        Raises:
            GocaError: The image has no such pixel, or the step's maps are not kept.
        """
        self._require_image()
        attention, image = self.attention, self.image
        row, column = cell_of(x, y, image, attention.grid, self._shown(image))
        parts = attention.maps(step)[:, row, column].tolist()
        words: dict[str, set[int]] = {}
        for word, indices in attention.word_indices.items():
            words.setdefault(word.name, set()).update(indices)
        shares = ranked(dict(zip(attention.token_indices, parts, strict=True)), words)
        looks = attention.affinity.row(row * attention.grid[1] + column, attention.grid)
        affinity = None if looks is None else array(self._cropped(looks[None], image)[0])
        return PixelAttention(index(x), index(y), shares, affinity, image)

    @torch.no_grad()
    def segment(
        self,
        classes: Classes,
        background_classes: Sequence[str] = (),
        background: str | float | None = AUTO,
        image: ImageLike | None = None,
        recipe: Recipe | str | None = None,
        step: SupportsIndex | None = None,
    ) -> Segmentation:
        """Label the image with words of its prompt; see `Segmenter.__call__` for the first three arguments.

        Args:
            classes: Words of the prompt that get a label.
            background_classes: Words of the prompt whose pixels become background.
            background: The background rule.
            image: Shown in the result instead of the pipeline's own.
            recipe: Another way to rescale, refine and find the background; it must weigh heads and layers, on a common
                grid, as the recipe of the trace does.
            step: The maps of one sampling step, with `keep="steps"`; the self-attention that refines is of all steps.

        Raises:
            GocaError: A name has no map, as in `map`, or an argument is not valid.
        """
        self._require_image()
        wanted, background_nouns = parse_nouns(classes, background_classes)
        check_rivals(background, wanted)
        prompt = self.attention.prompt
        for noun in (*wanted, *background_nouns):
            if not any(any(token_indices_of(word, prompt.texts)) for word in noun.words):
                raise missing(self.attention, noun.name, noun.words)
        tokens = find_noun_tokens(prompt.prompt, prompt.texts, wanted, background_nouns, named=True)
        plan = self._plan(recipe)
        shown = self.image if image is None else images.load(image)
        mass = self.attention.token_mass(tokens, step)
        affinity = self.attention.affinity.under(plan.affinity, self.attention.grid)
        maps = refined(plan, affinity, rescaled(plan, mass, tokens), tokens, peaks_of(mass))
        background_map = None if maps.background is None else self._cropped(maps.background[None], shown)[0]
        cropped = ClassMaps(self._cropped(maps.classes, shown), background_map, maps.peaks)
        rule = background_of(background, plan, has_background_classes=bool(background_nouns))
        (labels,) = label_pixels(cropped, [rule], shown, plan.refine_edges)
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

        Words that are too long for a file name are cut. All files are written, or none.

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

    def save_tensors(self, path: str | Path) -> Path:
        """Write everything that is kept to one safetensors file, described by its metadata.

        docs/inspecting.md describes the tensors and the metadata. The self-attention is not among them.

        Returns:
            The path.

        Raises:
            GocaError: The path does not end in .safetensors, or cannot be written.
        """
        return write_tensors(path, self.attention, self._plan(None))

    def _require_image(self) -> None:
        if self.attention.frames > 1:
            raise GocaError("a video only has maps and animations: generate one frame, num_frames=1, for this")

    def _plan(self, recipe: Recipe | str | None) -> Plan:
        """The plan of the trace, with another recipe's rules for what follows collection."""
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
        refining = ["refine"] if other.order else []
        fixed = ("heads", "layers", "cross", "reference", "reference_channels", "grid", *refining)
        differs = any(getattr(other, name) != getattr(traced, name) for name in fixed)
        if differs or (other.order and not traced.order):
            raise GocaError(
                f'recipe "{other.recipe}" reads attention differently than the trace did: name it where the trace '
                "starts, trace(pipe, recipe=...)"
            )
        changed = {
            name: getattr(other, name) for name in ("rescale", "order", "affinity", "background", "refine_edges")
        }
        origin = {**traced.origin, **{name: other.origin[name] for name in changed}}
        notes = tuple(dict.fromkeys((*traced.notes, *other.notes)))
        return replace(traced, recipe=other.recipe, origin=origin, notes=notes, **changed)

    def _cropped(self, maps: Tensor, shown: Image.Image) -> Tensor:
        """The part of the maps that the image shows: a pipeline that rounds sizes crops the edges."""
        return centre(maps, self._shown(shown))

    def _shown(self, image: Image.Image) -> tuple[float, float]:
        """The shares of the attention's (height, width) that an image shows."""
        height, width = self.attention.size
        scale = max(image.height / height, image.width / width)
        return image.height / (height * scale), image.width / (width * scale)


def heatmap_name(stem: str, word: str) -> str:
    """The file name of a word's heat map, within the limit of file systems."""
    return short_stem(f"{stem}.{word}", [HEATMAP]) + HEATMAP
