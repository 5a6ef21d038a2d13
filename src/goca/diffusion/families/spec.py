"""The facts that make a family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from goca.diffusion.attention_call import JointLayout
from goca.maths import Grid


@dataclass(frozen=True)
class TextInput:
    """One of a pipeline's tokenizers whose tokens the denoiser attends to.

    tokenizer: its name in the pipeline. start: the column of its first token. right_aligned: its last token has the last
    column instead; the pipeline drops tokens of its template, or pads, in front. respects_max_sequence_length: the pipeline itself cuts the
    tokens off, at its `max_sequence_length`. max_tokens: it keeps no more tokens than so many, as a probe found.
    """

    tokenizer: str
    start: int = 0
    right_aligned: bool = False
    respects_max_sequence_length: bool = False
    max_tokens: int | None = None


@dataclass(frozen=True)
class Family:
    """One kind of denoiser.

    - component: the pipeline's attribute that holds it; denoisers: class names it goes by; pipelines: those of the
      pipelines, where another kind has the same denoiser.
    - check(denoiser): raises GocaError for one that cannot be read, naming why.
    - size(denoiser, cell): the side in pixels it was trained at, for latents of `cell` pixels.
    - max_grid(denoiser): the most patches a side for which it has positions, None where there is no end.
    - grids(denoiser, latent grid): the grids that its attention may have.
    - default_layers(denoiser): (reference block, refinement blocks) by a rule, for a checkpoint that nobody has set;
      rule: that rule, in words; noise, order: what such a checkpoint is asked at and refined with.
    - texts: the tokenizers whose tokens are attended to. joint: the layout of joint attention, if there is any.
    - linear_self_attention: self-attention is linear, without a map; the affinity of the raw queries stands in for it.
    - flow: whether noise is a share of a straight line, and not a step of a chain.
    - feature: what the reference block is compared by: its raw queries, or its attention's output.
    - options: what the pipeline's call is told besides; optional_image_input: it takes an image too, but need not;
      size_multiple: of how many pixels it wants a side to be a multiple; fixed_area: it makes every image as large as its
      `default_sample_size` says.
    - edm_sigmas: a flow model's sampler counts noise against the image, s / (1 - s), and not as a share of both.
    - found: what the probe found out, for a denoiser that nobody has listed; vae_scale_factor: pixels a side of a latent cell, 0
      where the pipeline's own figure is right.
    """

    name: str
    component: str
    denoisers: tuple[str, ...]
    check: Callable[[Any], None]
    size: Callable[[Any, int], int]
    grids: Callable[[Any, Grid], tuple[Grid, ...]]
    default_layers: Callable[[Any], tuple[str, tuple[str, ...]]]
    rule: str
    timestep: int = 100
    order: int = 2
    texts: tuple[TextInput, ...] = (TextInput("tokenizer"), TextInput("tokenizer_2"))
    flow: bool = False
    joint: JointLayout | None = None
    linear_self_attention: bool = False
    feature: Literal["query", "output"] = "query"
    options: Mapping[str, Any] = field(default_factory=dict)
    optional_image_input: bool = False
    pipelines: tuple[str, ...] = ()
    size_multiple: int = 8
    fixed_area: bool = False
    edm_sigmas: bool = False
    max_grid: Callable[[Any], int | None] = lambda denoiser: None
    found: str = ""
    vae_scale_factor: int = 0
