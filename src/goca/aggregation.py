"""Auto aggregation, while the denoiser runs: the only place where a plan meets attention.

An `AttentionAggregator` takes the attention of one denoiser pass over one window of an image. Until the reference layer
has run, it keeps each layer's head-weighted map, queries and keys; from then on only sums: of the maps, by layer
weight, and of the self-attention of the refinement layers. For a recipe that refits scores it also keeps the
attention outputs of the refinement blocks, in the model's own precision: on SD 1.5 six outputs of 4096 x 320 numbers
for each window, 16 MB in half precision, and as much again while features are computed from them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from goca.diffusion.attention_call import AttentionCall
from goca.errors import GocaError
from goca.maths import Grid
from goca.maths.attention import (
    Keys,
    Mask,
    Queries,
    affinities,
    affinity_blocks,
    block_elements,
    joint_blocks,
    probabilities,
    side_map,
)
from goca.maths.fusion import LEAST, Weight
from goca.maths.heads import HeadRule, equal_weights, head_map, head_weights
from goca.maths.layers import LayerWeigher, Reference, layer_weight
from goca.maths.refine import Affinity
from goca.maths.refit import ImageFeatures, components
from goca.maths.rescale import TokenMass, mass_of_means, token_mass
from goca.maths.resize import picked
from goca.maths.windows import Windows
from goca.plan import Plan
from goca.text.token_spans import NounTokens, TextKeys

INDISTINCT = 1e-6
"""Columns of the global map that differ by less than this share of the largest value differ only by rounding."""


LAYERS_AT_ONCE = {"cpu": 1, "cuda": 8}
"""Number of layers of one shape whose maps are computed at once. On a CPU this would only miss the cache; a GPU would
otherwise wait for many small launches."""


def _at_once(like: Tensor) -> int:
    return LAYERS_AT_ONCE.get(like.device.type, LAYERS_AT_ONCE["cuda"])


class PendingLayer(NamedTuple):
    """A self-attention that is kept until the reference layer has run.

    text, weights: for joint attention, the text's keys and the weights of the heads; None if all heads weigh the same.
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

    def affinity(self) -> Iterator[tuple[slice, Tensor]]:
        """The head-mean affinity, a block of rows at a time."""
        return affinity_blocks(self.q, self.k, self.scale, image=self.image, mask=self.mask)


