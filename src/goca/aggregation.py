"""Auto aggregation, while the denoiser runs: the only place where a plan meets attention.

An `AttentionAggregator` takes the attention of one denoiser pass over one window of an image. Until the reference layer
has run it keeps each layer's head-weighted map, queries and keys; from then on only sums: of the maps, by their layers'
weights, and of the self-attention of the refinement layers. For a recipe that refits scores it keeps what the
refinement blocks' attentions gave the pixels, in the model's own precision: on SD 1.5 six outputs of 4096 x 320 numbers
for each window, 16 MB in half precision, and as much again while features are made of them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from goca.diffusion.attention_call import AttentionCall
from goca.errors import GocaError
from goca.maths import Grid
from goca.maths.attention import Keys, Mask, Queries, affinity_blocks, joint_blocks, probabilities, side_map
from goca.maths.heads import head_map, head_weights
from goca.maths.layers import LayerWeigher, Reference
from goca.maths.refine import Affinity
from goca.maths.refit import ImageFeatures, components
from goca.maths.rescale import TokenMass, mass_of_means, token_mass
from goca.maths.windows import Windows
from goca.plan import Plan
from goca.text.token_spans import NounTokens, TextKeys

INDISTINCT = 1e-6
"""Columns of the global map that differ by less than this share of the largest value differ by rounding alone."""


class PendingLayer(NamedTuple):
    """What is kept of an attention among pixels until the reference layer has run.

    text, weights: for joint attention, the text's keys and the weights of the heads.
    """

    block: str
    q: Queries
    k: Keys
    scale: float
    mask: Mask
    grid: Grid
    image: slice
    text: slice | None
    weights: Float[Tensor, "pixel head"] | None

    def affinity(self, rows: Int[Tensor, " row"] | None = None) -> Iterator[tuple[slice, Tensor]]:
        """The head-mean affinity, a block of rows at a time."""
        return affinity_blocks(self.q, self.k, self.scale, rows, image=self.image, mask=self.mask)


class AttentionAggregator:
    """Sums the attention of one pass over one window: `add` while the denoiser runs, then `token_mass` and `affinity`.

    Args:
        plan, tokens: the rules, and where the nouns are in the prompt.
        grid: (height, width) of the window on the common grid.
        only_window: whether the image has no other window: for each of several a matrix would be too much memory, so
            queries and keys are kept for refinement.

    Attributes:
        affinity: of the refinement layers.
        weights: {block: the layer's weight}, not normalised; see `layer_weights`.
        heads: {block: the weight of each head}, averaged over pixels, of the layers that attend to the text.
        grids: {block: the (height, width) of its map}, of the layers with a map.
        outputs: [(block, what one of its attentions gave the pixels, their grid)], of the refinement blocks, where the
            plan refits scores.
    """

    def __init__(self, plan: Plan, tokens: NounTokens, grid: Grid, only_window: bool = True) -> None:
        self.plan, self.tokens, self.grid = plan, tokens, grid
        self.affinity = Affinity(grid) if only_window else Affinity(grid, largest=0)
        self.weights: dict[str, float] = {}
        self.heads: dict[str, Float[Tensor, " head"]] = {}
        self._total = plan.layers.fusion(grid)
        self.grids: dict[str, Grid] = {}
        self.outputs: list[tuple[str, Float[Tensor, "head pixel dim"], Grid]] = []
        self._read: set[str] = set()
        self._maps: dict[str, tuple[Float[Tensor, "pixel token"], Grid]] = {}  # of layers without a weight yet
        self._reference: Reference | None = None
        self._pending: list[PendingLayer] = []

    @property
    def _weighs(self) -> bool:
        return self.plan.layers.statistics is not None

    def add(self, call: AttentionCall) -> None:
        """Take from one attention what the plan needs. Raises GocaError for a block that attends to the text twice."""
        if call.text is not None:
            if call.block in self._read:
                raise GocaError(f"{call.block} reads the text twice: this model's layout is not supported")
            self._read.add(call.block)
        if self.plan.refit is not None and call.block in self.plan.refine:
            self.outputs.append((call.block, call.output, call.grid))
        reads = call.text is not None and self._takes_part(call.block)
        weights, wider = None, call
        if reads and self.plan.maps is not None:
            assert call.text_output is not None  # plans of such rules need joint attention, which has it
            layer_map = self.plan.maps(call.output, call.text_output, self.tokens.nouns)
            self._add_map(call.block, layer_map, call.grid)
        elif reads:
            assert call.projection is not None  # the hook has one wherever text is read
            if self.tokens.side_keys:
                wider = with_side_keys(call, self.tokens.side_keys)
            parts = rearrange(wider.output, "head pixel dim -> pixel head dim")
            weights = head_weights(self.plan.heads, parts, call.projection)
            self.heads[call.block] = weights.mean(0)
        if call.image is not None:
            text = call.text if weights is not None else None
            # In joint attention a slice would keep the text's queries alive as well.
            q = call.q.clone() if call.kind == "joint" and self._reference is None and self._weighs else call.q
            self._pending.append(
                PendingLayer(call.block, q, call.k, call.scale, call.mask, call.grid, call.image, text, weights)
            )
        elif weights is not None and self.tokens.side_keys:
            layer_map = side_map(wider.q, wider.k, self.tokens.counts, wider.scale, weights, wider.mask)
            self._add_map(call.block, layer_map, call.grid)
        elif weights is not None:
            attention = probabilities(call.q, call.k, call.scale, call.mask)
            self._add_map(call.block, head_map(weights, attention), call.grid)
        if call.text is not None and call.block == self.plan.reference and self._weighs:
            self._reference = Reference(dense_feature(call, self.plan.feature), call.grid)
        if self._reference is not None or not self._weighs:
            while self._pending:
                self._release(self._pending.pop())

    def _takes_part(self, block: str) -> bool:
        return not self.plan.cross or block in self.plan.cross

    def _release(self, call: PendingLayer) -> None:
        """Weigh a layer, add it to the refinement and, in joint attention, compute its map, all from the same rows."""
        refines = call.block in self.plan.refine and self.plan.order > 0
        dense = refines and self.affinity.is_dense(call.grid)
        weigher = None
        if self._reference is not None and self._takes_part(call.block):
            weigher = LayerWeigher(self.plan.layers, self._reference, call.grid)
        if dense or call.text is not None:  # every row is computed anyway
            for rows, affinity in call.affinity() if call.text is None else self._joint(call):
                if dense:
                    self.affinity.add_rows(rows, affinity, call.grid)
                if weigher is not None:
                    weigher.add_rows(rows, affinity)
            self.affinity.layers += dense
        elif weigher is not None:
            for block, affinity in call.affinity(weigher.rows):
                weigher.add(block, affinity)
        if refines and not dense:
            self.affinity.add(call.q, call.k, call.scale, call.grid, image=call.image, mask=call.mask)
        self._add_weight(call.block, weigher.value() if weigher is not None else 1.0)

    def _joint(self, call: PendingLayer) -> Iterator[tuple[slice, Tensor]]:
        """The affinity of a joint attention, block by block of rows; its map of the tokens is added at the end."""
        assert call.text is not None
        assert call.weights is not None
        token_rows: list[Tensor] = []
        blocks = joint_blocks(call.q, call.k, call.scale, call.weights, call.text, call.image, call.mask)
        for rows, tokens, affinity in blocks:
            token_rows.append(tokens)
            yield rows, affinity
        self._add_map(call.block, torch.cat(token_rows), call.grid)

    def _add_map(self, block: str, layer_map: Float[Tensor, "pixel token"], grid: Grid) -> None:
        """Keep a layer's map until the layer has a weight."""
        self._maps[block] = (layer_map, grid)
        self.grids[block] = grid
        if block in self.weights:
            self._add_weight(block, self.weights[block])

    def _add_weight(self, block: str, weight: float) -> None:
        """Add a layer to the sum as soon as it has both a weight and a map."""
        self.weights[block] = weight
        if block in self._maps:
            layer_map, grid = self._maps.pop(block)
            self._total.add(weight, layer_map, grid)

    def layer_weights(self) -> dict[str, float]:
        """{block: weight}, summing to 1 over the layers whose maps take part."""
        weight_of = self._total.effective_weight
        raw = {
            block: weight * weight_of(self.grids[block])
            for block, weight in self.weights.items()
            if block in self.grids
        }
        total = sum(raw.values())
        return {block: weight / total if total else 1 / len(raw) for block, weight in raw.items()}

    def global_map(self) -> Float[Tensor, "token height width"]:
        """All layers as one map of the tokens on the common grid, once the denoiser has run.

        Raises GocaError where the reference block has no cross-attention, or attention is not finite.
        """
        if self._weighs and self.plan.reference not in self._read:
            raise GocaError(f"the reference block {self.plan.reference} has no cross-attention: choose another")
        self._reference = None  # all layers have a weight, and its affinity is large
        for block in tuple(self._maps):  # layers without self-attention to compare
            self._add_weight(block, 0.0 if self._weighs else 1.0)
        global_map = self._total.value()
        if not bool(torch.isfinite(global_map).all()):
            raise GocaError(
                "the model's attention is not finite: run it in float32 or bfloat16, or check its weights", hint="dtype"
            )
        return global_map

    def token_mass(self) -> TokenMass:
        """The nouns' shares of the global map: classes first, then background classes.

        Raises GocaError where `global_map` does, and for attention that says nothing: it tells no word, or no place in
        the image, from another.
        """
        global_map = self.global_map()
        on_the_side = bool(self.tokens.side_keys)
        columns = global_map[1:] if on_the_side else global_map[list(self.tokens.content)]
        for axes, where in (((0,), "for every word"), ((-2, -1), "everywhere in the image")):
            spread = columns.amax(axes) - columns.amin(axes)
            if spread.numel() < columns.numel() and bool(spread.max() <= INDISTINCT * columns.abs().max()):
                raise GocaError(f"the model's attention is the same {where}: are its weights complete?")
        if on_the_side:
            return mass_of_means(columns, self.tokens.counts)
        return token_mass(global_map, self.tokens.nouns, self.tokens.content, self.tokens.prompt)


def dense_feature(call: AttentionCall, feature: str) -> Float[Tensor, "pixel channel"]:
    """What a reference block compares pixels by: its raw "query", or its attention's "output"."""
    if feature == "query" and call.query is not None:
        return call.query
    chosen = call.q if feature == "query" else call.output
    return rearrange(chosen, "head pixel dim -> pixel (head dim)")


def with_side_keys(call: AttentionCall, side_keys: Sequence[TextKeys]) -> AttentionCall:
    """A cross-attention as it were if the texts' keys and values stood behind the caption's.

    The heads are then weighed by what they make of the classes, of which the model itself was told nothing.
    """
    keys, values = zip(*(text[call.block] for text in side_keys), strict=True)
    k, v = torch.cat([call.k, *keys], 1), torch.cat([call.v, *values], 1)
    mask = None if call.mask is None else F.pad(call.mask, (0, k.shape[1] - call.k.shape[1]))
    # With all four axes, or PyTorch would make the whole matrix on a CPU.
    bias = None if mask is None else mask[None].to(call.q.dtype)
    output = F.scaled_dot_product_attention(call.q[None], k[None], v[None], bias, scale=call.scale)[0]
    return replace(call, k=k, v=v, mask=mask, output=output, text=slice(0, k.shape[1]))


@dataclass(frozen=True)
class JoinedAffinity:
    """The affinities of an image's windows: each acts on its part of the maps, and the parts are joined."""

    windows: Windows
    parts: Sequence[Affinity]

    def apply(self, maps: Float[Tensor, "class height width"]) -> Float[Tensor, "class height width"]:
        pairs = zip(self.parts, self.windows.boxes, strict=True)
        return self.windows.join([affinity.apply(self.windows.cut(maps, box)) for affinity, box in pairs])


@dataclass(frozen=True)
class ImageAttention:
    """The attention to an image under one prompt: the sums of its windows, joined."""

    windows: Windows
    tokens: NounTokens
    aggregators: tuple[AttentionAggregator, ...]

    @classmethod
    def of(cls, plan: Plan, windows: Windows, tokens: NounTokens) -> "ImageAttention":
        """Nothing summed yet."""
        grid = windows.boxes[0].height, windows.boxes[0].width
        only_window = len(windows.boxes) == 1
        return cls(windows, tokens, tuple(AttentionAggregator(plan, tokens, grid, only_window) for _ in windows.boxes))

    def token_mass(self) -> TokenMass:
        """The nouns' shares over the whole image; joined before rescaling, so that classes compare everywhere."""
        parts = [aggregator.token_mass() for aggregator in self.aggregators]
        return TokenMass(*map(self.windows.join, zip(*parts, strict=True)))

    def features(self) -> ImageFeatures | None:
        """What scores are refitted to: the finest of the refinement blocks' outputs; None where none are kept."""
        plan, outputs = self.aggregators[0].plan, self.aggregators[0].outputs
        if not outputs:
            return None
        finest = max((grid for *_, grid in outputs), key=math.prod)
        chosen = [number for number, (*_, grid) in enumerate(outputs) if grid == finest]
        chosen.sort(key=lambda number: plan.refine.index(outputs[number][0]))
        sides = [[aggregator.outputs[number][1] for aggregator in self.aggregators] for number in chosen]
        layers = [rearrange(torch.cat(parts, 1), "head pixel dim -> pixel (head dim)") for parts in sides]
        return ImageFeatures(self.windows, finest, components(layers))

    @property
    def affinity(self) -> JoinedAffinity:
        """What refines, under the plan's rule, each window by itself."""
        parts = [each.affinity.under(each.plan.affinity, each.grid) for each in self.aggregators]
        return JoinedAffinity(self.windows, parts)
