"""From a name or a loaded pipeline to a model with a plan: how a `Segmenter` is made."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

import torch

from goca import bundled
from goca.diffusion.backbone import Backbone
from goca.diffusion.checkpoints import SettingsLike
from goca.diffusion.families.spec import Family
from goca.diffusion.inference import inference
from goca.diffusion.loading import load
from goca.diffusion.model_facts import pipeline_folder
from goca.diffusion.timesteps import check_timestep
from goca.errors import GocaError
from goca.imaging import html
from goca.plan import Options, Plan, plan
from goca.prototypes import Prototypes, load_beside
from goca.recipe import GOCA_OPEN, Recipe, recipe_named

MAX_ENLARGEMENT = 4
"""Largest input side in units of the training side: attention grows with the fourth power of the side."""
_DEFAULTS = Options()
_Model = TypeVar("_Model", bound="PlannedModel")


class PlannedModel:
    """A pipeline (`backbone`), the `plan` for using it, and the number of rows per denoiser pass (`batch`)."""

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe | str = GOCA_OPEN,
        options: Options = _DEFAULTS,
        batch: int = 4,
        prototypes: Prototypes | None = None,
    ) -> None:
        if not isinstance(batch, SupportsIndex) or index(batch) < 1:
            raise GocaError(f"batch {batch!r} is not a number of rows: give a whole number, 1 or more", hint="batch")
        self.backbone, self.batch, self.prototypes = backbone, batch, prototypes
        joint = backbone.family.joint is not None
        chosen, learned = recipe_named(recipe), None if prototypes is None else prototypes.timestep

        def planned(learned: int | None) -> Plan:
            made = plan(chosen, backbone.settings, backbone.blocks, backbone.name, options, joint, learned)
            return replace(made, device=backbone.device, dtype=backbone.dtype)

        made = planned(learned)
        trained = backbone.settings.size
        if made.size > MAX_ENLARGEMENT * trained:
            raise GocaError(
                f"size {made.size} is too large: {backbone.name} was trained at {trained} px per side, so give "
                f"{MAX_ENLARGEMENT * trained} or less, or use window for large images",
                hint="window",
            )
        if made.size < backbone.size_multiple:
            raise GocaError(
                f"size {made.size} is too small: {backbone.name} works on patches of {backbone.size_multiple} px, "
                f"so give {backbone.size_multiple} or more",
                hint="size",
            )
        for timestep in made.timestep:
            check_timestep(backbone.pipeline.scheduler, timestep)
        if made.evidence == "prototypes" and prototypes is not None:
            made = with_prototypes(made, prototypes)
        self.plan = made
        self.attention_plan = None
        """The plan for nouns without a prototype; None without prototypes, or if the recipe requires them."""
        if prototypes is not None and chosen.evidence != "prototypes":
            self.attention_plan = replace(planned(None), evidence="attention")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.plan!r}, {self.plan.dtype} on {self.plan.device}, batch {self.batch})"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the choices of the plan, and the origin of each."""
        return html.figure(repr(self), None, *self.plan.table())

    def inference(self) -> AbstractContextManager[None]:
        """Context without gradients or the caller's autocast; an out-of-memory error says what to do."""
        return inference(self.batch, self.plan.size)

    @classmethod
    def from_pretrained(
        cls: type[_Model],
        name: str | Path = bundled.DEFAULT,
        recipe: Recipe | str = GOCA_OPEN,
        *,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        variant: str | None = None,
        batch: int = 4,
        size: int | None = None,
        timestep: int | Sequence[int] | None = None,
        seed: int = 0,
        seeds: int = 1,
        flip: bool = False,
        window: bool = False,
        refine_edges: bool = False,
        floor: float | None = None,
        prototypes: str | Path | None = None,
        settings: SettingsLike | None = None,
    ) -> _Model:
        """Load a model and plan how to use it.

        Args:
            name: One of `goca.bundled.names()`, a local diffusers folder, or a Hub id to download. Only safetensors.
            recipe: The method, a `Recipe` or its name.
            device: Such as "cuda:1"; by default the first of cuda, mps and cpu that this machine has.
            dtype: "float32", "float16" or "bfloat16"; by default float32 on a CPU, else float16.
            revision: Branch, tag or commit of a Hub id.
            variant: Variant of the weight files, such as "fp16".
            batch: Rows per denoiser pass, 1 or more.
            size: The model's input has about size x size pixels, in the image's aspect; by default the side of
                training. At most four times that.
            timestep: Noise level of the pass, 0 to 999, for flow models thousandths of sigma; the scores of several
                are averaged. By default the recipe's, else the checkpoint's.
            seed: Seed of the first noise.
            seeds: Number of consecutive noise seeds to average over, 1 or more.
            flip: Average with a pass over the mirrored image.
            window: Process the image in overlapping windows at its full resolution.
            refine_edges: Align the scores with the image's edges before pixels are labelled, whatever the recipe.
            floor: Evidence, 0 to 1, that a class needs to get pixels; 0 keeps every class. By default the recipe's.
            prototypes: A file that `goca prototypes` made with this model; by default the one in the model's folder, if
                there is one.
            settings: Reference, refinement, timestep and so on for this checkpoint, or a file of them, from
                `choose_settings`; "auto" for those that `automatic_settings` chose on this machine; by default the
                checkpoint's known settings, or its family's.

        Raises:
            GocaError: The model cannot be loaded or read, the recipe is unknown, or a setting is out of range.
        """
        pipeline = load(name, device, dtype, revision, variant)
        full_name = "@".join(str(part) for part in (name, revision, variant) if part is not None)
        options = Options(
            size=size,
            timestep=timestep,
            seed=seed,
            seeds=seeds,
            flip=flip,
            window=window,
            refine_edges=refine_edges,
            floor=floor,
        )
        backbone = Backbone(pipeline, full_name, settings=settings)
        return cls(backbone, recipe, options, batch, prototypes_of(backbone, prototypes))

    @classmethod
    def from_pipeline(
        cls: type[_Model],
        pipe: Any,
        recipe: Recipe | str = GOCA_OPEN,
        *,
        family: Family | None = None,
        batch: int = 4,
        size: int | None = None,
        timestep: int | Sequence[int] | None = None,
        seed: int = 0,
        seeds: int = 1,
        flip: bool = False,
        window: bool = False,
        refine_edges: bool = False,
        floor: float | None = None,
        prototypes: str | Path | None = None,
        settings: SettingsLike | None = None,
    ) -> _Model:
        """Wrap a loaded pipeline, which is not changed; calls use it one at a time.

        Arguments that are not listed here are as in `from_pretrained`.

        Args:
            pipe: A text-to-image diffusers pipeline.
            recipe: The method, a `Recipe` or its name.
            family: Facts of its denoiser if it is not in a listed family; `goca models --probe` finds them.

        Raises:
            GocaError: The pipeline cannot be read, the recipe is unknown, or a setting is out of range.
        """
        options = Options(
            size=size,
            timestep=timestep,
            seed=seed,
            seeds=seeds,
            flip=flip,
            window=window,
            refine_edges=refine_edges,
            floor=floor,
        )
        backbone = Backbone(pipe, family=family, settings=settings)
        return cls(backbone, recipe, options, batch, prototypes_of(backbone, prototypes))


def with_prototypes(plan: Plan, prototypes: Prototypes) -> Plan:
    """The plan with evidence by prototypes, and only those background nouns that have one."""
    # Learning leaves out nouns that the model never showed.
    known = tuple(noun for noun in plan.background_classes if noun in prototypes.nouns)
    return replace(plan, evidence="prototypes", background_classes=known)


def prototypes_of(backbone: Backbone, path: str | Path | None) -> Prototypes | None:
    """The prototypes in a file, or in the folder that a pipeline was loaded from; None if there are none.

    Raises:
        GocaError: The file cannot be read, or is of another model. A file in the model's folder is ignored if the
            weights were changed since.
    """
    if path is not None:
        prototypes = Prototypes.load(path)
        prototypes.check(backbone)
        return prototypes
    folder = pipeline_folder(backbone.pipeline)
    beside = None if folder is None else load_beside(folder)
    return beside if beside is not None and beside.fits(backbone) else None
