"""What differs between kinds of denoiser, as rows of facts."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from goca.errors import GocaError
from goca.maths import Grid
from goca.model.families import unet


@dataclass(frozen=True)
class Family:
    """One kind of denoiser.

    component: the pipeline's attribute that holds it. denoisers: class names it goes by. check(denoiser): raises
    GocaError for one that cannot be read, naming why. size(denoiser, cell): the side in pixels it was trained at, for
    latents of `cell` pixels. grids(denoiser, latent grid): the grids that its
    attention may have. default_layers(denoiser): (reference block, refinement blocks) by a rule, for a checkpoint that
    nobody has set. rule: that rule, in words.
    """

    name: str
    component: str
    denoisers: tuple[str, ...]
    check: Callable[[Any], None]
    size: Callable[[Any, int], int]
    grids: Callable[[Any, Grid], tuple[Grid, ...]]
    default_layers: Callable[[Any], tuple[str, tuple[str, ...]]]
    rule: str


FAMILIES = (
    Family(
        name="unet",
        component="unet",
        denoisers=("UNet2DConditionModel",),
        check=unet.check,
        size=unet.size,
        grids=unet.grids,
        default_layers=unet.default_layers,
        rule=unet.RULE,
    ),
)


def family_of(pipeline: Any) -> Family:
    """The family of a loaded pipeline; GocaError, naming what is supported, for any other."""
    for family in FAMILIES:
        denoiser = getattr(pipeline, family.component, None)
        # A compiled module is wrapped: look at the class of what it wraps.
        if type(getattr(denoiser, "_orig_mod", denoiser)).__name__ in family.denoisers:
            return family
    raise unsupported(type(pipeline).__name__)


def unsupported(pipeline_class: str) -> GocaError:
    """The error for a pipeline of no known family."""
    known = ", ".join(name for family in FAMILIES for name in family.denoisers)
    return GocaError(f"{pipeline_class} is not supported: goca reads text-to-image pipelines built on {known}")


def check_kind(pipeline: Any) -> None:
    """Refuse pipelines that share a text-to-image pipeline's parts but cannot be asked as one."""
    kind = type(pipeline).__name__
    if getattr(pipeline, "vae", None) is None or not callable(getattr(pipeline, "encode_prompt", None)):
        raise GocaError(f"{kind} has no VAE or no text encoder: goca reads latent text-to-image pipelines")
    known = inspect.signature(pipeline.__call__).parameters
    if "height" not in known or {"image", "mask_image", "pag_scale"} & known.keys():
        raise GocaError(
            f"{kind} is no plain text-to-image pipeline: load the checkpoint as one, for instance with "
            "StableDiffusionPipeline(**pipe.components)"
        )
    for name, encoder in (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")):
        tokenizer, model = getattr(pipeline, name, None), getattr(pipeline, encoder, None)
        # A tokenizer folder with files missing loads as an almost empty vocabulary, or without a limit.
        if tokenizer is None or model is None:
            continue
        if len(tokenizer) < model.config.vocab_size // 2 or tokenizer.model_max_length > 10**6:
            raise GocaError(f"the {name} of {kind} is incomplete: is every file of its folder there?")
