"""What one pixel attends to: the words, ranked, and the places of the image that its patch looks at."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor

from goca.errors import GocaError
from goca.imaging import draw, html
from goca.maths import Grid
from goca.text.tokens import Token


class WordShare(NamedTuple):
    """What a word has of a pixel's attention.

    Attributes:
        word: A word of the prompt, wherever it is said, or a class.
        share: Of what all words together have, 0 to 1; the shares of a pixel sum to 1.
        attention: Of all the pixel's attention to the text, special tokens and padding included, 0 to 1.
    """

    word: str
    share: float
    attention: float


@dataclass(frozen=True, eq=False)
class PixelAttention:
    """What a pixel attends to.

    Attributes:
        x, y: The pixel, from the image's top left corner.
        words: The words, those with the largest share first.
        affinity: Where the pixel's patch looks, (height, width) on the grid of the maps: its row of the self-attention
            that refines them, averaged over heads and layers; None where the recipe refines nothing. Values are 0 or
            more; they are not normalised.
        image: The image.
    """

    x: int
    y: int
    words: tuple[WordShare, ...]
    affinity: Float32[np.ndarray, "height width"] | None
    image: Image.Image

    def __repr__(self) -> str:
        listed = ", ".join(f"{word} {share:.0%}" for word, share, _ in self.words)
        return f"PixelAttention(({self.x}, {self.y}): {listed})"

    def _repr_html_(self) -> str:
        """What a notebook shows: where the patch looks, and the words."""
        rows = [(word, f"{share:.1%}", f"{attention:.2%}") for word, share, attention in self.words]
        image = None if self.affinity is None else self.heatmap()
        return html.figure(repr(self), image, ("word", "share of the words", "of all attention"), rows)

    @property
    def looks(self) -> Float32[np.ndarray, "height width"]:
        """`affinity`; GocaError where the recipe refines nothing."""
        if self.affinity is None:
            raise GocaError("the recipe refines nothing, so no self-attention is kept: choose another recipe")
        return self.affinity

    def heatmap(self) -> Image.Image:
        """The image under `affinity`, from nothing (dark) to the most (bright), with a ring around the pixel.

        Raises:
            GocaError: The recipe refines nothing.
        """
        heat = draw.heatmap(self.image, self.looks / max(float(self.looks.max()), 1e-12))
        return draw.ringed(heat, self.x, self.y)

    def marked(self) -> Image.Image:
        """`heatmap()`; where the recipe refines nothing, the image itself with the ring."""
        if self.affinity is None:
            return draw.ringed(self.image.convert("RGB"), self.x, self.y)
        return self.heatmap()


def ranked(columns: Mapping[int, float], words: Mapping[str, Collection[int]]) -> tuple[WordShare, ...]:
    """Words by what they have of a pixel's attention; columns: what each of their tokens has.

    A token of two words counts for both; their shares are of the sum over words.
    """
    taken = {word: sum(columns[token] for token in indices) for word, indices in words.items()}
    total = sum(taken.values())
    shares = [WordShare(word, part / total if total else 0.0, part) for word, part in taken.items()]
    return tuple(sorted(shares, key=lambda entry: -entry.share))


def sinks(tokens: Sequence[Token], means: Mapping[int, float]) -> dict[str, float]:
    """What special tokens have of the image's attention, by name, those with the most first.

    Args:
        tokens: All that are attended to.
        means: {index: the token's part of all attention, averaged over the image}; 0 for others.
    """
    words = {token.index for token in tokens if not token.special}
    # Two encoders may share an index.
    names = {token.index: token.text for token in reversed(tokens) if token.index not in words}
    shares = dict.fromkeys(names.values(), 0.0)
    for number, name in names.items():
        shares[name] += means.get(number, 0.0)
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def cell_of(
    x: SupportsIndex, y: SupportsIndex, image: Image.Image, grid: Grid, shares: tuple[float, float] = (1.0, 1.0)
) -> tuple[int, int]:
    """The (row, column) of the grid's cell under a pixel of an image; `shares` of its (height, width) are shown.

    Raises:
        GocaError: The image has no such pixel.
    """
    check_pixel(x, y, image)
    place = []
    for position, side, cells, share in zip((y, x), (image.height, image.width), grid, shares, strict=True):
        middle = 0.5 + ((index(position) + 0.5) / side - 0.5) * share
        place.append(min(int(middle * cells), cells - 1))
    return place[0], place[1]


def check_pixel(x: SupportsIndex, y: SupportsIndex, image: Image.Image) -> None:
    """Raise GocaError unless the image has such a pixel."""
    for position, side in ((x, image.width), (y, image.height)):
        if not isinstance(position, SupportsIndex) or not 0 <= index(position) < side:
            raise GocaError(
                f"there is no pixel ({x!r}, {y!r}): x goes from 0 to {image.width - 1}, y from 0 to {image.height - 1}",
                "at",
            )


def array(maps: Float[Tensor, "*any"]) -> Float32[np.ndarray, "*any"]:
    """A tensor as an array of its own."""
    return maps.detach().float().cpu().numpy().copy()  # of a part, the whole is not kept
