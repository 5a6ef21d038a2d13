"""What is kept of a generation: sums, which do not grow with the number of steps, and the weights of each step."""

from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from goca.aggregation import AttentionAggregator
from goca.diffusion.denoiser_call import DenoiserCall, PromptTokens
from goca.diffusion.families.spec import CheckpointSettings
from goca.errors import GocaError
from goca.imaging import images
from goca.maths import Grid
from goca.maths.refine import Affinity
from goca.maths.rescale import TokenMass, token_mass
from goca.plan import Options, Plan, plan
from goca.recipe import Recipe, recipe_named
from goca.text.token_spans import NounTokens, find_noun_tokens


@dataclass(frozen=True)
class Planner:
    """Makes recipes concrete for the pipeline that is traced."""

    settings: CheckpointSettings
    blocks: tuple[str, ...]
    model: str
    device: str
    dtype: str

    def plan(self, recipe: Recipe | str) -> Plan:
        """Raises GocaError for a recipe that there is not, and for one that this pipeline cannot be read with."""
        chosen = recipe_named(recipe) if isinstance(recipe, str) else recipe
        made = plan(chosen, self.settings, self.blocks, self.model, Options(), joint=True)
        if made.maps.score is not None:
            raise GocaError(
                f'recipe "{made.recipe}" weighs nouns against each other while the model runs, and a trace learns them '
                "only later: choose another recipe"
            )
        return replace(made, seeds=(), device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class Step:
    """What one pass weighed. step: the sampler's, from 0. layers: {block: weight}, summing to 1.
    heads: {block: the weight of each head}, averaged over pixels, summing to 1 in a block.
    """

    step: int
    timestep: float
    layers: dict[str, float]
    heads: dict[str, tuple[float, ...]]


@dataclass
class Collected:
    """What the passes for one image said, summed up: nothing in it grows with their number but `steps`.

    size: (height, width) of the image in pixels; grid: that of its maps. columns: the prompt's token columns, the
    only ones that are kept. total: the sum of the passes' maps of them. planner: for other recipes.
    """

    plan: Plan
    planner: Planner
    said: PromptTokens
    size: Grid
    grid: Grid
    columns: tuple[int, ...]
    affinity: Affinity
    total: Float[Tensor, "token height width"] | float = 0.0
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def of(cls, plan: Plan, planner: Planner, said: PromptTokens, latent: Grid, cell: int) -> "Collected":
        """Nothing yet. latent: (height, width) in cells of `cell` pixels."""
        grid = images.common_grid(latent, plan.grid)
        columns = find_noun_tokens(said.prompt, said.texts, (), (), named=True).prompt
        return cls(plan, planner, said, (latent[0] * cell, latent[1] * cell), grid, columns, Affinity(grid))

    def readout(self) -> AttentionAggregator:
        """One for the pass to come; what it refines with is added to what was there."""
        readout = AttentionAggregator(self.plan, NounTokens(self.said.prompt, (), (), self.columns), self.grid)
        readout.affinity = self.affinity
        return readout

    def take(self, readout: AttentionAggregator, one: DenoiserCall) -> None:
        """The readout of a pass that is complete."""
        whole = readout.global_map()
        # A pipeline may mask the end of a prompt: nothing looks there.
        hidden = max(0, max(self.columns, default=-1) + 1 - len(whole))
        self.total = self.total + F.pad(whole, (0, 0, 0, 0, 0, hidden))[list(self.columns)]
        heads = {block: tuple(weights.tolist()) for block, weights in readout.heads.items()}
        self.steps.append(Step(one.step, one.timestep, readout.layer_weights(), heads))

    def token_mass(self, asked: NounTokens) -> TokenMass:
        """What the mean of the passes says of the nouns."""
        assert isinstance(self.total, Tensor)
        place = {column: index for index, column in enumerate(self.columns)}
        of = [[place[column] for column in columns] for columns in (*asked.nouns, asked.content, asked.prompt)]
        return token_mass(self.total / len(self.steps), of[:-2], of[-2], of[-1])
