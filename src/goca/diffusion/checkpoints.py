"""The settings of a loaded checkpoint: those of a known one, or its family's rule."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from goca.diffusion.families import FAMILIES
from goca.diffusion.families.spec import CheckpointSettings, Family

CHECKPOINTS = tuple(settings for family in FAMILIES for settings in family.checkpoints)
"""Every known checkpoint."""


def settings_for(denoiser: Any, family: Family, vae_scale_factor: int, blocks: Collection[str]) -> CheckpointSettings:
    """The settings of the checkpoint whose layout the bare denoiser has, or those of its family's rule.

    `vae_scale_factor` is in pixels a side; `blocks` are the paths of the blocks that attend to the text, in order: a
    distilled model may lack some of its teacher's. The size is the denoiser's own: SD 2.1 exists at 512 and 768 px
    with one layout.
    """
    size = family.image_size(denoiser, vae_scale_factor)
    for settings in family.checkpoints:
        same_layout = all(_plain(denoiser.config.get(key)) == value for key, value in settings.layout.items())
        if same_layout and {settings.reference, *settings.refine} <= set(blocks):
            return replace(settings, size=size)
    reference, refine = family.block_rule.choose(denoiser, blocks)
    return CheckpointSettings(
        name=f"unlisted {family.name}",
        repos=(),
        layout={},
        size=size,
        reference=reference,
        refine=refine,
        order=family.order,
        timestep=family.timestep,
        feature=family.feature,
        origin=f"no checkpoint known by this layout; {family.block_rule.description}",
    )


def _plain(value: Any) -> Any:
    """A value as a layout has it: configurations that were read from JSON have lists for tuples."""
    return tuple(value) if isinstance(value, list) else value
