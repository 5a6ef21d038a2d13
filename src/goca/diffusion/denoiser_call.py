"""What a listener hears: prompts as they were encoded, and the passes that attend to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from goca.diffusion.attention_call import Sink
from goca.maths import Grid
from goca.text.tokens import Tokens


@dataclass(frozen=True)
class PromptTokens:
    """The prompt of an image, and what the tokenizers made of it that are attended to."""

    prompt: str
    texts: tuple[Tokens, ...]


@dataclass(frozen=True)
class DenoiserCall:
    """A denoiser call that attends to the prompts.

    generation: which of the pipeline's calls, from 0. step: which of the sampler's steps, from 0; samplers of second
    order make two passes a step. PNDM, which looks twice at its second timestep, makes n + 1, and they count as n + 1
    steps. timestep: the timestep. latent: (height, width) in cells. prompts: of each image.
    """

    generation: int
    step: int
    timestep: float
    latent: Grid
    prompts: tuple[PromptTokens, ...]


@runtime_checkable
class Observer(Protocol):
    """Whom a listener tells."""

    def misses(self) -> None:
        """A pass attends to none of the prompts that were encoded."""

    def starts(self, one: DenoiserCall) -> Sink | None:
        """A pass begins: whoever takes the attention of its images, or None to let it go by."""

    def ends(self, one: DenoiserCall) -> None:
        """A pass whose attention was taken is complete."""

    def breaks(self, one: DenoiserCall) -> None:
        """A pass whose attention was taken has failed."""

    def shows(self, generation: int, images: Sequence[Image.Image]) -> None:
        """The pipeline has made its images."""


@dataclass(frozen=True)
class Room:
    """What latents were prepared for: how many images, 0 if unknown, and their (height, width) in pixels."""

    images: int = 0
    size: Grid | None = None


@dataclass(frozen=True)
class Encoded:
    """EncodedPrompts that were encoded, and no pass attended to yet.

    captions: of each tokenizer. answers: the rows of each encoder that was asked for them. texts: what the tokenizers
    made of them.
    """

    prompts: tuple[str, ...] | None
    captions: Mapping[str, tuple[str, ...]]
    answers: list[list[Tensor]] = field(default_factory=list)
    texts: dict[str, list[Tokens]] = field(default_factory=dict)

    def own(self, inputs: Sequence[Any], images: int) -> dict[int, int]:
        """{row of a denoiser call: its prompt}, of the rows into which the prompts' embeddings come in again.

        All of them, one row for each image and in their order: a negative prompt may be the same as another image's
        prompt. Where it is the same as the prompt, the last ones, as pipelines order them.
        """
        for texts in map(rows_of, inputs):
            for rows in filter(None, self.answers):
                count = images or len(rows)
                wanted = [rows[i * len(rows) // count] for i in range(count)]
                for start in range(len(texts) - count, -1, -1):
                    if all(map(_equal, wanted, texts[start:])):
                        return {start + i: i * len(self.prompts or rows) // count for i in range(count)}
        return {}


@dataclass
class Generation:
    """One call of the pipeline: the prompts that it attends to, and the passes it has made."""

    index: int
    encoded: Encoded
    room: Room
    passes: int = 0
    _last: tuple[Tensor, Tensor] | None = None

    def again(self, latent: Tensor, timestep: Any) -> bool:
        """Whether the last pass was for this very latent: then this is another look within one step."""
        now = latent, torch.as_tensor(timestep)
        return self._last is not None and all(map(torch.equal, self._last, now))

    def passed(self, latent: Tensor, timestep: Any) -> None:
        """A pass begins."""
        self._last = latent, torch.as_tensor(timestep)
        self.passes += 1


def rows_of(embedded: Any) -> list[Tensor]:
    """The embedding of each row, [token, model]; none for what is no such thing."""
    if isinstance(embedded, Tensor):
        return list(embedded) if embedded.ndim == 3 else []
    listed = isinstance(embedded, list) and all(isinstance(one, Tensor) and one.ndim == 2 for one in embedded)
    return embedded if listed else []


def _equal(known: Tensor, row: Tensor) -> bool:
    return known.shape == row.shape and torch.equal(known.to(row), row)
