"""The settings of a loaded checkpoint: those in its folder, those of a known checkpoint, its family's rule, or a chosen
file.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from goca.diffusion.families import FAMILIES
from goca.diffusion.families.spec import CheckpointSettings, Family
from goca.diffusion.fingerprint import fingerprint
from goca.diffusion.model_facts import ModelFacts, parse_settings
from goca.errors import GocaError
from goca.storage.atomic import write_atomic
from goca.storage.reading import read_json

SettingsLike = CheckpointSettings | Mapping[str, Any] | str | Path
"""Settings of a checkpoint: complete, or some of them as a mapping or a JSON file, with entries as in `settings` of a
model's goca.json; the others stay the checkpoint's own; or AUTO.
"""
AUTO = "auto"
"""The settings that were chosen on this machine for exactly these weights, see `automatic_settings`."""
LATENT = 256
"""Cells a side of a latent that divides into tokens of any family."""
CHOSEN = ("timestep", "reference", "refine", "order", "origin")
"""The entries of a file of chosen settings."""
CHECKPOINTS = tuple(settings for family in FAMILIES for settings in family.checkpoints)
"""Every known checkpoint."""
_NO_FACTS = ModelFacts()
_BLOCKS = {"reference", "refine", "evidence_blocks"}
_OF_NO_ORIGIN = {"nouns", "background_classes", "options", "size"}
"""Facts of a model that are not stated by anyone, so that the settings' origin stays the rule."""


def settings_for(
    denoiser: Any, family: Family, vae_scale_factor: int, blocks: Collection[str], facts: ModelFacts = _NO_FACTS
) -> CheckpointSettings:
    """The settings of the checkpoint whose layout the bare denoiser has, or those of its family's rule.

    Args:
        denoiser: A distilled one may lack some of its teacher's blocks.
        family: Its family.
        vae_scale_factor: Pixels per side of a latent cell.
        blocks: The paths of the blocks that attend to the text, in order.
        facts: What the model's folder states, which overrides both. Without a size, the denoiser's own is used:
            SD 2.1 exists at 512 and 768 px with one layout.

    Raises:
        GocaError: The folder names a block that does not exist.
    """
    stated = dict(facts.settings)
    for key in _BLOCKS & stated.keys():
        named = stated[key]
        if missing := [block for block in ((named,) if isinstance(named, str) else named) if block not in blocks]:
            raise facts.wrong(
                f"settings.{key}", f"{type(denoiser).__name__} has no block {missing[0]} that attends to the text"
            )
    size = stated.get("size") or family.image_size(denoiser, vae_scale_factor)
    settings = _by_layout(denoiser, family, blocks) or _by_rule(denoiser, family, size, blocks)
    if stated.keys() - _OF_NO_ORIGIN:
        stated.setdefault("origin", f"{', '.join(stated)} by {facts.path}; else {settings.origin}")
    cells = _token_cells(denoiser, family, blocks)
    return replace(settings, **{"size": size, "token_cells": cells, **stated})


def _token_cells(denoiser: Any, family: Family, blocks: Collection[str]) -> int:
    """Latent cells a side of a token of the finest attention of these blocks."""
    sides = [height for height, _ in family.grids(denoiser, (LATENT, LATENT))]
    return LATENT // max((sides[family.grid_of(block)] for block in blocks), default=sides[0])


def _by_layout(denoiser: Any, family: Family, blocks: Collection[str]) -> CheckpointSettings | None:
    for settings in family.checkpoints:
        same_layout = all(_plain(denoiser.config.get(key)) == value for key, value in settings.layout.items())
        if same_layout and {settings.reference, *settings.refine} <= set(blocks):
            return settings
    return None


def _by_rule(denoiser: Any, family: Family, size: int, blocks: Collection[str]) -> CheckpointSettings:
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
        heads=family.block_rule.heads,
        origin=f"no checkpoint known by this layout; {family.block_rule.description}",
    )


def write_settings(settings: CheckpointSettings, path: str | Path) -> Path:
    """Write chosen settings of a checkpoint as a JSON file, which can be passed as `settings`.

    Raises:
        GocaError: The file cannot be written.
    """
    write_atomic({Path(path): f"{json.dumps(content_of(settings), indent=2)}\n".encode()})
    return Path(path)


def content_of(settings: CheckpointSettings) -> dict[str, Any]:
    """The content of a file of settings."""
    values = {name: getattr(settings, name) for name in CHOSEN}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def kept_settings(pipeline: Any) -> Path:
    """The file of AUTO in the user's cache, named by goca's version and the fingerprint of the weights."""
    return user_cache_path("goca") / "settings" / version("goca") / f"{fingerprint(pipeline)}.json"


def automatic_settings_of(
    pipeline: Any, defaults: CheckpointSettings, blocks: Collection[str], model: str
) -> CheckpointSettings | None:
    """The settings in `kept_settings`; None if there are none, or they cannot be read or do not fit."""
    try:
        return _filled(kept_settings(pipeline), defaults, blocks, model)
    except GocaError:
        return None


def given_settings(
    given: SettingsLike, defaults: CheckpointSettings, blocks: Collection[str], model: str, pipeline: Any
) -> CheckpointSettings:
    """The settings that a user gives for a checkpoint, filled up with the checkpoint's own.

    Raises:
        GocaError: They cannot be read, have a wrong entry, name a block that the model lacks, or were not chosen yet.
    """
    if given != AUTO:
        return _filled(given, defaults, blocks, model)
    kept = automatic_settings_of(pipeline, defaults, blocks, model)
    if kept is None:
        kind = str(pipeline.dtype).removeprefix("torch.")
        raise GocaError(
            f"no settings have been chosen on this machine for {model} in {kind}, which takes passes: call "
            "automatic_settings once with a segmenter of it",
            hint="settings",
        )
    return kept


def _filled(
    given: SettingsLike, defaults: CheckpointSettings, blocks: Collection[str], model: str
) -> CheckpointSettings:
    settings = given if isinstance(given, CheckpointSettings) else replace(defaults, **_stated(given))
    if missing := [block for block in (settings.reference, *settings.refine) if block not in blocks]:
        raise GocaError(
            f"the settings name block {missing[0]}, which {model} lacks: choose settings with this model",
            hint="settings",
        )
    return settings


def _stated(given: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    if isinstance(given, str | Path):
        return {"origin": f"given by the user in {given}", **parse_settings(given, read_json(Path(given)))}
    return {"origin": "given by the user", **parse_settings("settings", given)}


def _plain(value: Any) -> Any:
    """A value in a layout's form: configurations read from JSON have lists instead of tuples."""
    return tuple(value) if isinstance(value, list) else value
