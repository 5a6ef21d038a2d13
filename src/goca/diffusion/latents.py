"""Latents: from the VAE's scale to the denoiser's, and into the layout of a pipeline's own call."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from goca.diffusion.families.spec import Family
from goca.diffusion.inference import is_out_of_memory
from goca.errors import GocaError
from goca.maths import Grid


@torch.no_grad()
def encode(pipeline: Any, images: Sequence[Image.Image], size: Grid) -> Float[Tensor, "image channel height width"]:
    """The mode of the VAE's posterior for images that are resized to (height, width), scaled for the denoiser.

    Raises:
        GocaError: The kind of VAE is unknown, or its encoding is not finite or constant.
    """
    vae = pipeline.vae
    pixels = processor_of(pipeline).preprocess(list(images), height=size[0], width=size[1])
    before = vae.dtype
    # Stable Diffusion XL's VAE overflows in half precision, as its configuration says.
    upcast = before == torch.float16 and getattr(vae.config, "force_upcast", False)
    try:
        if upcast:
            nn.Module.to(vae, torch.float32)  # without diffusers' advice about it
        there = pixels.to(pipeline._execution_device, torch.float32 if upcast else before, non_blocking=True)
        encoded = _encoded(vae, there)
    finally:
        if upcast:
            nn.Module.to(vae, before)
    latent = _standardised(pipeline, encoded)
    values = latent.cpu()  # a single GPU synchronisation
    if not bool(torch.isfinite(values).all()):
        raise GocaError(
            'the VAE\'s encoding is not finite: load it with dtype "float32" or "bfloat16", or check its weights',
            hint="dtype",
        )
    cells, colours = values.flatten(2), pixels.flatten(1)
    constant = (cells.amax(2) == cells.amin(2)).all(1) & (colours.amax(1) != colours.amin(1))
    if cells.shape[2] > 1 and bool(constant.any()):
        raise GocaError("the VAE's encoding of an image is the same everywhere: check that its weights are complete")
    return latent


def _encoded(vae: Any, pixels: Tensor) -> Any:
    """The output of any kind of VAE for images. Raises GocaError if it fails."""
    try:
        # A video autoencoder needs frames.
        video = any(isinstance(layer, nn.Conv3d) for layer in vae.encoder.modules())
        return vae.encode(pixels.unsqueeze(2) if video else pixels)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise _unknown(vae, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from None


def check_vae(pipeline: Any, family: Family) -> None:
    """Raise GocaError for a VAE that lacks the statistics that scale the family's latents."""
    vae = pipeline.vae
    has = {name for name, value in vae.config.items() if value is not None} | dict(vae.named_children()).keys()
    for name in family.vae_statistics:
        if name not in has:
            raise _unknown(vae, f"it has no {name}, which the {family.component} of this pipeline needs")


def _unknown(vae: Any, reason: str) -> GocaError:
    return GocaError(
        f"goca cannot encode with this pipeline's VAE, of class {type(vae).__name__} ({reason}): set pipe.vae to the "
        "checkpoint's own"
    )


def _standardised(pipeline: Any, encoded: Any) -> Float[Tensor, "image channel height width"]:
    """The mode of the encoded posterior, on the denoiser's scale."""
    vae = pipeline.vae
    if hasattr(encoded, "latent_dist"):
        latent = encoded.latent_dist.mode()
    else:
        latent = next((getattr(encoded, name) for name in ("latents", "latent") if hasattr(encoded, name)), None)
    if latent is not None and latent.ndim == 5:  # one frame
        latent = latent[:, :, 0]
    if latent is None or latent.ndim != 4:
        raise _unknown(vae, f"its {type(encoded).__name__} is not one latent per image")
    latent = latent.float()
    if hasattr(vae, "bn"):  # Flux.2 keeps the statistics of 2 x 2 patches
        mean, variance = (getattr(vae.bn, f"running_{name}").float().view(1, -1, 1, 1) for name in ("mean", "var"))
        deviation = (variance + vae.config.batch_norm_eps).sqrt()
        return pipeline._unpatchify_latents((pipeline._patchify_latents(latent) - mean) / deviation)
    mean, deviation = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
    factor = getattr(vae.config, "scaling_factor", None) or 1.0
    if mean is not None and deviation is not None:
        centre, scale = (torch.tensor(values).to(latent).view(1, -1, 1, 1) for values in (mean, deviation))
        return (latent - centre) / scale * factor
    return (latent - (getattr(vae.config, "shift_factor", None) or 0.0)) * factor


def latent_channels(pipeline: Any) -> int:
    """The channels of the latents that a pipeline's VAE makes. Raises GocaError if its configuration lacks them."""
    config = pipeline.vae.config
    channels = getattr(config, "latent_channels", None) or getattr(config, "z_dim", None)
    if channels is None:
        raise _unknown(pipeline.vae, "its configuration has no latent_channels")
    return int(channels)


def processor_of(pipeline: Any) -> Any:
    """The processor between images and the VAE's inputs and outputs; None if there is none."""
    return getattr(pipeline, "image_processor", None) or getattr(pipeline, "video_processor", None)


def sample_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str | None, Any]:
    """The noisy latent of a denoiser call: (its keyword, or None for the first positional argument; the latent)."""
    for key in ("sample", "hidden_states", "x"):
        if key in kwargs:
            return key, kwargs[key]
    return None, args[0]


def packed(
    pipeline: Any, noisy: Float[Tensor, "image channel height width"], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor | list[Tensor]:
    """A latent in the layout of a denoiser call: with a frame axis, as a list, or as a row of 2 x 2 patches."""
    _, old = sample_of(args, kwargs)
    if isinstance(old, list):
        return [image.unsqueeze(1) for image in noisy]
    if old.ndim == 5:
        return noisy.unsqueeze(2)
    if old.ndim == 4:
        return noisy
    if hasattr(pipeline, "_patchify_latents"):
        return pipeline._pack_latents(pipeline._patchify_latents(noisy))
    return pipeline._pack_latents(noisy, *noisy.shape)


def with_sample(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], noisy: Tensor | list[Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a denoiser call, their noisy latent replaced by another of its shape."""
    key, old = sample_of(args, kwargs)
    before, after = (part if isinstance(part, list) else [part] for part in (old, noisy))
    shapes = [[tuple(latent.shape) for latent in part] for part in (before, after)]
    if shapes[0] != shapes[1]:
        raise GocaError(f"the denoiser expects a latent of {shapes[0]}, not {shapes[1]}: please report this")
    cast = [latent.to(like) for latent, like in zip(after, before, strict=True)]
    new = cast if isinstance(old, list) else cast[0]
    return (args, {**kwargs, key: new}) if key else ((new, *args[1:]), dict(kwargs))
