"""Ideas that were tried beyond the published recipe and are not in the library; `beyond.py` measures them.

An idea changes what the library's aggregation gives: the affinity that refines, the shares of attention, the maps of a
pass or those of all passes. Some ideas are no more than other rules of a recipe.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import idea_rules as rules
import torch
from einops import rearrange
from jaxtyping import Float
from shared_passes import JointCall, SharedBackbone
from torch import Tensor

from goca import GOCA_BALANCED, GOCA_QUALITY, GOCA_REFINED, Recipe, Segmenter
from goca.aggregation import AttentionAggregator, ImageAttention, JoinedAffinity, dense_feature
from goca.class_maps import ClassMaps
from goca.diffusion.attention_call import AttentionCall
from goca.maths import Grid
from goca.maths.refine import Affinity
from goca.maths.rescale import TokenMass, mass_of_means
from goca.maths.resize import resize
from goca.plan import Options, Plan
from goca.request import PreparedImage
from goca.segmentation import Segmentation
from goca.self_tagging import SelfRule, squared_errors
from goca.text.nouns import caption_of

BATCH = 8


class Idea:
    """What changes of a segmenter's steps; here nothing."""

    def affinity(self, attention: "HeardAttention") -> JoinedAffinity:
        """What refines the scores of an image."""
        return attention.own_affinity

    def mass(self, attention: "HeardAttention") -> TokenMass:
        """The nouns' shares of attention."""
        return attention.own_mass()

    def maps(self, attention: "HeardAttention", maps: ClassMaps) -> ClassMaps:
        """The maps of a pass, before they are refitted."""
        return maps

    def passes(
        self, segmenter: "IdeaSegmenter", image: PreparedImage, passes: Sequence[ClassMaps]
    ) -> Sequence[ClassMaps]:
        """The maps of all passes."""
        return passes


NO_IDEA = Idea()


@dataclass(frozen=True)
class HeardAttention(ImageAttention):
    """The attention to an image in a single window, with every call of it, under an idea."""

    calls: Sequence[AttentionCall] = field(repr=False)
    idea: Idea

    @property
    def aggregator(self) -> AttentionAggregator:
        """That of the window."""
        (aggregator,) = self.aggregators
        return aggregator

    @property
    def plan(self) -> Plan:
        """The rules of the segmentation."""
        return self.aggregator.plan

    @property
    def affinity(self) -> JoinedAffinity:
        return self.idea.affinity(self)

    @property
    def own_affinity(self) -> JoinedAffinity:
        """The library's."""
        return super().affinity

    def token_mass(self) -> TokenMass:
        return self.idea.mass(self)

    def own_mass(self) -> TokenMass:
        """The library's."""
        return super().token_mass()

    def refining(self) -> list[AttentionCall]:
        """The calls whose self-attention refines, which are on one grid."""
        return [call for call in self.calls if call.block in self.plan.refine and call.image is not None]

    def matrix(self) -> tuple[Float[Tensor, "pixel pixel"], Grid]:
        """(the library's affinity on the grid of the layers that refine, that grid)."""
        (own,) = self.own_affinity.parts
        grid = self.refining()[0].grid
        every_pixel = torch.eye(grid[0] * grid[1]).unflatten(1, grid)
        return own.apply(every_pixel).flatten(1).T, grid

    def refined_by(self, matrix: Float[Tensor, "pixel pixel"], grid: Grid) -> JoinedAffinity:
        """An affinity on some grid in place of the library's."""
        affinity = Affinity(self.aggregator.grid)
        affinity.add_rows(slice(0, len(matrix)), matrix, grid)
        affinity.layers = 1
        return JoinedAffinity(self.windows, [affinity])


class IdeaSegmenter(Segmenter):
    """A segmenter with one of its steps changed; `backbone` is a `SharedBackbone`."""

    def __init__(self, backbone: SharedBackbone, variation: "Variation") -> None:
        timestep = backbone.settings.timestep
        timesteps = [timestep + offset for offset in variation.offsets]
        options = Options() if len(timesteps) == 1 else Options(timestep=timesteps)
        super().__init__(backbone, variation.recipe, options, BATCH)
        self.shared, self.idea = backbone, variation.idea

    def class_scores(self, attention: ImageAttention) -> ClassMaps:
        (aggregator,) = attention.aggregators
        calls = self.shared.heard[aggregator]
        heard = HeardAttention(attention.windows, attention.tokens, attention.aggregators, calls, self.idea)
        return self.idea.maps(heard, super().class_scores(heard))

    def label(self, image: PreparedImage, passes: Sequence[ClassMaps]) -> Segmentation:
        with self.inference():
            passes = self.idea.passes(self, image, passes)
        return super().label(image, passes)


