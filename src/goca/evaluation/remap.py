"""A data set some of whose categories count as background."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import UInt16

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Dataset, Sample

Labels = UInt16[np.ndarray, "height width"]


def narrowed(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set without these categories: their pixels are background, and no caption can name them as a class.

    Raises GocaError for a name that is no category, and where none would be left.
    """
    if not names:
        return dataset
    known = [one.name for one in dataset.categories]
    for name in names:
        if name not in known:
            raise GocaError(f'{dataset.name} has no category "{name}": there are {", ".join(known)}')
    kept = [label for label, name in enumerate(known, start=1) if name not in names]
    if not kept:
        raise GocaError(f"every category of {dataset.name} would be background: keep some")
    table = np.zeros(VOID + 1, np.uint16)
    table[kept] = np.arange(1, len(kept) + 1)
    table[VOID] = VOID
    places = {label: place for place, label in enumerate(kept, start=1)}
    return replace(
        dataset,
        categories=tuple(dataset.categories[label - 1] for label in kept),
        samples=tuple(_narrowed(sample, table) for sample in dataset.samples),
        background=True,
        palette=dataset.palette[[0, *kept]],
        merges=tuple((places[a], places[b]) for a, b in dataset.merges if a in places and b in places),
    )


def _narrowed(sample: Sample, table: UInt16[np.ndarray, " label"]) -> Sample:
    return replace(sample, truth=partial(_translated, sample.truth, table))


def _translated(truth: Callable[[], Labels], table: UInt16[np.ndarray, " label"]) -> Labels:
    return table[truth()]
