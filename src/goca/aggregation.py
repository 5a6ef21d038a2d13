"""AttentionAggregator: the only place where a plan meets attention.

One readout listens to one denoiser pass over one window of an image. Until the reference layer has run it keeps each
layer's head-weighted map, queries and keys; from then on only sums: of the maps, by their layers' weights, and of the
self-attention of the refinement layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from goca.diffusion.attention_call import AttentionCall
from goca.errors import GocaError
from goca.maths import Grid
from goca.maths.attention import affinity_blocks, joint_blocks, probabilities
from goca.maths.heads import head_map, head_weights
from goca.maths.layers import LayerWeigher, Reference
from goca.maths.refine import Affinity, propagate
from goca.maths.rescale import TokenMass, minmax, rescale, share, token_mass
from goca.maths.windows import Windows
from goca.recipe import Plan
from goca.text.token_spans import NounTokens


class PendingLayer(NamedTuple):
    """What is kept of an attention to pixels until the reference layer has run; head weights, where it is joint."""

    block: str
    q: Float[Tensor, "head pixel dim"]
    k: Float[Tensor, "head key dim"]
    scale: float
    mask: Float[Tensor, "#head #pixel key"] | None
    grid: Grid
    image: slice
    text: slice | None
    weights: Float[Tensor, "pixel head"] | None

    def affinity(self, rows: Int[Tensor, " row"] | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Its head-mean affinity, some rows at a time."""
        return affinity_blocks(self.q, self.k, self.scale, rows, image=self.image, mask=self.mask)


class AttentionAggregator:
    """add(AttentionCall) while the denoiser runs; then `token_mass()` and `affinity`.

    grid: the window's share of the common grid. alone: whether it is the image's only window. heads: of each layer
    that reads the text, the heads' weights, averaged over pixels.
    """

    def __init__(self, plan: Plan, words: NounTokens, grid: Grid, alone: bool = True) -> None:
        self.plan, self.words, self.grid = plan, words, grid
        # Where the windows of an image wait for each other, a matrix for each would be too much.
        self.affinity = Affinity(grid) if alone else Affinity(grid, largest=0)
        self.weights: dict[str, float] = {}
        self.heads: dict[str, Float[Tensor, " head"]] = {}
        self._total = plan.layers.fusion(grid)
        self._grids: dict[str, Grid] = {}  # of the layers that have a map
        self._read: set[str] = set()
        self._maps: dict[str, tuple[Float[Tensor, "pixel token"], Grid]] = {}  # of layers that are not weighed yet
        self._reference: Reference | None = None
        self._referenced = False
        self._waiting: list[PendingLayer] = []

    @property
    def _weighs(self) -> bool:
        return self.plan.layers.statistics is not None

    def add(self, call: AttentionCall) -> None:
        """Take what the plan needs of one attention, and forget the rest."""
        if call.text is not None and call.block in self._read:
            raise GocaError(f"{call.block} reads the text twice: this model's layout is not supported")
        if call.text is not None:
            self._read.add(call.block)
        reads = call.text is not None and self._counts(call.block)
        if reads and self.plan.maps.score is not None:
            assert call.text_output is not None  # no plan is made for a model that lacks it
            layer_map = self.plan.maps.score(call.output, call.text_output, self.words.nouns)
            self._found(call.block, layer_map, call.grid)
            reads = False
        weights = self._head_weights(call) if reads else None
        if weights is not None:
            self.heads[call.block] = weights.mean(0)
        if call.image is not None:
            text = call.text if reads else None
            # In joint attention the words' queries lie beside the pixels', and would wait with them.
            q = call.q.clone() if call.kind == "joint" and self._reference is None and self._weighs else call.q
            self._waiting.append(
                PendingLayer(call.block, q, call.k, call.scale, call.mask, call.grid, call.image, text, weights)
            )
        elif weights is not None:
            attention = probabilities(call.q, call.k, call.scale, call.mask)
            self._found(call.block, head_map(weights, attention), call.grid)
        if call.text is not None and call.block == self.plan.reference and self._weighs:
            self._reference = Reference(self._feature(call), call.grid)
            self._referenced = True
        if self._reference is not None or not self._weighs:
            while self._waiting:
                self._release(self._waiting.pop())

    def _feature(self, call: AttentionCall) -> Float[Tensor, "pixel channel"]:
        """The dense feature that a reference layer is compared by: its raw queries, or what its attention gave."""
        if self.plan.feature == "query" and call.query is not None:
            return call.query
        chosen = call.q if self.plan.feature == "query" else call.output
        return rearrange(chosen, "head pixel dim -> pixel (head dim)")

    def _counts(self, block: str) -> bool:
        return not self.plan.cross or block in self.plan.cross

    def _head_weights(self, call: AttentionCall) -> Float[Tensor, "pixel head"]:
        assert call.projection is not None  # the tap gives one wherever text is read
        parts = rearrange(call.output, "head pixel dim -> pixel head dim")
        return head_weights(self.plan.heads, parts, call.projection)

    def _release(self, call: PendingLayer) -> None:
        """Weigh a layer, add it to the refinement, and read its map off the same rows where it is joint."""
        refines = call.block in self.plan.refine and self.plan.order > 0
        dense = refines and self.affinity.is_dense(call.grid)
        weigher = None
        if self._reference is not None and self._counts(call.block):
            weigher = LayerWeigher(self.plan.layers, self._reference, call.grid)
        if dense or call.text is not None:
            self._one_pass(call, weigher, dense)
        elif weigher is not None:
            for block, rows in call.affinity(weigher.rows):
                weigher.add(block, rows)
        if refines and not dense:
            self.affinity.add(call.q, call.k, call.scale, call.grid, image=call.image, mask=call.mask)
        self._weighed(call.block, weigher.value() if weigher is not None else 1.0)

    def _one_pass(self, call: PendingLayer, weigher: LayerWeigher | None, dense: bool) -> None:
        """Every row of the affinity is computed anyway, so the layer's weight is read off the same rows."""
        place = torch.full((call.q.shape[1],), -1, device=call.q.device)
        if weigher is not None:
            place[weigher.rows] = torch.arange(len(weigher.rows), device=place.device)
        for rows, affinity in call.affinity() if call.text is None else self._joint(call):
            if dense:
                self.affinity.add_rows(rows, affinity, call.grid)
            places = place[rows]
            picked = places >= 0
            if weigher is not None and bool(picked.any()):
                first = int(places[picked][0])  # places rise with the rows, one by one
                weigher.add(slice(first, first + int(picked.sum())), affinity[picked])
        if dense:
            self.affinity.count()

    def _joint(self, call: PendingLayer) -> Iterator[tuple[slice, Tensor]]:
        """The affinity of a joint attention, row by row, while its map of the tokens is put together."""
        assert call.text is not None
        assert call.weights is not None
        parts: list[Tensor] = []
        blocks = joint_blocks(call.q, call.k, call.scale, call.weights, call.text, call.image, call.mask)
        for rows, tokens, affinity in blocks:
            parts.append(tokens)
            yield rows, affinity
        self._found(call.block, torch.cat(parts), call.grid)

    def _found(self, block: str, layer_map: Float[Tensor, "pixel token"], grid: Grid) -> None:
        """A layer's map; it joins the others once the layer is weighed."""
        self._maps[block] = (layer_map, grid)
        self._grids[block] = grid
        if block in self.weights:
            self._weighed(block, self.weights[block])

    def _weighed(self, block: str, weight: float) -> None:
        """A layer's weight; with its map it joins the others."""
        self.weights[block] = weight
        if block in self._maps:
            layer_map, grid = self._maps.pop(block)
            self._total.add(weight, layer_map, grid)

    def layer_weights(self) -> dict[str, float]:
        """{block: weight}, summing to 1 over the layers whose maps take part."""
        having = [(block, weight) for block, weight in self.weights.items() if block in self._grids]
        raw = {block: weight * self._total.effective_weight(self._grids[block]) for block, weight in having}
        total = sum(raw.values())
        return {block: weight / total if total else 1 / len(raw) for block, weight in raw.items()}

    def global_map(self) -> Float[Tensor, "token height width"]:
        """All layers as one map of the tokens, on the common grid; once the denoiser has run."""
        if self._weighs and not self._referenced:
            raise GocaError(f"the reference block {self.plan.reference} has no cross-attention: choose another")
        self._reference = None  # all layers are weighed, and its affinity is large
        for block in tuple(self._maps):  # those that have no self-attention to compare
            self._weighed(block, 0.0 if self._weighs else 1.0)
        whole = self._total.value()
        if not bool(torch.isfinite(whole).all()):
            raise GocaError(
                "the model's attention is not finite: run it in float32 or bfloat16 (--dtype), or check its weights"
            )
        return whole

    def token_mass(self) -> TokenMass:
        """What the global map says of the nouns: classes first, then background classes."""
        return token_mass(self.global_map(), self.words.nouns, self.words.content, self.words.prompt)


