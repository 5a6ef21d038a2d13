"""Ground truth as a tagger: scores with it are optimistic, so reports name it beside every score."""

from dataclasses import dataclass

import numpy as np

from goca.errors import GocaError
from goca.evaluation.datasets.base import VOID, Dataset, LabelMap, Sample
from goca.tagging.answers import write


def true_classes(sample: Sample, dataset: Dataset, truth: LabelMap | None = None) -> tuple[str, ...]:
    """Names of the categories that occur in an image's ground truth, in the data set's order.

    Args:
        sample: The image.
        dataset: The data set whose categories the labels stand for.
        truth: The labels, if they were read before.

    Raises:
        GocaError: The ground truth cannot be read, or has a label that the data set lacks.
    """
    labels = [label for label in np.unique(sample.truth() if truth is None else truth).tolist() if 0 < label != VOID]
    if labels and labels[-1] > len(dataset.categories):
        raise GocaError(
            f'the ground truth of "{sample.id}" has label {labels[-1]}, but {dataset.name} has '
            f"{len(dataset.categories)} categories: check that this is the right data set"
        )
    return tuple(dataset.categories[label - 1].name for label in labels)


@dataclass(frozen=True)
class OracleTagger:
    """The classes of the ground truth, in the order of the image's own list if the data set has one."""

    name: str = "oracle"

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        """See `goca.tagging.base.Tagger`."""
        classes = true_classes(sample, dataset)
        if "nouns" in sample.captions:
            classes = tuple(sorted(classes, key=sample.captions["nouns"].split(", ").index))
        return write((name,) for name in classes)
