"""What a trace keeps besides its sums."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from goca.inspection.keep import blocks_kept, names_kept
from goca.inspection.layer_maps import Budget, LayerMaps
from goca.maths.heads import HeadRule

KEEP = ("steps", "layers", "heads", "special", "negative", "references")
"""See `goca.tracing.trace`."""


@dataclass(frozen=True)
class Keep:
    """What a trace keeps; all images share one budget."""

    names: frozenset[str]
    blocks: frozenset[str] | None
    budget: Budget

    @classmethod
    def of(cls, keep: str | Iterable[str], layers: str | Iterable[str] | None, known: Sequence[str]) -> "Keep":
        """From the arguments of `trace`. Raises GocaError for unknown names."""
        return cls(names_kept(keep, KEEP), blocks_kept(layers, known), Budget())

    @property
    def steps(self) -> bool:
        """Whether the maps of each call are kept."""
        return "steps" in self.names

    @property
    def special(self) -> bool:
        """Whether special tokens are kept."""
        return "special" in self.names

    @property
    def negative(self) -> bool:
        """Whether the negative prompt's tokens are kept."""
        return "negative" in self.names

    @property
    def references(self) -> bool:
        """Whether reference images are kept."""
        return "references" in self.names

    def layer_maps(self, indices: Sequence[int], rule: HeadRule) -> LayerMaps | None:
        """Empty layer maps, if layers or heads are kept."""
        if not self.names & {"layers", "heads"}:
            return None
        return LayerMaps(indices, rule, self.blocks, "heads" in self.names, self.budget)
