"""Modular pipelines of diffusers: the call in which a guider is used, its prompts, and its denoiser's image.

A guider gets neither its pipeline nor the prompt: both are taken from the frame of the pipeline's call. By then the
prompt's tokens are lost, so the pipeline's own block encodes the prompt once more.
"""

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from goca.diffusion.backbone import Backbone
from goca.diffusion.caches import check_caches
from goca.diffusion.conditioning import tokenizers
from goca.diffusion.encoded_texts import EncodedTexts, texts_of
from goca.diffusion.families import check_tokenizers
from goca.diffusion.latents import sample_of
from goca.errors import GocaError
from goca.maths import Grid


def check_modular(backbone: Backbone) -> None:
    """Raise GocaError for a modular pipeline whose denoiser or tokenizers cannot be read."""
    backbone.family.check(backbone.denoiser)
    check_caches(backbone.denoiser, backbone.family.component)
    check_tokenizers(backbone.pipeline, backbone.family)


def running_call() -> tuple[Any, Any]:
    """(the modular pipeline, its state) of the innermost running call."""
    from diffusers import ModularPipeline

    code = inspect.unwrap(ModularPipeline.__call__).__code__
    frame = sys._getframe()
    while frame.f_code is not code:
        if frame.f_back is None:
            raise GocaError(
                "this guider was used outside a call of a modular pipeline: give it to one, "
                "pipe.update_components(guider=...), and call that"
            )
        frame = frame.f_back
    return frame.f_locals["self"], frame.f_locals["state"]


def encoded_again(pipeline: Any, state: Any) -> EncodedTexts:
    """Encode the prompts of a call again, with the pipeline's text encoder and tokenizers.

    Raises:
        GocaError: The pipeline was called without a prompt, or has no block that encodes it.
    """
    from diffusers.modular_pipelines.modular_pipeline import PipelineState

    kind = type(pipeline).__name__
    blocks = getattr(pipeline._blocks, "sub_blocks", {}).values()
    encoders = (b for b in blocks if "prompt" in b.input_names and "prompt_embeds" in b.intermediate_output_names)
    block = next(encoders, None)
    if block is None or state.get("prompt") is None:
        raise GocaError(
            f"the words of the prompt are unknown: call a {kind} with a text encoder, and with the prompt as text, or "
            "guide by a rate, masks or no recipe"
        )
    inputs = {name: state.get(name) for name in block.input_names if name is not None}
    encoded = texts_of(inputs, tokenizers(pipeline))
    fresh = PipelineState()
    for name, value in inputs.items():
        # A copy, because some blocks write their template into the list of prompts.
        fresh.set(name, list(value) if isinstance(value, list) else value)
    with encoded.recorded(pipeline) as recorders, torch.no_grad():
        block(pipeline, fresh)
    encoded.add((fresh.get("prompt_embeds"), fresh.get("negative_prompt_embeds")), recorders)
    return encoded


def check_attended(encoded: EncodedTexts, args: Sequence[Any], kwargs: Mapping[str, Any], images: int) -> None:
    """Raise GocaError if the denoiser attends to anything but the prompts."""
    if not encoded.blocks([*args, *kwargs.values()], images):
        raise GocaError(
            "the denoiser attends to other embeddings than those of the prompt: give the pipeline only the prompt, as "
            "text; call it separately for each of several prompts"
        )


def latent_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, Grid]:
    """(images, (height, width) in cells) of a denoiser's input. Raises GocaError if a row is not one image."""
    _, sample = sample_of(args, kwargs)
    shape = tuple(sample[0].shape)
    if len(shape) > 2:
        if len(shape) == 4 and shape[1] != 1:
            raise GocaError(f"a video of {shape[1]} latent frames cannot be guided: generate one frame, num_frames=1")
        return len(sample), (shape[-2], shape[-1])
    if "img_shapes" in kwargs:
        _, height, width = kwargs["img_shapes"][0][0]
    else:
        ids: Tensor = kwargs["img_ids"].flatten(0, -2)
        height, width = (int(ids[:, axis].max()) + 1 for axis in (1, 2))
    if height * width != shape[0]:
        raise GocaError(
            "the denoiser gets a reference image beside the one that it generates, and their regions cannot be told "
            "apart: leave the reference image out"
        )
    return len(sample), (2 * height, 2 * width)
