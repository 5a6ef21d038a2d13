"""A tiny random pipeline of every family, built from configurations: for tests and for `goca models --check`.

They have learnt nothing, but have the shapes, modules and conditioning of the real ones, so that everything
but the meaning of masks can be tested without a download.

All generate images of 64 x 64 px, and of other sizes, including non-square ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

from goca.testing.tiny import cross, joint, joint_llm
from goca.testing.tiny.unet import kolors, sd2, sd15, sdxl


def _named(*builders: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    return {build.__name__: build for build in builders}


UNET_BUILDERS: Mapping[str, Callable[[], Any]] = _named(sd15, sd2, sdxl)
"""UNets that read one text through cross-attention."""

JOINT_BUILDERS: Mapping[str, Callable[[], Any]] = _named(
    joint.flux,
    joint.flux_schnell,
    joint.chroma,
    joint_llm.flux2,
    joint_llm.flux2_klein,
    joint.sd3,
    joint.sd35,
    joint_llm.qwen_image,
    joint.auraflow,
    joint_llm.cogview4,
    joint_llm.lumina2,
    joint_llm.z_image,
    joint.hidream,
    joint.bria,
    joint_llm.ovis,
    joint.cogview3,
    joint_llm.longcat,
    joint_llm.krea2,
)
"""Transformers with one attention over text and image together."""

BUILDERS: Mapping[str, Callable[[], Any]] = {
    **UNET_BUILDERS,
    **_named(cross.pixart_alpha, cross.pixart_alpha_1024, cross.pixart_sigma, cross.hunyuan_dit),
    # The tokenizer of Kolors has no offsets.
    **_named(cross.sana, cross.wan, cross.cosmos2, kolors),
    **JOINT_BUILDERS,
}
"""Every tiny pipeline, by the names that `Family.tiny` lists."""
