"""The settings behind figures, which must be equal for a run to be resumed."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import torch

from goca.diffusion.fingerprint import fingerprint
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.datasets.base import Dataset
from goca.evaluation.protocol import Protocol
from goca.segmenter import Segmenter
from goca.tagging.caption_nouns import company


def settings(config: EvaluationConfig, dataset: Dataset, protocol: Protocol, segmenter: Segmenter) -> dict[str, Any]:
    """Everything that decides a run's figures, as JSON."""
    backbone = segmenter.backbone
    return {
        "dataset": facts_of(dataset),
        "protocol": protocol.to_json(),
        "model": {"name": backbone.name, "weights": fingerprint(backbone.pipeline)},
        "plan": {**segmenter.plan.to_json(), "background_classes": list(company(backbone.settings.nouns))},
        "batch": config.batch,
        "threads": config.threads if torch.device(backbone.device).type == "cpu" else None,
    }


def facts_of(dataset: Dataset) -> dict[str, Any]:
    """A data set's name, its classes, and a digest of its images."""
    words = repr([category.synonyms for category in dataset.categories])
    ids = "\n".join(sample.id for sample in dataset.samples)
    return {
        "name": dataset.name,
        "split": dataset.split,
        "source": dataset.source,
        "categories": list(dataset.class_names),
        "words": blake2b(words.encode(), digest_size=8).hexdigest(),
        "images": len(dataset.samples),
        "listing": blake2b(ids.encode(), digest_size=8).hexdigest(),
    }


def differences(ours: Any, theirs: Any, name: str = "") -> Iterator[str]:
    """What differs between two settings.

    Yields:
        Each difference in words: "protocol.void (ignored, there background)".
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys((*ours, *theirs)):
            yield from differences(ours.get(key), theirs.get(key), f"{name}.{key}" if name else key)
    elif ours != theirs:
        values = [str(value) for value in (ours, theirs)]
        yield f"{name} ({values[0]}, there {values[1]})" if max(map(len, values)) <= 40 else name
