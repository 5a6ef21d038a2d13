"""The questions that a probe asks of a denoiser nobody has listed.

Each is answered by comparing passes in which one thing was turned into its opposite: a latent cell moves the query of
the pixel that it belongs to, a token's embedding moves the key of its column.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isclose, lcm, prod
from typing import Any

from PIL import Image

from goca.diffusion.attention_call import JointLayout
from goca.diffusion.families import unet
from goca.diffusion.families.spec import Family, TextInput
from goca.diffusion.timesteps import NUM_TRAIN_TIMESTEPS
from goca.errors import GocaError
from goca.maths import Grid
from goca.probing.passes import CAPTIONS, TIMESTEP, Asking, Look, encoder_of, moved

TOLD_EXACTLY = 1e-2
"""Half precision rounds a timestep by less than this part of it."""
MULTIPLES = (8, 16, 32, 64)
"""Of how many pixels a pipeline may want its sides to be multiples."""


@dataclass(frozen=True)
class Word:
    """A token of a caption, by its tokenizer and its place there; a look without and one with it turned."""

    tokenizer: str
    place: int
    plain: Look
    turned: Look


def is_unet(denoiser: Any) -> bool:
    """Whether a denoiser has levels, each half as fine as the one before."""
    return hasattr(denoiser, "up_blocks") and hasattr(denoiser.config, "block_out_channels")


class Probe:
    """The questions in their order; each raises GocaError, saying what is missing, where there is no answer."""

    def __init__(self, asking: Asking) -> None:
        self.asking, self.backbone = asking, asking.backbone
        self.heard = {name for name in self.backbone.pipeline.components if encoder_of(self.backbone.pipeline, name)}

    def answers(self) -> tuple[Family, int]:
        """All of them: the row, and the latent cells a side of a pixel, 0 where levels differ in that."""
        self.backbone.family = replace(self.backbone.family, cell=self._how_large_is_a_cell())
        self.step, self.plain = self._in_what_steps_do_sizes_go()
        self.backbone.family = replace(self.backbone.family, edm_sigmas=self._is_noise_counted_against_the_image())
        self.size = (3 * self.step, 5 * self.step)
        self.attentions = self.plain.attentions
        linear_self_attention = self._is_some_attention_linear()
        self.far = self.asking.look(self.size, CAPTIONS[0], cell=(self.size[0] - 1, self.size[1] - 1)).attentions
        self.here = self._where_do_pixels_read_words()
        first, cells = self._how_do_pixels_stand()
        joint = self._how_are_words_and_pixels_joined(first, cells) if self._are_they_joined() else None
        if joint is None:
            self._is_all_else_alike(first)
        texts = self._which_columns_are_the_words(joint, self._pixels(self.size, cells, joint.multiple) if joint else 0)
        return replace(
            self.backbone.family, texts=texts, joint=joint, linear_self_attention=linear_self_attention
        ), cells

    def _how_large_is_a_cell(self) -> int:
        """Pixels a side: some pipelines count what they pack."""
        (_, _, height, width) = self.backbone.latents([Image.new("RGB", (192, 128))], (128, 192)).shape
        if 128 % height or 128 // height * width != 192:
            raise GocaError(f"its VAE makes {height} x {width} cells of 128 x 192 pixels")
        return 128 // int(height)

    def _in_what_steps_do_sizes_go(self) -> tuple[int, Look]:
        """The fewest latent cells by which sides may differ, and a first look.

        A pipeline that asks twice, for the sake of guidance, even at guidance 1, is told 0.
        """
        guessed, errors = self.backbone.family, []
        guidances: tuple[dict[str, Any], ...] = ({}, {"guidance_scale": 0.0})
        for more in guidances:
            self.backbone.family = replace(guessed, options={**guessed.options, **more})
            for multiple in MULTIPLES:
                step = lcm(multiple, 2 * self.backbone.vae_scale_factor) // self.backbone.vae_scale_factor
                try:
                    look = self.asking.look((3 * step, 5 * step), CAPTIONS[0])
                except Exception as error:  # others' code: whatever it raises is an answer
                    errors.append(error)
                else:
                    self.backbone.family = replace(self.backbone.family, multiple=multiple)
                    return step, look
        raise errors[len(MULTIPLES) - 1]  # at the guidance that others are asked at, and a size that hardly any refuses

    def _is_noise_counted_against_the_image(self) -> bool:
        """Whether a flow model is told s / (1 + s) where it was to be told s, or what is left of it, or thousandths."""
        told = self.plain.told
        if not self.backbone.family.flow or told is None:
            return False
        share = TIMESTEP / NUM_TRAIN_TIMESTEPS
        usual = {share, 1 - share, TIMESTEP, NUM_TRAIN_TIMESTEPS - TIMESTEP}
        if any(isclose(told, one, rel_tol=TOLD_EXACTLY) for one in usual):
            return False
        edm_sigmas = share / (1 + share)
        if any(isclose(told, one, rel_tol=TOLD_EXACTLY) for one in (edm_sigmas, edm_sigmas * NUM_TRAIN_TIMESTEPS)):
            return True
        raise GocaError(f"its pipeline tells it a noise of {told:g} where {share:g} of the latent is noise")

    def _is_some_attention_linear(self) -> bool:
        """Whether dense features have to stand in for self-attention; any other attention has to be seen."""
        for site in self.plain.silent:
            processor = type(getattr(site.module, "processor", None)).__name__
            if "Linear" not in processor:
                raise GocaError(
                    f"attention of {site.block} is not seen: it runs without scaled_dot_product_attention "
                    f"(processor {processor})"
                )
        return bool(self.plain.silent)

    def _where_do_pixels_read_words(self) -> int:
        """The first attention whose queries hang on a pixel and whose keys hang on a word; whose words, is `heard`."""
        words = list(self._turned(self.plain, CAPTIONS[0], 1))
        for place, one in enumerate(self.attentions):
            asks = moved(one.q, self.far[place].q)
            if asks and one.site is None:
                raise GocaError("pixels attend outside of the modules that have a processor, so no block owns it")
            heard = {word.tokenizer for word in words if moved(one.k, word.turned.attentions[place].k)}
            if asks and heard:
                self.heard = heard
                return place
        raise GocaError(
            "its text columns cannot be told: turning the embedding of a token moved no key that a pixel looks at"
        )

    def _turned(self, plain: Look, caption: str, third: int, last: int | None = None) -> Iterator[Word]:
        """For each tokenizer of a caption, the token after so many thirds of it turned.

        Never the last token, which may be pooled.
        """
        for name, tokens in plain.prompt.texts.items():
            if name in self.heard:
                own = [place for place, special in enumerate(tokens.special) if not special]
                place = own[third * len(own) // 3]
                yield Word(
                    name, place, plain, self.asking.look(self.size, caption, token=(name, tokens, place), last=last)
                )

    def _are_they_joined(self) -> bool:
        """Whether pixels are among the keys beside the words."""
        one = self.attentions[self.here]
        return bool(moved(one.k, self.far[self.here].k))

    def _how_do_pixels_stand(self) -> tuple[int, int]:
        """The first pixel's position, and the latent cells a side of a pixel (0: as many as the levels have)."""
        one = self.attentions[self.here]
        corners = [
            self.asking.look(self.size, CAPTIONS[0], cell=cell, last=self.here).attentions
            for cell in ((0, 0), (0, self.size[1] - 1))
        ]
        places = [moved(one.q, turned[self.here].q) for turned in (*corners, self.far)]
        if not all(places):
            raise GocaError("a corner of the latent moved no query: its pixels stand in no order that can be told")
        first, right, last = (place[0] for place in places)
        if is_unet(self.backbone.denoiser):
            grids = {prod(grid): grid for grid in unet.grids(self.backbone.denoiser, self.size)}
            height, width = grids.get(len(one.q), (1, 1))
            # Convolutions spread what was turned, so only the quarter is asked for.
            quarters = [(2 * (at // width) >= height, 2 * (at % width) >= width) for at in (first, right, last)]
            if quarters != [(False, False), (False, True), (True, True)]:
                raise GocaError(f"its {len(one.q)} positions are not the rows of a grid {sorted(grids.values())}")
            return 0, 0
        width, count = right - first + 1, last - first + 1
        height = count // width if width > 0 else 0
        cells = self.size[0] // height if height else 0
        if (cells * height, cells * width) != self.size or height * width != count:
            raise GocaError(
                f"the corners of {self.size[0]} x {self.size[1]} cells stand at positions {first}, {right} and {last}: "
                "not the rows of a grid of square patches"
            )
        return first, cells

    def _pixels(self, size: Grid, cells: int, multiple: int = 1) -> int:
        return -(-(size[0] // cells) * (size[1] // cells) // multiple) * multiple

    def _how_are_words_and_pixels_joined(self, first: int, cells: int) -> JointLayout:
        """The layout of the sequence that both are in."""
        one = self.attentions[self.here]
        length = len(one.k)
        if len(one.q) != length:
            raise GocaError(f"{len(one.q)} positions ask and {length} answer: pixels and words are not one sequence")
        # With fewer pixels than a padding adds, what the lengths differ by tells the padding.
        small = (2 * self.step, self.step)
        less = length - len(self.asking.look(small, CAPTIONS[0], last=self.here).attentions[self.here].k)
        for multiple in (2**power for power in range(9)):
            padded = self._pixels(self.size, cells, multiple)
            if padded - self._pixels(small, cells, multiple) == less:
                break
        else:
            raise GocaError(f"{self.size} latent cells take {less} positions more than {small}: padded in no known way")
        if first not in (0, length - padded):
            raise GocaError(f"its pixels start at position {first} of {length}: neither first nor last")
        return JointLayout(
            first > 0, self._what_stands_aside(length, {self._pixels(self.size, cells), padded}), multiple
        )

    def _what_stands_aside(self, length: int, pixels: set[int]) -> tuple[str, ...]:
        """The blocks, by the beginnings of their paths, in which words or pixels are among themselves."""
        owned = [(one.site.block, place, one) for place, one in enumerate(self.attentions) if one.site is not None]
        together = {block for block, _, one in owned if len(one.q) == length}
        for block, place, one in owned:
            hangs = moved(one.q, self.far[place].q)
            if len(one.q) not in (length, *pixels) and (hangs or block in together):
                raise GocaError(f"{block} attends at {len(one.q)} positions, where others do at {length}")
        alone = tuple(dict.fromkeys(block.partition(".")[0] for block, *_ in owned if block not in together))
        if mixed := [block for block in together if alone and block.startswith(alone)]:
            raise GocaError(f"{mixed[0]} attends to words and pixels together where others of its kind do not")
        return alone

    def _is_all_else_alike(self, first: int) -> None:
        """Whether each attention is one of a grid's pixels, to themselves or to a text that its module was handed."""
        pixels, columns = len(self.attentions[self.here].q), len(self.attentions[self.here].k)
        timesteps = unet.grids(self.backbone.denoiser, self.size) if is_unet(self.backbone.denoiser) else ()
        counts = {prod(grid) for grid in timesteps} or {pixels}
        if first:
            raise GocaError(f"{first} positions stand before its pixels, which look at the text alone")
        for one in self.attentions:
            if one.site is None:
                continue
            if len(one.q) not in counts:
                raise GocaError(f"attention of {one.site.block} has {len(one.q)} positions, where pixels are {counts}")
            if len(one.k) != (columns if one.handed else len(one.q)):
                raise GocaError(
                    f"attention of {one.site.block} has {len(one.k)} keys, which are neither its pixels nor the text "
                    "that it was handed (encoder_hidden_states)"
                )

    def _which_columns_are_the_words(self, joint: JointLayout | None, pixels: int) -> tuple[TextInput, ...]:
        """Where each tokenizer's tokens stand among the text's columns; one whose tokens move no key is left out.

        pixels: how many keys are not the text's.
        """
        here = self.here
        plain = [self.plain, *(self.asking.look(self.size, caption, last=here) for caption in CAPTIONS[1:])]
        asked = zip((plain[0], *plain), (CAPTIONS[0], *CAPTIONS), (2, 1, 1, 1), strict=True)
        words = [word for look, caption, third in asked for word in self._turned(look, caption, third, here)]
        before = 0 if joint is None or joint.text_first else pixels
        widths = {len(look.attentions[here].k) - pixels for look in plain}
        limited = self.backbone.family.texts[0].respects_max_sequence_length
        texts: list[TextInput] = []
        for name in dict.fromkeys(word.tokenizer for word in words):
            starts, ends = [], []
            for word in (word for word in words if word.tokenizer == name):
                columns = moved(word.plain.attentions[here].k, word.turned.attentions[here].k)
                starts.append({column - before - word.place for column in columns})
                ends.append(word.plain.prompt.length - len(word.plain.prompt.texts[name].ids))
            # Words may have met each other before: what moves beside the column is not in one place for all of them.
            fixed = set.intersection(*starts)
            if len(fixed) > 1:
                raise GocaError(f"each token of its {name} has {len(fixed)} columns, from {sorted(fixed)}")
            if fixed:
                (start,) = fixed
                most = min(widths) - start if len(widths) == 1 and not limited else None
                texts.append(TextInput(name, start=start, respects_max_sequence_length=limited, max_tokens=most))
            elif all(end in found for end, found in zip(ends, starts, strict=True)):
                texts.append(TextInput(name, right_aligned=True, respects_max_sequence_length=limited))
            elif any(starts):
                raise GocaError(
                    f"its text columns cannot be told: in captions of several lengths the first token of its {name} "
                    f"would have column {' or '.join(str(sorted(found)) for found in starts)}"
                )
        return tuple(texts)