@dataclass(frozen=True)
class Sharpened(Idea):
    """3: a sharpened affinity, see `rules.sharpened`, whose rows have an entropy of `target`; for several rounds."""

    target: float

    def affinity(self, attention: HeardAttention) -> JoinedAffinity:
        matrix, grid = attention.matrix()
        return attention.refined_by(rules.sharpened(matrix, self.target), grid)


@dataclass(frozen=True)
class OutputGraph(Idea):
    """7: the refinement's graph from what attention gives, see `rules.similarity`, not from attention."""

    temperature: float

    def affinity(self, attention: HeardAttention) -> JoinedAffinity:
        calls = attention.refining()
        outputs = [rearrange(call.output, "head pixel dim -> pixel (head dim)") for call in calls]
        return attention.refined_by(rules.similarity(outputs, self.temperature), calls[0].grid)


@dataclass(frozen=True)
class JointMaps(Idea):
    """8: each noun's map by a rule of a whole joint attention, layers weighed as the library weighs them.

    power: Of the rule's map, by which the library's is multiplied; None for the rule's map alone.
    """

    rule: Callable[[Float[Tensor, "key key"], slice, slice], Float[Tensor, "pixel token"]]
    power: float | None = None

    def mass(self, attention: HeardAttention) -> TokenMass:
        own = attention.own_mass()  # after which the weights of layers are complete
        weights, grid = attention.aggregator.layer_weights(), attention.aggregator.grid
        total = torch.zeros_like(own.raw)
        for call in attention.calls:
            if isinstance(call, JointCall) and call.block in weights:
                total += weights[call.block] * resize(self._map(call, attention.tokens.nouns), grid)
        raw = total if self.power is None else rules.both_directions(own.raw, total, self.power)
        return mass_of_means(raw, attention.tokens.counts)

    def _map(self, call: JointCall, nouns: Sequence[Sequence[int]]) -> Float[Tensor, "noun height width"]:
        assert call.text is not None
        assert call.image is not None
        queries = [call.text_q, call.q] if call.text.start < call.image.start else [call.q, call.text_q]
        of_tokens = self.rule(rules.joint_attention(torch.cat(queries, 1), call.k, call.scale), call.text, call.image)
        return torch.stack([of_tokens[:, list(columns)].mean(1) for columns in nouns]).unflatten(1, call.grid)


@dataclass(frozen=True)
class ClusterVotes(Idea):
    """9: the pixels of each of `count` clusters of the reference's feature take their mean scores, before a refit."""

    count: int

    def maps(self, attention: HeardAttention, maps: ClassMaps) -> ClassMaps:
        plan = attention.plan
        (call,) = [call for call in attention.calls if call.block == plan.reference and call.text is not None]
        labels = rules.clusters(dense_feature(call, plan.feature), self.count)
        return replace(maps, classes=rules.voted(maps.classes, labels, call.grid))


@dataclass(frozen=True)
class LogMean(Idea):
    """6: the geometric mean of passes, not their mean."""

    def passes(
        self, segmenter: IdeaSegmenter, image: PreparedImage, passes: Sequence[ClassMaps]
    ) -> Sequence[ClassMaps]:
        return [replace(passes[0], classes=rules.geometric_mean([each.classes for each in passes]))]


@dataclass(frozen=True)
class ErrorPower(Idea):
    """10: a class's map to a power by how much its name lowers the denoising error, see `rules.raised`."""

    strength: float

    def passes(
        self, segmenter: IdeaSegmenter, image: PreparedImage, passes: Sequence[ClassMaps]
    ) -> Sequence[ClassMaps]:
        nouns = image.nouns.classes
        captions = [caption_of(nouns), *(caption_of([each for each in nouns if each != noun]) for noun in nouns)]

        def errors() -> Float[Tensor, "caption row column"]:
            shared = segmenter.shared
            latents = shared.latents(image.tiles, image.size)
            return squared_errors(shared.session(), latents, captions, SelfRule().timestep, BATCH)

        named, *unnamed = segmenter.shared.once(("errors", image.image.tobytes()), errors)
        (maps,) = passes
        drops = rules.error_drops(named, torch.stack(unnamed), maps.classes)
        return [replace(maps, classes=rules.raised(maps.classes, drops, self.strength))]


