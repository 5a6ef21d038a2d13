"""What is kept of an image's denoiser calls: sums, the weights of each call and, if requested, its maps."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from operator import index
from typing import SupportsIndex

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from goca.aggregation import AttentionAggregator
from goca.diffusion.backbone import Backbone
from goca.diffusion.denoiser_call import DenoiserCall, PromptTokens
from goca.diffusion.families.spec import CheckpointSettings
from goca.errors import GocaError
from goca.maths import Grid
from goca.maths.refine import Affinity
from goca.maths.rescale import TokenMass, token_mass
from goca.maths.rules import name_of
from goca.plan import Options, Plan, plan
from goca.recipe import RECIPES, Recipe, recipe_named
from goca.text.token_spans import NounTokens, Word, find_noun_tokens, prompt_words
from goca.text.tokens import attended_tokens
from goca.tracing.keep import Keep

PlanFor = Callable[[Recipe | str], Plan]
"""Makes a recipe, or the name of one, concrete for the pipeline that is traced."""


def plan_for(backbone: Backbone) -> PlanFor:
    """A `PlanFor` that does not keep the pipeline alive; it raises GocaError for a recipe that cannot be traced."""
    where, joint = (backbone.device, backbone.dtype), backbone.family.joint is not None
    return partial(trace_plan, backbone.settings, backbone.blocks, backbone.name, *where, joint)


def trace_plan(
    settings: CheckpointSettings,
    blocks: tuple[str, ...],
    model: str,
    device: str,
    dtype: str,
    joint: bool,
    recipe: Recipe | str,
) -> Plan:
    """A recipe made concrete for tracing a model. Raises GocaError for one that cannot be traced."""
    chosen = recipe_named(recipe)
    if chosen.maps is not None:
        raise GocaError(
            f'recipe "{name_of(chosen, RECIPES)}" weighs nouns against each other while the model runs, but a trace '
            "learns them only later: choose another recipe"
        )
    if chosen.keys != "caption":  # a trace has the keys of the prompt alone
        chosen = replace(chosen, keys="caption")
    made = plan(chosen, settings, blocks, model, Options(), joint=joint)
    # A sampler's calls see the unfinished image, each with different features.
    notes: tuple[str, ...] = ("a trace's scores are not refitted",) if made.refit is not None else ()
    if made.num_passes > 1:
        notes += ("a trace has the generation's own attention: flips and further noise seeds do not apply",)
    return replace(made, seeds=(), flip=False, square=False, device=device, dtype=dtype, refit=None, notes=notes)


@dataclass(frozen=True)
class TracedStep:
    """The weights of one traced denoiser call.

    Attributes:
        step: Sampling step, from 0.
        layers: {block: weight}, summing to 1.
        heads: {block: weight of each head}, averaged over pixels, summing to 1 in a block.
    """

    step: int
    timestep: float
    layers: dict[str, float] = field(repr=False)
    heads: dict[str, tuple[float, ...]] = field(repr=False)


class TracedAttention:
    """The attention to an image's prompt, summed over denoiser calls; only `steps` and kept maps grow.

    Attributes:
        plan: The recipe of the trace, made concrete; `plan_for` does so with others.
        keep: What is kept beside the sums.
        size: (height, width) of the image, in pixels.
        prompt_indices: The tokens of the prompt, without special ones.
        token_indices: The tokens that are kept: these, or all.
        frames: Number of frames: more than one for a video, whose maps are stacked vertically.
        grid: (height, width) of the maps of all frames together.
        affinity: The self-attention that refines the maps.
        total: Sum of the maps of `token_indices`.
        calls: The maps of each call of `steps` that are kept.
        layer_maps: The maps of each layer, if they are kept.
        negative: The attention to the negative prompt, if it is kept.
        references: The attention of reference images to the prompt, if they are kept.
        given: The images that the pipeline was given.
        decoded: The frames as the pipeline returned them, if it did.
    """

    def __init__(
        self, plan: Plan, plan_for: PlanFor, prompt: PromptTokens, size: Grid, grid: Grid, frames: int, keep: Keep
    ) -> None:
        """An empty collection for an image of `size` pixels, or several such frames."""
        if frames > 1:
            note = "a video's maps are not refined"
            plan = replace(plan, refine=(), order=0, notes=(*plan.notes, note))  # its self-attention is too large
        self.plan, self.plan_for, self.prompt, self.size, self.keep = plan, plan_for, prompt, size, keep
        self.prompt_indices = find_noun_tokens(prompt.prompt, prompt.texts, (), (), named=True).prompt
        self.tokens = attended_tokens(prompt.texts)
        everything = sorted({token.index for token in self.tokens})
        self.token_indices = tuple(everything) if keep.special else self.prompt_indices
        self.grid, self.frames = grid, frames
        self.affinity = Affinity(self.grid)
        self.total: Float[Tensor, "token height width"] | float = 0.0
        self.calls: list[Float[Tensor, "token height width"]] = []
        self.layer_maps = keep.layer_maps(self.token_indices, plan.heads)
        self.steps: list[TracedStep] = []
        self.negative: TracedAttention | None = None
        self.references: list[TracedAttention] = []
        self.given: tuple[Image.Image, ...] = ()
        self.decoded: tuple[Image.Image, ...] = ()

    @cached_property
    def word_indices(self) -> dict[Word, tuple[int, ...]]:
        """The token indices of each word of the prompt."""
        return prompt_words(self.prompt.texts)

    @property
    def nbytes(self) -> int:
        """Bytes of all maps that are kept for the prompt itself, including the self-attention."""
        total = (self.total,) if isinstance(self.total, Tensor) else ()
        layers = () if self.layer_maps is None else (self.layer_maps,)
        return sum(maps.nbytes for maps in (*total, *self.calls, *layers, self.affinity))

    def aggregator(self) -> AttentionAggregator:
        """An aggregator for the next call; its self-attention is added to the existing sum."""
        tokens = NounTokens(self.prompt.prompt, (), (), self.token_indices)
        aggregator = AttentionAggregator(self.plan, tokens, self.grid)
        aggregator.affinity = self.affinity
        return aggregator

    def add(self, aggregator: AttentionAggregator, call: DenoiserCall) -> None:
        """Add the sums of a call's aggregator."""
        global_map = aggregator.global_map()
        # A pipeline may mask the end of a prompt, which then gets no attention.
        hidden = max(0, max(self.token_indices, default=-1) + 1 - len(global_map))
        maps = F.pad(global_map, (0, 0, 0, 0, 0, hidden))[list(self.token_indices)]
        self.total = self.total + maps
        # After a step that did not fit, no later one is kept.
        if self.keep.steps and len(self.calls) == len(self.steps) and self.keep.budget.take(4 * maps.numel()):
            self.calls.append(maps.float().cpu())
        heads = {block: tuple(weights.tolist()) for block, weights in aggregator.heads.items()}
        self.steps.append(TracedStep(call.step, call.timestep, aggregator.layer_weights(), heads))

    def maps(self, step: SupportsIndex | None = None) -> Float[Tensor, "token height width"]:
        """The maps of `token_indices`, the mean over all calls, or over those of a step.

        Raises:
            GocaError: The step was not traced, or its maps are not kept.
        """
        if step is None:
            assert isinstance(self.total, Tensor)
            return self.total / len(self.steps)
        if not self.keep.steps:
            raise GocaError('only the sum over steps is kept: keep each with trace(pipe, keep="steps")')
        numbers = list(dict.fromkeys(call.step for call in self.steps))
        if not isinstance(step, SupportsIndex) or index(step) not in numbers:
            raise GocaError(f"step {step!r} was not traced: choose from {', '.join(map(str, numbers))}")
        calls = [number for number, call in enumerate(self.steps) if call.step == index(step)]
        if calls[-1] >= len(self.calls):
            raise GocaError(f"the maps of step {step} did not fit: trace fewer steps, trace(pipe, steps=...)")
        return torch.stack([self.calls[number] for number in calls]).mean(0)

    def token_mass(self, tokens: NounTokens, step: SupportsIndex | None = None) -> TokenMass:
        """The shares of nouns in the mean over the calls, or over those of a step."""
        rows = {index: row for row, index in enumerate(self.token_indices)}
        wanted = (*tokens.nouns, tokens.content, tokens.prompt)
        *nouns, content, prompt = ([rows[index] for index in indices] for indices in wanted)
        return token_mass(self.maps(step), nouns, content, prompt)
