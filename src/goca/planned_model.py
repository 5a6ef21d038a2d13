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
"""How many times its training side a model may be shown: attention grows with the fourth power of the side."""
_DEFAULTS = Options()
_Model = TypeVar("_Model", bound="PlannedModel")


class PlannedModel:
    """A pipeline (`backbone`), the `plan` to use it by, and how many rows go through the denoiser at once (`batch`)."""

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
                f"size {made.size} is too large: {backbone.name} was trained at {trained} px a side, so give "
                f"{MAX_ENLARGEMENT * trained} or less, or window for large images",
                hint="window",
            )
        if made.size < backbone.size_multiple:
            raise GocaError(
                f"size {made.size} is too small: {backbone.name} sees patches of {backbone.size_multiple} px, "
                f"so give {backbone.size_multiple} or more",
                hint="size",
            )
        for timestep in made.timestep:
            check_timestep(backbone.pipeline.scheduler, timestep)
        if made.evidence == "prototypes" and prototypes is not None:
            made = with_prototypes(made, prototypes)
        self.plan = made
        self.attention_plan = None
        """How to look where a noun has no prototype; None without prototypes, or where the recipe insists on them."""
        if prototypes is not None and chosen.evidence != "prototypes":
            self.attention_plan = replace(planned(None), evidence="attention")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.plan!r}, {self.plan.dtype} on {self.plan.device}, batch {self.batch})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the choices of the plan, and where each comes from."""
        return html.figure(repr(self), None, *self.plan.table())

    def inference(self) -> AbstractContextManager[None]:
        """No gradients, no autocast of the caller's, and advice where memory runs out."""
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
            name: one of `goca.bundled.names()`, a diffusers folder, which is never fetched, or a Hub id, which is.
                Only safetensors.
            recipe: the method, a `Recipe` or its name.
            device: such as "cuda:1"; by default the first of cuda, mps and cpu that this machine has.
            dtype: "float32", "float16" or "bfloat16"; by default float32 on a CPU, else float16.
            revision: branch, tag or commit of a Hub id.
            variant: of the weight files, such as "fp16".
            batch: rows that go through the denoiser at once, 1 or more.
            size: images are shown with about size x size pixels, in their own aspect; by default as the model was
                trained. At most four times that.
            timestep: noise level of the pass, 0 to 999, for flow models thousandths of sigma; with several, the scores
                are averaged. By default the recipe's, else the checkpoint's.
            seed: of the first noise.
            seeds: how many consecutive noise seeds are averaged.
            flip: average with the mirrored image.
            window: see the image through overlapping windows at its own scale.
            refine_edges: make the scores follow the image's edges before pixels are labelled, whatever the recipe.
            floor: a class with less evidence gets no pixels, 0 to 1; 0 keeps every class. By default the recipe's.
            prototypes: a file that `goca prototypes` made with this model; by default the one in the model's folder, if
                there is one.
            settings: reference, refinement, timestep and so on for this checkpoint, or a file of them, as
                `choose_settings` finds them; "auto" for those that `automatic_settings` chose on this machine; by
                default those that are known for it, or its family's.

        Raises:
            GocaError: for a model that cannot be loaded or read, an unknown recipe, or a setting out of range.
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
        """Wrap a loaded pipeline, which stays as it is; one call at a time uses it.

        What is not listed here is as in `from_pretrained`.

        Args:
            pipe: a text-to-image diffusers pipeline.
            recipe: the method, a `Recipe` or its name.
            family: the facts of its denoiser, where no listed family has it; `goca models` can probe for them.

        Raises:
            GocaError: for a pipeline that cannot be read, an unknown recipe, or a setting out of range.
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
    """The plan with evidence by prototypes, and of its background nouns those that have any."""
    # Learning leaves out nouns that the model does not paint.
    known = tuple(noun for noun in plan.background_classes if noun in prototypes.nouns)
    return replace(plan, evidence="prototypes", background_classes=known)


def prototypes_of(backbone: Backbone, path: str | Path | None) -> Prototypes | None:
    """The prototypes of a file, or those in the folder that a pipeline came from; None without any.

    Raises:
        GocaError: the file cannot be read, or is of another model; what lies in the folder of a model whose weights
            were changed since is passed over.
    """
    if path is not None:
        prototypes = Prototypes.load(path)
        prototypes.check(backbone)
        return prototypes
    folder = pipeline_folder(backbone.pipeline)
    beside = None if folder is None else load_beside(folder)
    return beside if beside is not None and beside.fits(backbone) else None