class AttentionAggregator:
    """Sums the attention of one pass over one window: `add` while the denoiser runs, then `token_mass` and `affinity`.

    Args:
        plan, tokens: The rules, and the positions of the nouns in the prompt.
        grid: (height, width) of the window on the common grid.
        only_window: Whether the image has a single window: for several, a matrix each would take too much memory, so
            queries and keys are kept for refinement.

    Attributes:
        affinity: Affinity of the refinement layers.
        weights: {block: the layer's weight}, not normalised, on the device; see `layer_weights`.
        heads: {block: the weight of each head}, averaged over pixels, of the layers that attend to the text.
        grids: {block: the (height, width) of its map}, of the layers with a map.
        outputs: [(block, the output of one of its attentions for the pixels, their grid)], of the refinement blocks,
            if the plan refits scores.
    """

    def __init__(self, plan: Plan, tokens: NounTokens, grid: Grid, only_window: bool = True) -> None:
        self.plan, self.tokens, self.grid = plan, tokens, grid
        self.affinity = Affinity(grid) if only_window else Affinity(grid, largest=0)
        self.weights: dict[str, Weight] = {}
        self.heads: dict[str, Float[Tensor, " head"]] = {}
        self._total = plan.layers.fusion(grid)
        self.grids: dict[str, Grid] = {}
        self.outputs: list[tuple[str, Float[Tensor, "head pixel dim"], Grid]] = []
        self._read: dict[str, None] = {}  # the blocks that have attended to the text, in their order
        self._maps: dict[str, tuple[Float[Tensor, "pixel token"], Grid]] = {}  # of layers without a weight yet
        self._reference: Reference | None = None
        self._pending: list[PendingLayer] = []
        self._unweighed: dict[tuple[Any, ...], list[PendingLayer]] = {}  # by shape
        self._unread: dict[tuple[Any, ...], dict[str, tuple[Tensor, ...]]] = {}  # by shape: {block: its inputs}

    @property
    def _weighs(self) -> bool:
        return self.plan.layers.statistics is not None

    def add(self, call: AttentionCall) -> None:
        """Take what the plan needs from one attention. Raises GocaError for a block that attends to the text twice."""
        if call.text is not None:
            if call.block in self._read:
                raise GocaError(f"{call.block} reads the text twice: this model's layout is not supported")
            self._read[call.block] = None
        if self.plan.refit is not None and call.block in self.plan.refine:
            self.outputs.append((call.block, call.output, call.grid))
        reads = call.text is not None and self._takes_part(call.block)
        weights, wider, weighed = None, call, False
        if reads and self.plan.maps is not None:
            assert call.text_output is not None  # plans of such rules need joint attention, which has it
            layer_map = self.plan.maps(call.output, call.text_output, self.tokens.nouns)
            self._add_map(call.block, layer_map, call.grid)
        elif reads and call.kind == "cross" and not self.tokens.side_keys:
            self._read_together(call)
        elif reads:
            assert call.projection is not None  # the hook has one wherever text is read
            if self.tokens.side_keys:
                wider = with_side_keys(call, self.tokens.side_keys)
            weighed = True
            if self.plan.heads is None and call.image is not None:
                self.heads[call.block] = equal_weights(len(call.q), call.q.device)
            else:
                parts = rearrange(wider.output, "head pixel dim -> pixel head dim")
                weights = head_weights(self.plan.heads, parts, call.projection)
                self.heads[call.block] = weights.mean(0)
        if call.image is not None:
            text = call.text if weighed else None
            # In joint attention, a slice would keep the text's queries alive as well.
            q = call.q.clone() if call.kind == "joint" and self._reference is None and self._weighs else call.q
            self._pending.append(
                PendingLayer(call.block, q, call.k, call.scale, call.mask, call.grid, call.image, text, weights)
            )
        elif weights is not None:
            layer_map = side_map(wider.q, wider.k, self.tokens.counts, wider.scale, weights, wider.mask)
            self._add_map(call.block, layer_map, call.grid)
        if call.text is not None and call.block == self.plan.reference and self._weighs:
            feature = self.plan.reference_channels(dense_feature(call, self.plan.feature))
            self._reference = Reference(feature, call.grid)
        if self._reference is not None or not self._weighs:
            while self._pending:
                self._release(self._pending.pop())

    def _read_together(self, call: AttentionCall) -> None:
        """Compute the map of a cross-attention as soon as a full batch of its shape is waiting."""
        assert call.projection is not None  # the hook has one wherever text is read
        needed = (call.output, call.projection, call.q, call.k, *(() if call.mask is None else (call.mask,)))
        shape = (call.grid, call.scale, *(tensor.shape for tensor in needed))
        layers = self._unread.setdefault(shape, {})
        layers[call.block] = needed
        if len(layers) >= _at_once(call.q):
            self._read_layers(shape)

    def _read_layers(self, shape: tuple[Any, ...]) -> None:
        grid, scale, *_ = shape
        layers = self._unread.pop(shape)
        layer_map = partial(_head_weighed_map, self.plan.heads, scale)
        if len(layers) == 1:
            maps = [layer_map(*needed) for needed in layers.values()]
        else:
            stacked = (torch.stack(tensors) for tensors in zip(*layers.values(), strict=True))
            maps = list(zip(*torch.vmap(layer_map)(*stacked), strict=True))
        for block, (heads, weighed) in zip(layers, maps, strict=True):
            self.heads[block] = heads
            self._add_map(block, weighed, grid)

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
        if refines and not dense:
            self.affinity.add(call.q, call.k, call.scale, call.grid, image=call.image, mask=call.mask)
        if weigher is None or dense or call.text is not None:
            self._add_weight(call.block, weigher.value() if weigher is not None else 1.0)
            return
        count = len(weigher.rows)
        elements = len(call.q) * count * call.k.shape[1]
        keys = call.image.start, call.image.stop
        shape = (call.grid, call.scale, call.q.shape, call.k.shape, keys, call.mask is None)
        layers = self._unweighed.setdefault(shape, [])
        if count < call.grid[0] * call.grid[1]:
            mask = call.mask if call.mask is None or call.mask.shape[1] == 1 else call.mask[:, weigher.rows]
            call = call._replace(q=call.q[:, weigher.rows], mask=mask)
        layers.append(call)
        if call.mask is not None or len(layers) >= min(_at_once(call.q), block_elements(call.q) // elements):
            self._weigh_layers(shape)

    def _weigh_layers(self, shape: tuple[Any, ...]) -> None:
        """Weigh layers of one shape; only the queries that the reference grid samples are kept."""
        layers, reference, grid = self._unweighed.pop(shape), self._reference, shape[0]
        assert reference is not None  # otherwise no layer is weighed
        weight = partial(layer_weight, self.plan.layers, reference, grid)
        if len(layers) == 1:
            weights = [weight(layers[0].affinity())]
        else:
            q, k = (torch.stack(tensors) for tensors in zip(*((call.q, call.k) for call in layers), strict=True))
            affinity = affinities(q, k, layers[0].scale)[..., layers[0].image]
            stacked: Any = torch.vmap(lambda rows: weight([(slice(0, len(rows)), rows)]))(affinity)
            weights = list(stacked)
        for call, value in zip(layers, weights, strict=True):
            self._add_weight(call.block, value)

    def _joint(self, call: PendingLayer) -> Iterator[tuple[slice, Tensor]]:
        """The affinity of a joint attention, one block of rows at a time; its map of the tokens is added at the end."""
        assert call.text is not None
        pixels, tokens = call.q.shape[1], len(range(call.k.shape[1])[call.text])
        layer_map = call.q.new_empty(pixels, tokens, dtype=torch.float32)
        blocks = joint_blocks(call.q, call.k, call.scale, call.weights, call.text, call.image, call.mask)
        for rows, of_tokens, affinity in blocks:
            layer_map[rows] = of_tokens
            yield rows, affinity
        self._add_map(call.block, layer_map, call.grid)

    def _add_map(self, block: str, layer_map: Float[Tensor, "pixel token"], grid: Grid) -> None:
        """Keep a layer's map until the layer has a weight."""
        self._maps[block] = (layer_map, grid)
        self.grids[block] = grid
        if block in self.weights:
            self._add_weight(block, self.weights[block])

    def _add_weight(self, block: str, weight: Weight) -> None:
        """Add a layer to the sum as soon as it has both a weight and a map."""
        self.weights[block] = weight
        if block in self._maps:
            layer_map, grid = self._maps.pop(block)
            self._total.add(weight, layer_map, grid)

    def layer_weights(self) -> dict[str, float]:
        """{block: weight}, summing to 1 over the layers whose maps take part."""
        tensors = {block: weight for block, weight in self.weights.items() if isinstance(weight, Tensor)}
        values = torch.stack(list(tensors.values())).tolist() if tensors else []  # a single GPU synchronisation
        weights = {
            **self.weights,
            **{block: 0.0 if value <= 2 * LEAST else value for block, value in zip(tensors, values, strict=True)},
        }
        weight_of = self._total.effective_weight
        raw = {block: float(weights[block] * weight_of(self.grids[block])) for block in weights if block in self.grids}
        total = sum(raw.values())
        return {block: weight / total if total else 1 / len(raw) for block, weight in raw.items()}

    def global_map(self, checked: bool = True) -> Float[Tensor, "token height width"]:
        """All layers combined into one map of the tokens on the common grid; valid once the denoiser has run.

        Raises GocaError if the reference block has no cross-attention or, with `checked`, attention is not finite.
        """
        if self._weighs and self.plan.reference not in self._read:
            raise GocaError(f"the reference block {self.plan.reference} has no cross-attention: choose another block")
        for shape in tuple(self._unweighed):
            self._weigh_layers(shape)
        self._reference = None  # no longer needed, and large
        for shape in tuple(self._unread):
            self._read_layers(shape)
        self.heads = {block: self.heads[block] for block in self._read if block in self.heads}
        for block in tuple(self._maps):  # layers without self-attention to compare
            self._add_weight(block, 0.0 if self._weighs else 1.0)
        global_map = self._total.value()
        if checked:
            check_attention(global_map)
        return global_map

    def token_mass(self) -> TokenMass:
        """The nouns' shares of the global map: classes first, then background classes.

        Raises GocaError if `global_map` does, and for attention that carries no information: it is the same for every
        word, or everywhere in the image.
        """
        global_map = self.global_map(checked=False)
        on_the_side = bool(self.tokens.side_keys)
        columns = global_map[1:] if on_the_side else picked(global_map, self.tokens.content)
        check_attention(global_map, columns)
        if on_the_side:
            return mass_of_means(columns, self.tokens.counts)
        return token_mass(global_map, self.tokens.nouns, self.tokens.content, self.tokens.prompt)


def _head_weighed_map(
    rule: HeadRule,
    scale: float,
    output: Float[Tensor, "head pixel dim"],
    projection: Float[Tensor, "head dim model"],
    q: Queries,
    k: Keys,
    mask: Mask = None,
) -> tuple[Float[Tensor, " head"], Float[Tensor, "pixel token"]]:
    """(the weights of a cross-attention's heads, averaged over pixels; its map)."""
    weights = head_weights(rule, rearrange(output, "head pixel dim -> pixel head dim"), projection)
    return weights.mean(0), head_map(weights, probabilities(q, k, scale, mask))


def check_attention(global_map: Float[Tensor, "token h w"], columns: Float[Tensor, "noun h w"] | None = None) -> None:
    """Raise GocaError for attention that is not finite or, in `columns`, constant; synchronises a GPU only once."""
    facts, differ = [global_map.abs().amax()], []
    if columns is not None:
        cells = columns.flatten(1)
        facts.append(cells.abs().amax())
        for axis, where in enumerate(("for every word", "everywhere in the image")):
            if cells.shape[axis] > 1:  # otherwise there is nothing to differ from
                low, high = cells.aminmax(dim=axis)
                facts.append((high - low).amax())
                differ.append(where)
    largest, *of_columns = torch.stack(facts).tolist()
    if not math.isfinite(largest):
        raise GocaError(
            "the model's attention is not finite: run it in float32 or bfloat16, or check its weights", hint="dtype"
        )
    for spread, where in zip(of_columns[1:], differ, strict=True):
        if spread <= INDISTINCT * of_columns[0]:
            raise GocaError(f"the model's attention is the same {where}: check that its weights are complete")


def dense_feature(call: AttentionCall, feature: str) -> Float[Tensor, "pixel channel"]:
    """The feature by which a reference block compares pixels: its raw "query", or its attention's "output"."""
    if feature == "query" and call.query is not None:
        return call.query
    chosen = call.q if feature == "query" else call.output
    return rearrange(chosen, "head pixel dim -> pixel (head dim)")


def with_side_keys(call: AttentionCall, side_keys: Sequence[TextKeys]) -> AttentionCall:
    """A cross-attention as if the texts' keys and values were appended to the caption's.

    The heads are then weighed by their response to the classes, although the model itself did not see them.
    """
    keys, values = zip(*(text[call.block] for text in side_keys), strict=True)
    k, v = torch.cat([call.k, *keys], 1), torch.cat([call.v, *values], 1)
    mask = None if call.mask is None else F.pad(call.mask, (0, k.shape[1] - call.k.shape[1]))
    # With all four axes; otherwise PyTorch would build the whole matrix on a CPU.
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
        """An empty instance, with nothing summed yet."""
        grid = windows.boxes[0].height, windows.boxes[0].width
        only_window = len(windows.boxes) == 1
        return cls(windows, tokens, tuple(AttentionAggregator(plan, tokens, grid, only_window) for _ in windows.boxes))

    def token_mass(self) -> TokenMass:
        """The nouns' shares over the whole image; joined before rescaling, so that classes compare everywhere."""
        parts = [aggregator.token_mass() for aggregator in self.aggregators]
        return TokenMass(*map(self.windows.join, zip(*parts, strict=True)))

    def features(self) -> ImageFeatures | None:
        """The features to refit scores to: the finest of the refinement blocks' outputs; None if none are kept."""
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
        """The affinity that refines, under the plan's rule, each window separately."""
        parts = [each.affinity.under(each.plan.affinity, each.grid) for each in self.aggregators]
        return JoinedAffinity(self.windows, parts)
