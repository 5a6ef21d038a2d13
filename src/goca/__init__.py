"""goca: any text-to-image diffusion model as an open-vocabulary segmenter, without training it.

Generative scaling of cross-attention (Meng et al., CVPR 2026). Names are loaded when they are first used, so that
`goca --help` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from goca.errors import GocaError
    from goca.recipe import (
        CONCEPT_ATTENTION,
        DAAM,
        DIFFSEGMENTER,
        FTTM,
        GOCA,
        GOCA_BALANCED,
        GOCA_COMPOUND,
        RECIPES,
        VANILLA,
        Recipe,
    )
    from goca.request import SegmentationRequest
    from goca.segmentation import Segmentation
    from goca.segmenter import Segmenter
    from goca.tracing import trace
    from goca.trainingset import TrainingSet

_HOMES = {
    "GocaError": "goca.errors",
    "SegmentationRequest": "goca.request",
    "Recipe": "goca.recipe",
    "RECIPES": "goca.recipe",
    "CONCEPT_ATTENTION": "goca.recipe",
    "DAAM": "goca.recipe",
    "DIFFSEGMENTER": "goca.recipe",
    "FTTM": "goca.recipe",
    "GOCA": "goca.recipe",
    "GOCA_BALANCED": "goca.recipe",
    "GOCA_COMPOUND": "goca.recipe",
    "VANILLA": "goca.recipe",
    "Segmentation": "goca.segmentation",
    "Segmenter": "goca.segmenter",
    "trace": "goca.tracing",
    "TrainingSet": "goca.trainingset",
}

__all__ = [
    "CONCEPT_ATTENTION",
    "DAAM",
    "DIFFSEGMENTER",
    "FTTM",
    "GOCA",
    "GOCA_BALANCED",
    "GOCA_COMPOUND",
    "RECIPES",
    "VANILLA",
    "GocaError",
    "Recipe",
    "Segmentation",
    "SegmentationRequest",
    "Segmenter",
    "TrainingSet",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'goca' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
