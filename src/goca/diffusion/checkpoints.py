"""The settings of a loaded checkpoint: those of a known one, its family's rule, or a file that was chosen for it."""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from goca.diffusion.families import FAMILIES
from goca.diffusion.families.spec import CheckpointSettings, Family
from goca.errors import GocaError
from goca.storage.atomic import write_atomic
from goca.storage.reading import read_json, whole

SettingsLike = CheckpointSettings | Mapping[str, Any] | str | Path
"""Settings for one checkpoint: whole, or what `write_settings` writes, as a mapping or a file."""
CHOSEN = ("timestep", "reference", "refine", "order", "origin")
"""The fields of such a file; the others stay the checkpoint's own."""
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


def write_settings(settings: CheckpointSettings, path: str | Path) -> Path:
    """Write settings that were chosen for a checkpoint as a JSON file, to be given as `settings` from then on.

    Raises:
        GocaError: the file cannot be written.
    """
    content = {name: getattr(settings, name) for name in CHOSEN}
    write_atomic({Path(path): f"{json.dumps(content, indent=2)}\n".encode()})
    return Path(path)


def given_settings(
    given: SettingsLike, own: CheckpointSettings, blocks: Collection[str], model: str
) -> CheckpointSettings:
    """The settings that a user gives for a checkpoint, whose own ones are kept where they say nothing.

    Raises:
        GocaError: they cannot be read, are not complete, or name a block that the model lacks.
    """
    settings = given if isinstance(given, CheckpointSettings) else replace(own, **_chosen(given))
    if missing := [block for block in (settings.reference, *settings.refine) if block not in blocks]:
        raise GocaError(
            f"the settings name block {missing[0]}, which {model} lacks: choose settings with this very model",
            hint="settings",
        )
    return settings


def _chosen(given: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(given, str) and given == "auto":
        raise GocaError(
            "settings are chosen once, because that takes time: call choose_settings, keep what it gives in a file, "
            "and name that file",
            hint="settings",
        )
    content: Any = read_json(Path(given)) if isinstance(given, str | Path) else given
    name = str(given) if isinstance(given, str | Path) else "settings"
    match content:
        case {"timestep": timestep, "reference": str(reference), "refine": [*refine], "order": order, **rest}:
            try:
                return {
                    "timestep": whole(timestep, most=999),
                    "reference": reference,
                    "refine": tuple(map(str, refine)),
                    "order": whole(order),
                    "origin": str(rest.get("origin", f"given by the user in {name}")),
                }
            except ValueError as error:
                reason = str(error)
        case _:
            reason = "it needs timestep, reference, refine and order"
    raise GocaError(f"{name} does not hold settings ({reason}): choose them again", hint="settings")


def _plain(value: Any) -> Any:
    """A value as a layout has it: configurations that were read from JSON have lists for tuples."""
    return tuple(value) if isinstance(value, list) else value
