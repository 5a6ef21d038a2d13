"""The pipelines that can be read at all, whatever their family."""

import inspect
from difflib import get_close_matches
from typing import Any

from goca.diffusion.families.spec import Family
from goca.errors import GocaError


def bare(denoiser: Any) -> Any:
    """A denoiser without its wrappers: a compiled module, or peft's model, whose adapters stay in the layers."""
    inner = getattr(denoiser, "_orig_mod", denoiser)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def encoder_of(pipeline: Any, tokenizer: str) -> Any:
    """The text encoder that belongs to a tokenizer of a pipeline; None if there is none."""
    return getattr(pipeline, tokenizer.replace("tokenizer", "text_encoder"), None)


def check_kind(pipeline: Any, family: Family) -> None:
    """Refuse pipelines that share a text-to-image pipeline's parts but cannot be called as one."""
    kind = type(pipeline).__name__
    if getattr(pipeline, "vae", None) is None:
        raise GocaError(f"{kind} has no VAE: load a latent text-to-image pipeline")
    if not _is_plain(type(pipeline), family):
        raise GocaError(
            f"{kind} is not a plain text-to-image pipeline: load the checkpoint as one, for instance with "
            f"{_plain_pipeline(pipeline, family)}"
        )
    if not callable(getattr(pipeline, "encode_prompt", None)):
        raise GocaError(f"{kind} has no encode_prompt: load a pipeline that encodes a prompt")
    if None not in (getattr(pipeline, "transformer", None), getattr(pipeline, "transformer_2", None)):
        raise GocaError(
            f"{kind} has two denoisers, for high and low noise: give goca only the second, "
            f'{kind}(**{{**pipe.components, "transformer": pipe.transformer_2, "transformer_2": None}})'
        )
    check_tokenizers(pipeline, family)


def _is_plain(kind: Any, family: Family) -> bool:
    """Whether a class of pipelines only needs a prompt, and generates what it says."""
    parameters = inspect.signature(kind.__call__).parameters
    unwanted = {"mask_image", "control_image", "pag_scale"} | (set() if family.optional_image_input else {"image"})
    needed = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
    return {"prompt", "height"} <= parameters.keys() and not unwanted & parameters.keys() and needed <= _CALLED_WITH


_CALLED_WITH = {"self", "prompt", "args", "kwargs"}


def _plain_pipeline(pipeline: Any, family: Family) -> str:
    """How to make a plain pipeline of the parts of another one."""
    import diffusers
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    denoiser = type(bare(getattr(pipeline, family.component))).__name__
    names: list[str] = []
    for kind in (*(getattr(diffusers, name) for name in family.pipelines), *AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()):
        _, *parts = inspect.signature(kind.__init__).parameters.values()
        required = {part.name for part in parts if part.default is part.empty}
        takes = {part.name: str(part.annotation) for part in parts}
        if required <= pipeline.components.keys() <= takes.keys() and denoiser in takes.get(family.component, ""):
            names += [kind.__name__] * _is_plain(kind, family)
    # PixArt-Sigma's pipeline has the parts of PixArt-Alpha's.
    alike = get_close_matches(type(pipeline).__name__, names, 1, cutoff=0)
    return f"{alike[0]}(**pipe.components)" if alike else "DiffusionPipeline.from_pretrained"


def check_tokenizers(pipeline: Any, family: Family) -> None:
    """Refuse pipelines that were loaded from a folder with files missing."""
    for text in family.texts:
        tokenizer = getattr(pipeline, text.tokenizer, None)
        encoder = encoder_of(pipeline, text.tokenizer)
        # A tokenizer folder with missing files loads with an almost empty vocabulary, or without a limit.
        if tokenizer is None or encoder is None:
            continue
        unlimited = not text.respects_max_sequence_length and tokenizer.model_max_length > 10**6
        config = getattr(encoder.config, "text_config", encoder.config)
        expected = getattr(config, "vocab_size", None) or config.padded_vocab_size
        size = len(tokenizer if hasattr(tokenizer, "__len__") else tokenizer.tokenizer)
        if size < expected // 2 or unlimited:
            raise GocaError(
                f"the {text.tokenizer} of {type(pipeline).__name__} is incomplete: check that its folder has every file"
            )
