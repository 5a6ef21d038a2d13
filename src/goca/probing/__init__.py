"""Finds the facts of a denoiser that no family lists, by running it on a little noise.

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
    """Establish the facts of a pipeline's denoiser, in about two dozen small passes; the pipeline is left as it was.

    Blocks and timestep cannot be found this way: they are those of the nearest of kin, PixArt, Flux or the UNets. Nor
    can it be found how large an image a denoiser has positions for.

    Args:
        pipeline: A loaded diffusers text-to-image pipeline.

    Raises:
        GocaError: A fact cannot be established; the message names it.
    """
    try:
        with quiet():
            return Probe(pipeline).family()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the pipeline's own code runs
        reason = " ".join(str(error).split())[:300]
        reason = reason if isinstance(error, GocaError) else f"it does not run ({type(error).__name__}: {reason})"
        raise GocaError(f"{type(pipeline).__name__} cannot be read, as a probe found: {reason}") from error
