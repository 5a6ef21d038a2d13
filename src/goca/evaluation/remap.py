"""Data sets with some categories removed or counted as background."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import UInt16

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Dataset, LabelMap


def narrowed(dataset: Dataset, names: Sequence[str], background: bool = True) -> Dataset:
    """The data set without these categories: their pixels become background, and captions cannot name them as classes.

    Args:
        dataset: The data set to narrow.
        names: Names of categories.
        background: Whether label 0 then occurs; False if no image shows these categories.

    Raises:
        GocaError: A name is not a category's, or no category would be left.
    """
    if not names:
        return dataset
    for name in names:
        if name not in dataset.class_names:
            raise GocaError(f'{dataset.name} has no category "{name}": choose from {", ".join(dataset.class_names)}')
    kept = [label for label, name in enumerate(dataset.class_names, start=1) if name not in names]
    if not kept:
        raise GocaError(f"every category of {dataset.name} would be background: keep at least one")
    table = np.zeros(VOID + 1, np.uint16)
    table[kept] = np.arange(1, len(kept) + 1)
    table[VOID] = VOID
    labels = {label: new for new, label in enumerate(kept, start=1)}
    return replace(
        dataset,
        categories=tuple(dataset.categories[label - 1] for label in kept),
        samples=tuple(replace(sample, truth=partial(_translated, sample.truth, table)) for sample in dataset.samples),
        background=background,
        palette=dataset.palette[[0, *kept]],
        merges=tuple((labels[a], labels[b]) for a, b in dataset.merges if a in labels and b in labels),
    )


def _translated(truth: Callable[[], LabelMap], table: UInt16[np.ndarray, " label"]) -> LabelMap:
    return table[truth()]
