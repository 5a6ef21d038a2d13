"""The names of what is kept of attention beyond its sums."""

from collections.abc import Iterable, Sequence

from goca.errors import GocaError


def names_kept(keep: str | Iterable[str], known: Sequence[str]) -> frozenset[str]:
    """The names in an argument `keep`. Raises GocaError for one that is not known."""
    names = (keep,) if isinstance(keep, str) else tuple(keep)
    for name in names:
        if name not in known:
            raise GocaError(f"{name!r} cannot be kept: choose from {', '.join(known)}", hint="keep")
    return frozenset(names)


def blocks_kept(layers: Iterable[str] | None, known: Sequence[str]) -> frozenset[str] | None:
    """The blocks in an argument `layers`; None for all. Raises GocaError for one that the model lacks."""
    if layers is None:
        return None
    blocks = (layers,) if isinstance(layers, str) else tuple(layers)
    for block in blocks:
        if block not in known:
            raise GocaError(
                f"the model has no layer {block!r} that attends to the text: choose from {', '.join(known)}"
            )
    return frozenset(blocks)
