"""What is kept of an image's denoiser calls: sums, which do not grow with their number, and the weights of each."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from goca.aggregation import AttentionAggregator
from goca.diffusion.backbone import Backbone
from goca.diffusion.denoiser_call import DenoiserCall, PromptTokens
from goca.diffusion.families.spec import CheckpointSettings
from goca.errors import GocaError
from goca.imaging import images
from goca.maths import Grid
from goca.maths.refine import Affinity
from goca.maths.rescale import TokenMass, token_mass
from goca.plan import Options, Plan, plan
from goca.recipe import Recipe, recipe_named
from goca.text.token_spans import NounTokens, Word, find_noun_tokens, prompt_words

PlanFor = Callable[[Recipe | str], Plan]
"""Makes a recipe, or the name of one, concrete for the pipeline that is traced."""


def plan_for(backbone: Backbone) -> PlanFor:
    """A `PlanFor` that does not keep the pipeline alive; it raises GocaError for a recipe that cannot be traced."""
    return partial(trace_plan, backbone.settings, backbone.blocks, backbone.name, backbone.device, backbone.dtype)


def trace_plan(
    settings: CheckpointSettings, blocks: tuple[str, ...], model: str, device: str, dtype: str, recipe: Recipe | str
) -> Plan:
    """A recipe made concrete for tracing a model; GocaError for one that cannot be traced."""
    made = plan(recipe_named(recipe), settings, blocks, model, Options(), joint=True)
    if made.maps is not None:
        raise GocaError(
            f'recipe "{made.recipe}" weighs nouns against each other while the model runs, and a trace learns them '
            "only later: choose another recipe"
        )
    return replace(made, seeds=(), device=device, dtype=dtype)


@dataclass(frozen=True)
class TracedStep:
    """The weights of one traced denoiser call.

    Attributes:
        step: Step of the sampler, from 0.
        layers: {block: weight}, summing to 1.
        heads: {block: weight of each head}, averaged over pixels, summing to 1 in a block.
    """

    step: int
    timestep: float
    layers: dict[str, float] = field(repr=False)
    heads: dict[str, tuple[float, ...]] = field(repr=False)


class TracedAttention:
    """The attention of an image's prompt, summed over denoiser calls; only `steps` grows with their number.

    Attributes:
        plan: The recipe of the trace, made concrete; `plan_for` does so with others.
        size: (height, width) of the image, in pixels.
        token_indices: Those of the prompt, the only ones that are kept.
        grid: (height, width) of the maps.
        affinity: The self-attention that refines the maps.
        total: Sum of the maps of `token_indices`.
    """

    def __init__(self, plan: Plan, plan_for: PlanFor, prompt: PromptTokens, size: Grid, latent_size: Grid) -> None:
        """Nothing yet, of an image of `size` pixels whose latent has (height, width) `latent_size`."""
        self.plan, self.plan_for, self.prompt, self.size = plan, plan_for, prompt, size
        self.token_indices = find_noun_tokens(prompt.prompt, prompt.texts, (), (), named=True).prompt
        self.grid = images.common_grid(latent_size, plan.grid)
        self.affinity = Affinity(self.grid)
        self.total: Float[Tensor, "token height width"] | float = 0.0
        self.steps: list[TracedStep] = []

    @cached_property
    def word_indices(self) -> dict[Word, tuple[int, ...]]:
        """The token indices of each word of the prompt."""
        return prompt_words(self.prompt.texts)

    def aggregator(self) -> AttentionAggregator:
        """One for the call to come; what it refines with is added to what there is."""
        tokens = NounTokens(self.prompt.prompt, (), (), self.token_indices)
        aggregator = AttentionAggregator(self.plan, tokens, self.grid)
        aggregator.affinity = self.affinity
        return aggregator

    def add(self, aggregator: AttentionAggregator, call: DenoiserCall) -> None:
        """Add what a call's aggregator has seen."""
        global_map = aggregator.global_map()
        # A pipeline may mask the end of a prompt: nothing attends there.
        hidden = max(0, max(self.token_indices, default=-1) + 1 - len(global_map))
        self.total = self.total + F.pad(global_map, (0, 0, 0, 0, 0, hidden))[list(self.token_indices)]
        heads = {block: tuple(weights.tolist()) for block, weights in aggregator.heads.items()}
        self.steps.append(TracedStep(call.step, call.timestep, aggregator.layer_weights(), heads))

    def token_mass(self, tokens: NounTokens) -> TokenMass:
        """The shares of nouns in the mean over the calls."""
        assert isinstance(self.total, Tensor)
        rows = {index: row for row, index in enumerate(self.token_indices)}
        wanted = (*tokens.nouns, tokens.content, tokens.prompt)
        *nouns, content, prompt = ([rows[index] for index in indices] for indices in wanted)
        return token_mass(self.total / len(self.steps), nouns, content, prompt)
