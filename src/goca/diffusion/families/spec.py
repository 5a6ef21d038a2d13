"""The facts of a family of denoisers, and of a known checkpoint."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from goca.errors import GocaError
from goca.maths import Grid
from goca.text.background_nouns import BACKGROUND_NOUNS

Blocks = tuple[str, tuple[str, ...]]
"""(reference block, refinement blocks), each a path inside the denoiser."""


@dataclass(frozen=True)
class TextInput:
    """One tokenizer whose tokens the denoiser attends to.

    Attributes:
        tokenizer: Its attribute of the pipeline.
        start: The column of its first token; negative if the pipeline cuts that much of a template off.
        right_aligned: Its last token is in the last column instead; the pipeline pads or cuts at the front.
        respects_max_sequence_length: The pipeline truncates its tokens at the call's `max_sequence_length`.
        max_tokens: Number of tokens that the pipeline keeps, if that is a constant of its own.
    """

    tokenizer: str
    start: int = 0
    right_aligned: bool = False
    respects_max_sequence_length: bool = False
    max_tokens: int | None = None


@dataclass(frozen=True)
class JointLayout:
    """The sequence of a model with joint attention, which holds text and pixels.

    Attributes:
        text_first: The text is before the pixels, not after them.
        unimodal_blocks: Prefixes of the paths of blocks in which text or pixels attend only to themselves.
        multiple: Pixels are padded to a multiple of this many positions.
        pad_to_attr: The denoiser's attribute that says to how many positions a non-square image's pixels are padded.
        packed_text: The pixels follow their own text directly, whatever the length of the other texts in the batch; the
            rest of the row is masked.
    """

    text_first: bool
    unimodal_blocks: tuple[str, ...] = ()
    multiple: int = 1
    pad_to_attr: str | None = None
    packed_text: bool = False

    def padded(self, denoiser: nn.Module, grid: Grid) -> int:
        """The number of positions that the pixels of a (height, width) grid take, padding included."""
        pixels = grid[0] * grid[1]
        if self.pad_to_attr is not None and grid[0] != grid[1]:
            return int(getattr(denoiser, self.pad_to_attr))
        return -(-pixels // self.multiple) * self.multiple


@dataclass(frozen=True)
class BlockRule:
    """How the blocks of a checkpoint without published settings, and the weights of its heads, are chosen.

    Attributes:
        description: The rule in words, as in results and `goca models`.
        choose: Takes the denoiser and the paths of its blocks that attend to the text, in order.
        heads: The rule that weighs attention heads.
    """

    description: str
    choose: Callable[[Any, Collection[str]], Blocks]
    heads: str = "output-share"


@dataclass(frozen=True, kw_only=True)
class ReportedScore:
    """A published figure of the GoCA recipe.

    Attributes:
        dataset: The data set's usual name.
        miou: Mean intersection over union in per cent.
        source: Who reported it, and under which protocol.
    """

    dataset: str
    miou: float
    source: str


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """The settings for segmenting with a known checkpoint.

    Attributes:
        name: Its name.
        repos: Its ids on the Hub.
        layout: Entries of the denoiser's configuration that recognise it.
        size: The side in pixels of the images it was trained on.
        reference: The block by whose features pixels are compared.
        refine: The blocks whose self-attention refines the maps.
        order: Number of times that the refinement is applied.
        origin: Source of these settings.
        feature: The reference block's "query", or the "output" of its attention.
        timestep: The training timestep of the pass, 0 to 999; for a flow model thousandths of sigma.
        heads: The rule that weighs attention heads.
        layers: The rule that weighs blocks.
        cross: The blocks whose attention to the text takes part; () for all.
        rescale: The rules that rescale the maps, in order.
        background: The rule that scores the background.
        grid: Cells per side of the common grid.
        token_cells: Latent cells per side of a token of the finest attention, which the denoiser determines.
        background_classes: Nouns that join the classes in the prompt unless the user names others.
        evidence_blocks: Blocks whose attention to the text gives evidence; () for all.
        nouns: The whole vocabulary of a model that knows no other words; () for any.
        options: Arguments of the pipeline's call that this checkpoint needs.
        scores: Scores that others reported for it.
    """

    name: str
    repos: tuple[str, ...]
    layout: Mapping[str, Any]
    size: int
    reference: str
    refine: tuple[str, ...]
    order: int
    origin: str
    feature: Literal["query", "output"] = "query"
    timestep: int = 100
    heads: str = "output-share"
    layers: str = "agreement"
    cross: tuple[str, ...] = ()
    rescale: tuple[str, ...] = ("share", "blur", "minmax")
    background: str = "auto"
    grid: int = 64
    token_cells: int = 1
    background_classes: tuple[str, ...] = BACKGROUND_NOUNS
    evidence_blocks: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    scores: tuple[ReportedScore, ...] = ()


def anything(denoiser: Any) -> None:
    """Accept every denoiser of these classes."""


def first_grid(block: str) -> int:
    """0: attention of every block has the first of the grids."""
    return 0


def unlimited(denoiser: Any) -> int | None:
    """None: the denoiser has positions for images of any size."""
    return None


def default_size(denoiser: Any, vae_scale_factor: int) -> int:
    """1024: the configuration does not say, and that is what the pipelines of these classes generate by default."""
    return 1024


def sample_size(denoiser: Any, vae_scale_factor: int) -> int:
    """The side in pixels of the images a denoiser was trained on, from its configuration."""
    size = denoiser.config.sample_size
    sides = size if isinstance(size, list | tuple) else [size]
    if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
        raise GocaError(
            f"{type(denoiser).__name__} has sample_size = {size} in its configuration, so the size it was trained at "
            "is unknown: set it there"
        )
    return max(sides) * vae_scale_factor


@dataclass(frozen=True, kw_only=True)
class Family:
    """The facts of one kind of denoiser.

    Attributes:
        name: Its name.
        denoisers: Its class names.
        grids: Gives the grids that attention may have, the finest first, from the denoiser and the latent's
            (height, width).
        grid_of: Gives the index among them of a block's grid, from the block's path.
        block_rule: Chooses the blocks of a checkpoint without settings of its own.
        component: The pipeline's attribute that holds the denoiser.
        pipelines: Class names of the pipelines to which it is limited, if another family has the same denoiser.
        check: Raises GocaError, saying why, for a denoiser that cannot be read.
        image_size: Gives the side in pixels it was trained at, from the denoiser and the VAE's scale factor.
        max_grid: Gives the most patches per side for which a denoiser has positions, None without a limit.
        timestep: Training timestep for a checkpoint without settings; for a flow model thousandths of sigma.
        order: Number of times that such a checkpoint's refinement is applied.
        feature: The reference block's feature: its raw queries, or its attention's output.
        flow: It is trained on straight lines between image and noise, not on a chain of steps.
        edm_sigmas: A flow model that is told sigma in EDM's parametrisation, noise over image: s / (1 - s).
        texts: The tokenizers whose tokens are attended to.
        joint: The layout of joint attention; None for cross-attention.
        guidance_offset: Added to the call's guidance scale in u + scale (c - u); 1 if the pipeline computes
            c + scale (c - u).
        linear_self_attention: Self-attention is linear and has no map; affinities of raw queries replace it.
        options: Arguments of the pipeline's call besides prompt, size, steps and guidance.
        optional_image_input: The pipeline also takes an image, but does not need one.
        makes_videos: Its latents may have several frames, whose patches attend to each other, frame by frame.
        size_multiple: The sides of an image in pixels are multiples of this.
        fixed_area: The pipeline scales every image to the area of its `default_sample_size`.
        vae_statistics: Attributes of the VAE, or of its configuration, that scale latents for the denoiser.
        packed_vae_scale_factor: The pipeline's `vae_scale_factor` counts 2 x 2 latent cells as one.
        checkpoints: Checkpoints with settings; a layout that contains another comes first.
        repos: Hub ids of well-known checkpoints without settings, which use the block rule.
        tiny: Its builders in `goca.testing.tiny.BUILDERS`.
    """

    name: str
    denoisers: tuple[str, ...]
    grids: Callable[[Any, Grid], tuple[Grid, ...]]
    block_rule: BlockRule
    grid_of: Callable[[str], int] = first_grid
    component: str = "transformer"
    pipelines: tuple[str, ...] = ()
    check: Callable[[Any], None] = anything
    image_size: Callable[[Any, int], int] = default_size
    max_grid: Callable[[Any], int | None] = unlimited
    timestep: int = 100
    order: int = 2
    feature: Literal["query", "output"] = "query"
    flow: bool = False
    edm_sigmas: bool = False
    texts: tuple[TextInput, ...] = (TextInput("tokenizer", respects_max_sequence_length=True),)
    joint: JointLayout | None = None
    guidance_offset: float = 0.0
    linear_self_attention: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    optional_image_input: bool = False
    makes_videos: bool = False
    size_multiple: int = 8
    fixed_area: bool = False
    vae_statistics: tuple[str, ...] = ()
    packed_vae_scale_factor: bool = False
    checkpoints: tuple[CheckpointSettings, ...] = ()
    repos: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ()
