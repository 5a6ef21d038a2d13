"""One call of softmax attention, as the attention hook passes it on."""

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
        output: The attention's output for the pixels, before the output projection.
        text_output: The output of joint attention for the text, likewise; None in self- and cross-attention.
        query: The output of the module's `to_q`, before norms and position encoding; None if it is not for pixels only.
        text: Positions of the text's keys; None in self-attention.
        image: Positions of the pixels' keys; None in cross-attention.
        mask: The additive mask; None if nothing is masked.
        scale: Factor of q k^T before the softmax.
        projection: The weight of the output projection, without bias; None in self-attention.
        grid: (height, width) of the image's pixels in this layer.
        reference: 0 for the generated image, from 1 for reference images that a pipeline gives the denoiser; `image`
            and `grid` are then those of the reference image, whose pixels are the queries.
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
