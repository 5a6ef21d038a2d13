"""Finds the facts of an unlisted denoiser by running it on a little noise.

A developer's tool: `goca models --probe DIR` prints the facts as the source of a family file, and
`Segmenter.from_pipeline(pipe, family=probe(pipe))` segments with them. Nothing else in the library runs it.
"""

from typing import Any

import torch

from goca.diffusion.families.spec import Family
from goca.diffusion.loading import quiet
from goca.errors import GocaError
from goca.probing.questions import Probe
from goca.probing.source import source

__all__ = ["probe", "source"]


def probe(pipeline: Any) -> Family:
    """Find the facts of a pipeline's denoiser in about two dozen small passes; the pipeline is restored.

    Blocks and timestep cannot be found this way: they are those of the most similar family, PixArt, Flux or UNets. Nor
    can the largest image for which a denoiser has positions.

    Args:
        pipeline: A loaded diffusers text-to-image pipeline.

    Raises:
        GocaError: A fact cannot be found; the message names it.
    """
    try:
        with quiet():
            return Probe(pipeline).family()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the pipeline's own code may raise anything
        reason = " ".join(str(error).split())[:300]
        reason = reason if isinstance(error, GocaError) else f"it does not run ({type(error).__name__}: {reason})"
        raise GocaError(f"{type(pipeline).__name__} cannot be read: {reason}") from error
