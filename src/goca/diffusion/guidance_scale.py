"""The scale of a pipeline's classifier-free guidance, as it is in u + scale (c - u)."""

import inspect
from collections.abc import Mapping
from typing import Any

from goca.diffusion.families.spec import Family
from goca.errors import GocaError


def scale_argument(kind: type) -> str:
    """The argument of a pipeline's call that holds it; models that take a scale as input have another for that."""
    parameters = inspect.signature(kind.__call__).parameters
    return "true_cfg_scale" if "true_cfg_scale" in parameters else "guidance_scale"


def guidance_scale(pipeline: Any, family: Family, arguments: Mapping[str, Any], second: bool) -> float | None:
    """The scale at this moment of a pipeline's call; None where the pipeline has none.

    Args:
        pipeline: The pipeline.
        family: Its row.
        arguments: Of its call, defaults included.
        second: Whether its second denoiser, for little noise, is the one that runs.
    """
    kind = type(pipeline)
    name = scale_argument(kind)
    value = arguments.get(name)
    if second and arguments.get("guidance_scale_2") is not None:
        value = arguments["guidance_scale_2"]
    elif name in inspect.unwrap(kind.__call__).__code__.co_names:
        value = getattr(pipeline, name)  # the call asks its property each time, and a callback may set what is behind
    return None if value is None else float(value) + family.guidance_offset


def how_to_guide(pipeline: Any) -> str:
    """What to do for a pipeline to guide; GocaError for one that cannot."""
    kind = type(pipeline)
    parameters = inspect.signature(kind.__call__).parameters
    if "negative_prompt" not in parameters and not hasattr(kind, "do_classifier_free_guidance"):
        raise GocaError(
            f"{kind.__name__} evaluates the prompt alone and has no classifier-free guidance to change: take a model "
            "that is not distilled"
        )
    name = scale_argument(kind)
    also = " and a negative_prompt" if name == "true_cfg_scale" else ""
    return f"call {kind.__name__} with a higher {name}{also}, and with a model that is not distilled"
