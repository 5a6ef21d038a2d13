"""A denoiser call of a generation, row by row, and the protocol of its observers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Literal, Protocol, SupportsIndex, runtime_checkable

from torch import Tensor

from goca.diffusion.attention_call import Sink
from goca.errors import GocaError
from goca.maths import Grid
from goca.text.tokens import Tokens

MAX_STEPS = 10_000
"""Most steps of a range that are read: no sampler makes more."""
Branch = Literal["cond", "uncond", "other"]
"""With the prompt, with the negative prompt or none, or neither."""


@dataclass(frozen=True)
class PromptTokens:
    """A prompt, and the tokens of it that the denoiser attends to.

    Attributes:
        prompt: The text.
        texts: Each tokenizer's tokens, including special ones; empty if it was not given as text.
        unread: {argument of the pipeline: its text} for further texts of the image that have no tokens in
            `texts`: the prompt of an encoder with a single vector, or the negative prompt.
    """

    prompt: str
    texts: tuple[Tokens, ...]
    unread: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DenoiserRow:
    """One row of a denoiser call's batch.

    Attributes:
        branch: The row's branch of guidance.
        image: Index of the row's image among those of its generation; None for branch "other".
        prompt: The prompt to which the row attends; the negative one for branch "uncond", None for branch "other".
    """

    branch: Branch
    image: int | None = None
    prompt: PromptTokens | None = None


@dataclass(frozen=True)
class DenoiserCall:
    """A denoiser call that attends to prompts of a generation.

    A pipeline guides in one call with rows of both branches, or in two calls, which have the same `evaluation`. Each
    branch comes once in an evaluation: rows of further passes, such as skip-layer guidance's, are "other".

    Attributes:
        generation: Number of the pipeline's own call, from 0.
        step: Sampling step, from 0, as the scheduler counts: both evaluations of a second-order step have the
            same step, and so do the first two of PNDM.
        evaluation: Number of calls of the scheduler's step before in the generation.
        timestep: The scheduler's timestep.
        latent_size: (height, width) of the latent, in cells of `Backbone.vae_scale_factor` pixels.
        rows: The rows of the batch, in order.
        scale: Scale of classifier-free guidance, u + scale (c - u); None if the pipeline has none.
        references: (height, width) in cells of each reference image.
        frames: Number of frames of `latent_size` in a row: more than one for a video.
        frame_grid: (height, width) in patches of such a frame; None for an image.
    """

    generation: int
    step: int
    evaluation: int
    timestep: float
    latent_size: Grid
    rows: tuple[DenoiserRow, ...]
    scale: float | None = None
    references: tuple[Grid, ...] = ()
    frames: int = 1
    frame_grid: Grid | None = None

    def rows_of(self, branch: Branch) -> dict[int, DenoiserRow]:
        """The rows of a branch, by their index in the batch."""
        return {index: row for index, row in enumerate(self.rows) if row.branch == branch}

    def images_of(self, branch: Literal["cond", "uncond"]) -> dict[int, tuple[int, PromptTokens]]:
        """{image: (its row, the row's prompt)} of a branch."""
        return {
            row.image: (index, row.prompt)
            for index, row in self.rows_of(branch).items()
            if row.image is not None and row.prompt is not None
        }


@runtime_checkable
class Observer(Protocol):
    """Observes the denoiser calls of a `GenerationSession`, and may change their predictions.

    For a call that raises an exception, `begin` is called but not `end`.
    """

    def begin(self, call: DenoiserCall) -> Sink | None:
        """Called before a denoiser call.

        Args:
            call: The call that follows.

        Returns:
            A function that takes (row of the batch, attention) for every row and attention, or None if this observer
            needs no attention of this call. Attention that a sink ignores costs nothing.
        """

    def end(self, call: DenoiserCall, noise_pred: Tensor) -> Tensor | None:
        """Called after a denoiser call, whether its attention was taken or not.

        Args:
            call: The finished call.
            noise_pred: (row, ...) what the denoiser, or the previous observer, returned.

        Returns:
            The prediction with which the pipeline continues, of the same shape, dtype and device, or None to leave it
            as it is. Anything else ends the pipeline's call with a GocaError.
        """


def step_numbers(steps: Iterable[SupportsIndex] | None) -> frozenset[int] | None:
    """The sampling steps that a user names; None for all. Raises GocaError for anything else."""
    if steps is None:
        return None
    try:
        # A range may extend far beyond the sampler's last step.
        numbers = frozenset(map(index, steps[:MAX_STEPS] if isinstance(steps, range) else steps))
    except TypeError:
        numbers = frozenset()
    if not numbers or min(numbers) < 0:
        raise GocaError(f"steps {steps!r} are not sampling steps: give a range or numbers from 0, or None for all")
    return numbers
