"""One attention as the tap hands it on, and how joint attention is laid out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from goca.maths import Grid


@dataclass(frozen=True)
class AttentionCall:
    """One attention of one image, as it was computed.

    `block` is the path, inside the denoiser, of the transformer block that owns the attention; the self- and the
    cross-attention of a block share it. `q` and `output` (what the attention gave, by heads) are the pixels' alone; of
    the keys, `text` are those of the text and `image` those of the pixels: one of the two in self- and
    cross-attention, both in joint attention, where `text_output` is what the attention gave the text. `query` is what
    the module's `to_q` gave, before any norm and position encoding; None where it has none of its own. `mask` is
    additive. `projection` is the output projection by heads (bias left out), where text is read. `grid` is the
    image's grid of pixels in that layer.
    """

    block: str
    q: Float[Tensor, "head pixel dim"]
    k: Float[Tensor, "head key dim"]
    v: Float[Tensor, "head key dim"]
    output: Float[Tensor, "head pixel dim"]
    text_output: Float[Tensor, "head token dim"] | None
    query: Float[Tensor, "pixel channel"] | None
    text: slice | None
    image: slice | None
    mask: Float[Tensor, "#head #pixel key"] | None
    scale: float
    projection: Float[Tensor, "head dim model"] | None
    grid: Grid

    @property
    def kind(self) -> Literal["self", "cross", "joint"]:
        """What the queries, which are pixels, look at: pixels, text, or both."""
        if self.text is None:
            return "self"
        return "cross" if self.image is None else "joint"


@dataclass(frozen=True)
class JointLayout:
    """How a model with joint attention lays out its sequence: text before the pixels, or behind them.

    unimodal_blocks: paths of blocks, by their beginnings, where words or pixels are among themselves. multiple: pixels are padded
    to a multiple of so many. pad_to_attr: an attribute of the denoiser, to whose number the pixels of an image that is not
    square are padded. packed_text: the pixels of an image follow its own text at once, however long the other texts of the
    batch are; what is left of its row is masked.
    """

    text_first: bool
    unimodal_blocks: tuple[str, ...] = ()
    multiple: int = 1
    pad_to_attr: str | None = None
    packed_text: bool = False

    def padded(self, denoiser: nn.Module, grid: Grid) -> int:
        """How many positions the pixels of a grid take."""
        pixels = grid[0] * grid[1]
        if self.pad_to_attr is not None and grid[0] != grid[1]:
            return int(getattr(denoiser, self.pad_to_attr))
        return -(-pixels // self.multiple) * self.multiple


Sink = Callable[[int, AttentionCall], None]
"""Takes (index of the image in the batch, its call)."""
