"""The differences between kinds of denoiser: one file per family, listed here."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from goca.diffusion.families.spec import Family
from goca.diffusion.families.support import bare, check_kind, check_tokenizers, encoder_of
from goca.errors import GocaError

__all__ = [
    "FAMILIES",
    "Family",
    "bare",
    "check_family",
    "check_kind",
    "check_tokenizers",
    "encoder_of",
    "family_of",
    "unsupported",
]

_FILES = (
    *("unet", "kolors", "pixart", "hunyuan_dit", "sana", "wan", "cosmos2", "flux", "chroma", "sd3", "flux2"),
    *("qwen_image", "auraflow", "cogview4", "lumina2", "z_image", "hidream"),
    *("bria", "ovis_image", "cogview3", "longcat_image", "krea2"),
)
FAMILIES: tuple[Family, ...] = tuple(import_module(f"{__name__}.{name}").FAMILY for name in _FILES)
"""Every family that goca reads, in the order in which they are listed to users."""


def family_of(pipeline: Any) -> Family | None:
    """The family of a loaded pipeline; None if no family lists its denoiser."""
    matching = [
        family
        for family in FAMILIES
        if type(bare(getattr(pipeline, family.component, None))).__name__ in family.denoisers
        and (not family.pipelines or _names(pipeline) & set(family.pipelines))
    ]
    # Kolors has the UNet of Stable Diffusion: a row for a pipeline goes before the one for its denoiser.
    return max(matching, key=lambda family: bool(family.pipelines), default=None)


def check_family(pipeline: Any, family: Family) -> None:
    """Raise GocaError for a user's family that belongs to another denoiser or another pipeline."""
    if not isinstance(family, Family):
        raise GocaError(f"family {family!r} is not a family: give one that a probe prints, or none", hint="family")
    denoiser, listed = bare(getattr(pipeline, family.component, None)), family_of(pipeline)
    is_another = any(family is row for row in FAMILIES) and listed is not None and family is not listed
    is_another |= bool(family.pipelines) and not _names(pipeline) & set(family.pipelines)
    if is_another or not _names(denoiser) & set(family.denoisers):
        part = f"has no {family.component}, so it" if denoiser is None else f"with its {type(denoiser).__name__}"
        raise GocaError(
            f'{type(pipeline).__name__} {part} is not of the family "{family.name}": leave the family out, or give the '
            "one that a probe of this pipeline prints",
            hint="family",
        )


def _names(part: Any) -> set[str]:
    """The names of a part's class and of those it is derived from."""
    return {kind.__name__ for kind in type(part).__mro__}


def unsupported(pipeline_class: str, missing: Sequence[str] = ()) -> GocaError:
    """The error for a pipeline of no listed family.

    Args:
        pipeline_class: The pipeline's class.
        missing: The parts of a text-to-image pipeline that it lacks, so that no probe can help.
    """
    listed = ", ".join(dict.fromkeys(name for family in FAMILIES for name in family.denoisers))
    if missing:
        return GocaError(
            f"{pipeline_class} is not supported: goca reads latent text-to-image pipelines, but this one has no "
            f"{', no '.join(missing)}; load one that is complete, such as those built on {listed}"
        )
    return GocaError(
        f"{pipeline_class} is not supported: goca reads pipelines built on {listed}; for another denoiser, let goca "
        "models probe it, and pass the family that it prints",
        hint="probe",
    )
