"""Maps of tokens layer by layer, and head by head: the terms of an aggregation, before they are summed."""

from collections.abc import Collection, Sequence
from operator import index
from typing import SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from goca.diffusion.attention_call import AttentionCall
from goca.errors import GocaError
from goca.maths import Grid
from goca.maths.attention import token_columns
from goca.maths.heads import HeadRule, head_map, head_weights

MAX_KEPT = 2**30
"""Most bytes of maps that are kept in CPU memory, besides the sums that always exist."""


class Budget:
    """The number of bytes of maps that may still be kept."""

    def __init__(self, left: int | None = None) -> None:
        self.left = MAX_KEPT if left is None else left

    def take(self, needed: int) -> bool:
        """Take bytes from the budget; returns whether that many were left."""
        if needed > self.left:
            return False
        self.left -= needed
        return True


class LayerMaps:
    """The maps of some tokens in every layer that attends to the text, summed over calls, on the layer's own grid.

    Memory: 4 bytes for each token and cell of a layer, with heads as much again for each of them; layers that exceed
    the budget are left out.

    Args:
        indices: The tokens.
        rule: How heads are weighed.
        blocks: The layers; None for all.
        each_head: Whether the heads' maps are kept too.
        budget: Shared with everything else that is kept.
    """

    def __init__(
        self, indices: Sequence[int], rule: HeadRule, blocks: Collection[str] | None, each_head: bool, budget: Budget
    ) -> None:
        self.indices, self.grids = tuple(indices), dict[str, Grid]()
        self.each_head = each_head
        self._rule, self._blocks, self._budget = rule, blocks, budget
        self._layers: dict[str, Float[Tensor, "pixel token"]] = {}
        self._heads: dict[str, Float[Tensor, "head pixel token"]] = {}
        self._counts: dict[str, int] = {}
        self._no_room: set[str] = set()

    def add(self, call: AttentionCall) -> None:
        """Add the tokens' maps in a layer; self-attention and layers that were not chosen are ignored."""
        block = call.block
        if call.text is None or block in self._no_room or not (self._blocks is None or block in self._blocks):
            return
        heads, pixels, _ = call.q.shape
        if block not in self._layers:
            if not self._budget.take(4 * len(self.indices) * pixels * (1 + heads * self.each_head)):
                self._no_room.add(block)
                return
            self.grids[block], self._counts[block] = call.grid, 0
            self._layers[block] = torch.zeros(pixels, len(self.indices))
            if self.each_head:
                self._heads[block] = torch.zeros(heads, pixels, len(self.indices))
        assert call.projection is not None  # the hook has one wherever text is read
        keys = range(call.k.shape[1])[call.text]
        # A pipeline may mask the end of a prompt, which then gets no attention.
        there = [position for position, token in enumerate(self.indices) if token < len(keys)]
        columns = token_columns(
            call.q, call.k, call.scale, [keys[self.indices[position]] for position in there], call.mask
        )
        weights = head_weights(self._rule, call.output.transpose(0, 1), call.projection)
        self._layers[block][:, there] += head_map(weights, columns).cpu()
        if self.each_head:
            self._heads[block][:, :, there] += columns.cpu()
        self._counts[block] += 1

    @property
    def nbytes(self) -> int:
        """Bytes of all maps."""
        return sum(maps.nbytes for kept in (self._layers, self._heads) for maps in kept.values())

    def layer(self, block: str) -> Float[Tensor, "token height width"]:
        """A layer's maps, averaged over the calls: the heads' by their weights at each pixel.

        Raises:
            GocaError: They are not kept.
        """
        if block not in self._layers:
            reason = (
                "it did not fit in the memory limit: name fewer layers" if block in self._no_room else "it is not kept"
            )
            raise GocaError(f'there is no map of layer "{block}", {reason}; choose from {", ".join(self._layers)}')
        return self._on_grid(self._layers[block], block)

    def heads(self, block: str) -> Float[Tensor, "head token height width"]:
        """The maps of a layer's heads, averaged over the calls.

        Raises:
            GocaError: They are not kept.
        """
        if not self.each_head:
            raise GocaError('the maps of single heads are not kept: ask for them with keep="heads"')
        self.layer(block)
        return self._on_grid(self._heads[block], block)

    def map(self, block: str, indices: Sequence[int], head: SupportsIndex | None = None) -> Float[Tensor, "h w"]:
        """The mean of some tokens' maps in a layer, or in one of its heads, from 0.

        Raises:
            GocaError: It is not kept, or there is no such head.
        """
        places = [self.indices.index(token) for token in indices]
        if head is None:
            return self.layer(block)[places].mean(0)
        heads = self.heads(block)
        if not isinstance(head, SupportsIndex) or not 0 <= index(head) < len(heads):
            raise GocaError(f"there is no head {head!r} in {block}: choose from 0 to {len(heads) - 1}")
        return heads[index(head)][places].mean(0)

    def _on_grid(self, sums: Float[Tensor, "*head pixel token"], block: str) -> Float[Tensor, "*head token h w"]:
        return (sums / self._counts[block]).transpose(-1, -2).unflatten(-1, self.grids[block])