@dataclass(frozen=True)
class JoinedAffinity:
    """The affinities of an image's windows as one: each acts on its part of the maps, and the parts are joined."""

    windows: Windows
    parts: Sequence[Affinity]

    def apply(self, maps: Float[Tensor, "class height width"]) -> Float[Tensor, "class height width"]:
        pairs = zip(self.parts, self.windows.boxes, strict=True)
        return self.windows.join([affinity.apply(self.windows.cut(maps, box)) for affinity, box in pairs])


@dataclass(frozen=True)
class Maps:
    """Refined scores on the common grid, each map in [0, 1]; background is None where there are no background classes."""

    classes: Float[Tensor, "class height width"]
    background: Float[Tensor, "height width"] | None

    def mirrored(self) -> "Maps":
        """Left and right exchanged."""
        return Maps(self.classes.flip(-1), None if self.background is None else self.background.flip(-1))


@runtime_checkable
class Seen(Protocol):
    """What a readout has to tell, or several as one: see `AttentionAggregator`."""

    @property
    def words(self) -> NounTokens: ...

    @property
    def affinity(self) -> Affinity: ...

    def token_mass(self) -> TokenMass: ...


def scores(plan: Plan, windows: Windows, readouts: Sequence[Seen]) -> Maps:
    """From the readouts of an image's windows, all asked with one prompt, to refined class maps over the image.

    Windows are joined before the maps are rescaled, so that classes compare over the whole image.
    """
    seen = [readout.token_mass() for readout in readouts]
    joined = TokenMass(
        windows.join([one.raw for one in seen]),
        windows.join([one.content[None] for one in seen])[0],
        windows.join([one.prompt[None] for one in seen])[0],
    )
    words = readouts[0].words
    # With one noun its share is 1 everywhere and says nothing.
    steps = [step for step in plan.rescale if step is not share or len(words.nouns) > 1]
    maps = rescale(joined, steps)
    count = len(words.classes)
    if words.background_classes:
        maps = torch.cat([maps[:count], maps[count:].amax(0, keepdim=True)])
    affinity = JoinedAffinity(windows, [readout.affinity for readout in readouts])
    if plan.order:
        maps = minmax(propagate(affinity, maps, plan.order))
    return Maps(maps[:count], maps[count] if words.background_classes else None)
