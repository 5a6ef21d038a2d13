"""One call of softmax attention, as the attention hook hands it on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from goca.maths import Grid


@dataclass(frozen=True)
class AttentionCall:
    """One attention of one image, as it was computed.

    Attributes:
        block: The path, inside the denoiser, of the transformer block that owns the attention; the self- and the
            cross-attention of a block share it.
        q: The pixels' queries, after norms and position encoding.
        k: The keys, after norms and position encoding.
        v: The values.
        output: What the attention gave the pixels, before the output projection.
        text_output: What joint attention gave the text, likewise; None in self- and cross-attention.
        query: What the module's `to_q` gave, before norms and position encoding; None without one for pixels alone.
        text: Where the text's keys are; None in self-attention.
        image: Where the pixels' keys are; None in cross-attention.
        mask: The additive mask; None where nothing is masked.
        scale: What q k^T is multiplied by before the softmax.
        projection: The weight of the output projection, bias left out; None in self-attention.
        grid: The (height, width) in pixels of the image in this layer.
        reference: 0 for the image that is made, from 1 for those that a pipeline gives the denoiser beside it; `image`
            and `grid` are then of that one, whose pixels are the queries.
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
    reference: int = 0

    @property
    def kind(self) -> Literal["self", "cross", "joint"]:
        """What the pixels attend to: pixels, text, or both."""
        if self.text is None:
            return "self"
        return "cross" if self.image is None else "joint"


Sink = Callable[[int, AttentionCall], None]
"""Takes (index of the image in the batch, its call)."""