@dataclass(frozen=True)
class Variation:
    """A recipe, and what an idea changes beside it.

    Attributes:
        offsets: Timesteps, relative to the settings'.
        joint: Whether it needs joint attention.
    """

    recipe: Recipe
    idea: Idea = NO_IDEA
    offsets: tuple[int, ...] = (0,)
    joint: bool = False

    @property
    def passes(self) -> str:
        """Of the denoiser, for an image."""
        labelling = self.recipe.seeds * (1 + self.recipe.flip) * len(self.offsets)
        return f"{labelling + 1} + classes" if isinstance(self.idea, ErrorPower) else str(labelling)


@dataclass(frozen=True)
class Change:
    """Of a recipe: other rules, and an idea; `joint` as in `Variation`."""

    rules: Mapping[str, Any] = field(default_factory=dict)
    idea: Idea = NO_IDEA
    joint: bool = False

    def of(self, recipe: Recipe) -> Variation:
        """The recipe, changed."""
        return Variation(replace(recipe, **self.rules), self.idea, joint=self.joint)


CANDIDATES: Mapping[str, Mapping[str, Change]] = {
    "sharpened affinity, three times": {
        f"entropy {target}": Change({"order": 3}, Sharpened(target)) for target in (0.5, 0.6, 0.7)
    },
    "layers by how rows differ": {
        "spread": Change({"layers": rules.LAYERS_BY_SPREAD}),
        "entropy": Change({"layers": rules.LAYERS_BY_ENTROPY}),
        "second singular value": Change({"layers": rules.LAYERS_BY_SECOND_VALUE}),
    },
    "refined by similar outputs": {
        f"temperature {temperature}": Change(idea=OutputGraph(temperature)) for temperature in (0.05, 0.1, 0.2)
    },
    "both directions of attention": {
        f"power {power}": Change(idea=JointMaps(rules.looked_at, power), joint=True) for power in (0.25, 0.5, 1.0)
    },
    "two bounces of attention": {"": Change(idea=JointMaps(rules.two_bounces), joint=True)},
    "votes of clusters": {f"{count} clusters": Change(idea=ClusterVotes(count)) for count in (12, 24, 48)},
    "error drop as exponent": {
        f"strength {strength}": Change(idea=ErrorPower(strength)) for strength in (-0.3, -0.1, 0.1, 0.3)
    },
}
"""What every idea with a strength was tried with on tuning scenes, {idea: {strength: change}}."""
CHOSEN: Mapping[str, str] = {
    "sharpened affinity, three times": "entropy 0.6",
    "layers by how rows differ": "spread",
    "refined by similar outputs": "temperature 0.2",
    "both directions of attention": "power 0.25",
    "two bounces of attention": "",
    "votes of clusters": "48 clusters",
    "error drop as exponent": "strength 0.1",
}
"""The strength with the highest mean mIoU there, over both recipes and all models that can run the idea."""


def on_both(changes: Mapping[str, Change]) -> dict[str, Variation]:
    """Each change of goca-balanced and of goca-refined."""
    return {
        f"{prefix}{name}": change.of(recipe)
        for prefix, recipe in (("", GOCA_BALANCED), ("goca-refined, ", GOCA_REFINED))
        for name, change in changes.items()
    }


_chosen = on_both({name: CANDIDATES[name][strength] for name, strength in CHOSEN.items()})
IDEAS: Mapping[str, Variation] = {name: each for name, each in _chosen.items() if not isinstance(each.idea, ErrorPower)}
"""Ideas that take one pass."""
COSTLY: Mapping[str, Variation] = {
    "goca-quality, logarithms averaged": Variation(GOCA_QUALITY, LogMean()),
    "goca-quality, two more timesteps": Variation(GOCA_QUALITY, offsets=(0, -100, 100)),
    "goca-quality, four seeds": Variation(replace(GOCA_QUALITY, seeds=4)),
    **{name: each for name, each in _chosen.items() if name not in IDEAS},
}
"""Ideas that take several."""
STRENGTHS: Mapping[str, Variation] = on_both(
    {
        f"{name}: {strength}" if strength else name: change
        for name, changes in CANDIDATES.items()
        for strength, change in changes.items()
    }
)
