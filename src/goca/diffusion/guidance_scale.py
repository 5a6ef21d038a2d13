"""The scale of a pipeline's classifier-free guidance, in the form u + scale (c - u)."""

import inspect
from collections.abc import Mapping
from typing import Any

from goca.diffusion.families.spec import Family
from goca.errors import GocaError


def scale_argument(kind: type) -> str:
    """The argument of a pipeline's call that holds it; models with a scale as input have another one for that."""
    parameters = inspect.signature(kind.__call__).parameters
    return "true_cfg_scale" if "true_cfg_scale" in parameters else "guidance_scale"


def guidance_scale(pipeline: Any, family: Family, arguments: Mapping[str, Any], second: bool) -> float | None:
    """The scale at this moment of a pipeline's call; None if the pipeline has none.

    Args:
        pipeline: The pipeline.
        family: Its row.
        arguments: Arguments of its call, including defaults.
        second: Whether its second denoiser, for little noise, is the one that runs.
    """
    kind = type(pipeline)
    name = scale_argument(kind)
    value = arguments.get(name)
    if second and arguments.get("guidance_scale_2") is not None:
        value = arguments["guidance_scale_2"]
    elif name in inspect.unwrap(kind.__call__).__code__.co_names:
        value = getattr(
            pipeline, name
        )  # the call reads its property each time, and a callback may change the value behind it
    return None if value is None else float(value) + family.guidance_offset


def check_guidance(pipeline: Any) -> None:
    """Raise GocaError for a pipeline that never uses guidance."""
    kind = type(pipeline)
    parameters = inspect.signature(kind.__call__).parameters
    if "negative_prompt" not in parameters and not hasattr(kind, "do_classifier_free_guidance"):
        raise GocaError(
            f"{kind.__name__} has no classifier-free guidance, it only evaluates the prompt: use a model "
            "that is not distilled"
        )


def unguided(pipeline: Any, family: Family) -> GocaError:
    """The error for a call without guidance."""
    kind = type(pipeline)
    name = scale_argument(kind)
    also = " and a negative_prompt" if name == "true_cfg_scale" else ""
    return GocaError(
        f"this call has no classifier-free guidance, {kind.__name__} only evaluates the prompt: give it a "
        f"{name} above {1 - family.guidance_offset:g}{also}, and a model that is not distilled",
        hint="scale",
    )
