"""Ground truth as a tagger: scores with it are optimistic, and reports name it beside every score."""

from dataclasses import dataclass

import numpy as np

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Dataset, Sample
from goca.tagging.answers import write


def true_classes(sample: Sample, dataset: Dataset) -> tuple[str, ...]:
    """Names of the categories that occur in an image's ground truth, in the data set's order.

    Raises:
        GocaError: the ground truth cannot be read, or has a label that the data set has not.
    """
    labels = [int(label) for label in np.unique(sample.truth()) if label not in (0, VOID)]
    if labels and labels[-1] > len(dataset.categories):
        raise GocaError(
            f'the ground truth of "{sample.id}" has label {labels[-1]}, and {dataset.name} has '
            f"{len(dataset.categories)} categories: is this the right data set?"
        )
    return tuple(dataset.categories[label - 1].name for label in labels)


@dataclass(frozen=True)
class OracleTagger:
    """Names the classes of the ground truth."""

    name: str = "oracle"

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        return write((name,) for name in true_classes(sample, dataset))
