"""Data sets of a run, made from the label images that it has written and their classes."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt16

from goca.errors import GocaError
from goca.exports import EXPORTERS
from goca.exports.base import DatasetImage
from goca.exports.labels_png import read_labels
from goca.image_jobs import ImageJob, dataset_names


def assemble(finished: Mapping[ImageJob, Sequence[str]], targets: Mapping[str, Path]) -> Iterator[Path]:
    """Write data sets of images whose label images exist, each whole or not at all.

    A data set's classes are those of all images, in order of first appearance; the labels of each image are renumbered
    accordingly.

    Args:
        finished: The images, with the classes of their labels.
        targets: {format: path of its data set}, see `goca.image_jobs.plan_datasets`.

    Yields:
        The path of each data set, before it is written.

    Raises:
        GocaError: A label image cannot be read, or a data set cannot be written.
    """
    if not targets:
        return
    classes = list(dict.fromkeys(name for listed in finished.values() for name in listed))
    results = next(iter(targets.values())).parent  # all of them are there
    names = dataset_names(list(finished), results)
    for form, target in targets.items():
        yield target
        images = (
            DatasetImage(
                file_name=path, stem=stem, source=job.image, read_labels=partial(_labels, job, listed, classes)
            )
            for (job, listed), (path, stem) in zip(finished.items(), names.values(), strict=True)
        )
        EXPORTERS[form].write_dataset(target, images, classes, next(iter(finished)).objects)


def _labels(job: ImageJob, classes: Sequence[str], of_dataset: Sequence[str]) -> UInt16[np.ndarray, "height width"]:
    path = job.folder / f"{job.stem}{EXPORTERS['labels'].suffix}"
    labels = read_labels(path)
    numbers = np.array([0, *(of_dataset.index(name) + 1 for name in classes)], np.uint16)
    if labels.max(initial=0) >= len(numbers):
        raise GocaError(f"{path} has label {labels.max()} but {len(classes)} classes: segment the image again")
    return numbers[labels]
