"""What one pixel attends to: the words, ranked, and the places of the image that its patch attends to."""

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
    """A word's share of a pixel's attention.

    Attributes:
        word: A word of the prompt, at all its occurrences, or a class.
        share: Share of the attention that all words together get, 0 to 1; the shares of a pixel sum to 1.
        attention: Share of all the pixel's attention to the text, including special tokens and padding, 0 to 1.
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
        affinity: The places that the pixel's patch attends to, (height, width) on the grid of the maps: its row of the
            self-attention that refines them, averaged over heads and layers; None if the recipe does not refine. Values
            are 0 or more and not normalised.
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
        """HTML for notebooks: the places that the patch attends to, and the words."""
        rows = [(word, f"{share:.1%}", f"{attention:.2%}") for word, share, attention in self.words]
        image = None if self.affinity is None else self.heatmap()
        return html.figure(repr(self), image, ("word", "share of the words", "of all attention"), rows)

    @property
    def looks(self) -> Float32[np.ndarray, "height width"]:
        """`affinity`. Raises GocaError if the recipe does not refine."""
        if self.affinity is None:
            raise GocaError("the recipe does not refine, so no self-attention is kept: choose another recipe")
        return self.affinity

    def heatmap(self) -> Image.Image:
        """The image under `affinity`, from 0 (dark) to the maximum (bright), with a ring around the pixel.

        Raises:
            GocaError: The recipe does not refine.
        """
        heat = draw.heatmap(self.image, self.looks / max(float(self.looks.max()), 1e-12))
        return draw.ringed(heat, self.x, self.y)

    def marked(self) -> Image.Image:
        """`heatmap()`, or the image itself with the ring if the recipe does not refine."""
        if self.affinity is None:
            return draw.ringed(self.image.convert("RGB"), self.x, self.y)
        return self.heatmap()


def ranked(columns: Mapping[int, float], words: Mapping[str, Collection[int]]) -> tuple[WordShare, ...]:
    """Words ranked by their share of a pixel's attention. columns: {token index: its attention}.

    A token of two words counts for both; their shares are of the sum over words.
    """
    taken = {word: sum(columns[token] for token in indices) for word, indices in words.items()}
    total = sum(taken.values())
    shares = [WordShare(word, part / total if total else 0.0, part) for word, part in taken.items()]
    return tuple(sorted(shares, key=lambda entry: -entry.share))


def sinks(tokens: Sequence[Token], means: Mapping[int, float]) -> dict[str, float]:
    """The special tokens' shares of the image's attention, by name, the largest first.

    Args:
        tokens: All tokens that are attended to.
        means: {index: the token's share of all attention, averaged over the image}; 0 for others.
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
    """The (row, column) of the grid's cell under a pixel of an image. shares: of its (height, width) that are shown.

    Raises:
        GocaError: The image has no such pixel.
    """
    check_pixel(x, y, image)
    cell = []
    for position, side, cells, share in zip((y, x), (image.height, image.width), grid, shares, strict=True):
        middle = 0.5 + ((index(position) + 0.5) / side - 0.5) * share
        cell.append(min(int(middle * cells), cells - 1))
    return cell[0], cell[1]


def check_pixel(x: SupportsIndex, y: SupportsIndex, image: Image.Image) -> None:
    """Raise GocaError unless the image has such a pixel."""
    for position, side in ((x, image.width), (y, image.height)):
        if not isinstance(position, SupportsIndex) or not 0 <= index(position) < side:
            raise GocaError(
                f"there is no pixel ({x!r}, {y!r}): x goes from 0 to {image.width - 1}, y from 0 to {image.height - 1}",
                "at",
            )


def array(maps: Float[Tensor, "*any"]) -> Float32[np.ndarray, "*any"]:
    """A copy of a tensor as an array."""
    return maps.detach().float().cpu().numpy().copy()  # a view would keep the whole tensor
