"""A tiny random pipeline of every family, built from configurations: for tests and for `goca models --check`.

They know no image and no word. They have the shapes, modules and conditioning of the real ones, so that everything
but the masks' meaning can be tried without a download.

All make images of 64 x 64 px, and of other sizes, non-square ones included.
"""

from collections.abc import Callable, Mapping
from typing import Any

from goca.testing.tiny.cross import cosmos2, hunyuan_dit, pixart_alpha, pixart_alpha_1024, pixart_sigma, sana, wan
from goca.testing.tiny.joint import auraflow, bria, chroma, cogview3, flux, flux_schnell, hidream, sd3, sd35
from goca.testing.tiny.joint_llm import (
    cogview4,
    flux2,
    flux2_klein,
    krea2,
    longcat,
    lumina2,
    ovis,
    qwen_image,
    z_image,
)
from goca.testing.tiny.unet import kolors, sd2, sd15, sdxl

UNET_BUILDERS: Mapping[str, Callable[[], Any]] = {"sd15": sd15, "sd2": sd2, "sdxl": sdxl}
"""UNets that read one text through cross-attention."""

CROSS_BUILDERS: Mapping[str, Callable[[], Any]] = {
    "pixart_alpha": pixart_alpha,
    "pixart_alpha_1024": pixart_alpha_1024,
    "pixart_sigma": pixart_sigma,
    "hunyuan_dit": hunyuan_dit,
    "sana": sana,
    "wan": wan,
    "cosmos2": cosmos2,
    "kolors": kolors,
}
"""Transformers that read the text through cross-attention, and Kolors, whose tokenizer says no offsets."""

JOINT_BUILDERS: Mapping[str, Callable[[], Any]] = {
    "flux": flux,
    "flux_schnell": flux_schnell,
    "chroma": chroma,
    "flux2": flux2,
    "flux2_klein": flux2_klein,
    "sd3": sd3,
    "sd35": sd35,
    "qwen_image": qwen_image,
    "auraflow": auraflow,
    "cogview4": cogview4,
    "lumina2": lumina2,
    "z_image": z_image,
    "hidream": hidream,
    "bria": bria,
    "ovis": ovis,
    "cogview3": cogview3,
    "longcat": longcat,
    "krea2": krea2,
}
"""Transformers with one attention over text and image together."""

BUILDERS: Mapping[str, Callable[[], Any]] = {**UNET_BUILDERS, **CROSS_BUILDERS, **JOINT_BUILDERS}
"""Every tiny pipeline, by the names that `Family.tiny` lists."""

__all__ = ["BUILDERS", "CROSS_BUILDERS", "JOINT_BUILDERS", "UNET_BUILDERS", "sd2", "sd15", "sdxl"]
