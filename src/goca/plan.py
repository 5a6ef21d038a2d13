"""A plan: a recipe made concrete for one checkpoint and the user's settings, with the origin of each choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from numbers import Integral
from typing import Any

import numpy as np

from goca.diffusion.families.spec import CheckpointSettings
from goca.errors import GocaError
from goca.imaging import html, images
from goca.maths import Grid
from goca.maths.background import Background
from goca.maths.concepts import MapRule
from goca.maths.heads import OF_TEXT_ALONE, HeadRule
from goca.maths.layers import ChannelRule, LayerRule
from goca.maths.refine import AffinityRule
from goca.maths.refit import RefitRule
from goca.maths.rescale import Step
from goca.maths.rules import AFFINITIES, BACKGROUNDS, CHANNELS, HEADS, LAYERS, MAPS, REFITS, STEPS, name_of, named
from goca.recipe import FROM_MODEL, RECIPES, Recipe, check_floor, check_seeds

MAX_SEED = 2**63
"""PyTorch's generators take seeds below this."""


def check_seed(seed: int, seeds: int) -> None:
    """Raise GocaError if `seeds` consecutive seeds from `seed` are not all in the generators' range."""
    if not 0 <= seed <= MAX_SEED - seeds:
        raise GocaError(f"seed {seed} is out of range: give 0 to {MAX_SEED - seeds}", hint="seed")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The user's settings of a run.

    The fields are arguments of `Segmenter.from_pretrained`, which describes them.

    Raises:
        GocaError: A value is of another type, or a seed is out of the generators' range.
    """

    size: int | None = None
    timestep: int | Sequence[int] | None = None
    seed: int = 0
    seeds: int = 1
    flip: bool = False
    window: bool = False
    refine_edges: bool = False
    floor: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "floor":
                if value is not None:
                    check_floor(value)
                continue
            if isinstance(item.default, bool):
                if not isinstance(value, bool | np.bool_):
                    raise GocaError(
                        f"{item.name} {value!r} is neither True nor False: give one of them", hint=item.name
                    )
                continue
            several = item.name == "timestep" and isinstance(value, Sequence) and not isinstance(value, str)
            for number in value if several else (value,):
                whole = isinstance(number, Integral) and not isinstance(number, bool)
                if not whole and (several or number is not item.default):
                    raise GocaError(f"{item.name} {value!r} is not a whole number: give one", hint=item.name)
        check_seeds(self.seeds)
        check_seed(self.seed, self.seeds)

    def set_by_user(self) -> frozenset[str]:
        """The fields of a plan that the user has set to other than the defaults."""
        changed = {item.name for item in fields(self) if getattr(self, item.name) != item.default}
        return frozenset("seeds" if name == "seed" else name for name in changed)


@cache
def versions() -> Mapping[str, str]:
    """{package: version} of the packages that affect a result."""
    return {name: version(name) for name in ("goca", "torch", "diffusers", "transformers")}


@dataclass(frozen=True, repr=False)
class Plan:
    """Every choice of a run, made concrete; a result carries it as its provenance.

    Attributes:
        recipe, model, settings: Names of the recipe and the model, and the origin of the checkpoint's settings.
        size: The model's input has about size x size pixels.
        grid: The common grid has about grid x grid cells; or "tokens": a cell for each token, which has `token_cells` x
            `token_cells` cells of the latent.
        timestep, seeds: Each timestep is combined with each seed. Prototypes are evaluated at their own timestep, and
            label pixels if it is this one.
        feature: The feature that compares references, the "query" or the attention's "output".
        background_classes: Nouns whose pixels become background: the model's list; in a result those that were used.
        keys: Where cross-attention meets the classes, see `Recipe`; from the settings if the recipe says "side" and
            the model has joint attention.
        evidence, floor: See `Recipe`; evidence_blocks: the blocks whose attention to the text gives it, () for all.
        origin: {field: "recipe", "settings", "user" or "default"}.
        device, dtype: Where, and in which precision, the pipeline ran.
        captions, notes: Of the run itself: the prompts used, and deviations from the recipe.
    """

    recipe: str
    model: str
    settings: str
    size: int
    grid: int | str
    token_cells: int
    timestep: tuple[int, ...]
    seeds: tuple[int, ...]
    flip: bool
    window: bool
    refine_edges: bool
    heads: HeadRule
    layers: LayerRule
    maps: MapRule
    cross: tuple[str, ...]
    rescale: tuple[Step, ...]
    reference: str
    reference_channels: ChannelRule
    feature: str
    refine: tuple[str, ...]
    order: int
    affinity: AffinityRule
    refit: RefitRule
    square: bool
    background: Background | str
    background_classes: tuple[str, ...]
    keys: str
    evidence: str | None
    evidence_blocks: tuple[str, ...]
    floor: float
    origin: Mapping[str, str] = field(hash=False)
    device: str = ""
    dtype: str = ""
    captions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=versions, hash=False)

    def __repr__(self) -> str:
        passes = f", {self.num_passes} passes" if self.num_passes > 1 else ""
        return f"Plan({self.recipe} on {self.model}, {self.size} px, timestep {self.timestep}{passes})"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the choices, and the origin of each."""
        return html.figure(repr(self), None, *self.table())

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """(columns, rows) of a table of the choices."""
        choices = {name: value for name, value in self.to_json().items() if name in self.origin}
        rows: list[tuple[str, ...]] = [(name, html.listed(value), self.origin[name]) for name, value in choices.items()]
        return ("choice", "value", "set by"), rows

    @property
    def num_passes(self) -> int:
        """Number of passes that a result averages: every timestep with every seed, doubled by flipping."""
        return len(self.timestep) * len(self.seeds) * (1 + self.flip)

    def common_grid(self, latent: Grid) -> Grid:
        """The grid on which all layers meet, for a latent of (height, width) cells."""
        if isinstance(self.grid, str):
            return images.token_grid(latent, self.token_cells)
        return images.common_grid(latent, self.grid)

    def as_run(
        self,
        background: Background,
        by_user: bool,
        background_classes: Sequence[str],
        captions: Sequence[str],
        notes: Sequence[str],
    ) -> "Plan":
        """The plan as it ran for one image; by_user: whether the user chose the background."""
        origin = {**self.origin, "background": "user"} if by_user else self.origin
        return replace(
            self,
            background=background,
            background_classes=tuple(background_classes),
            captions=tuple(captions),
            notes=tuple(notes),
            origin=origin,
        )

    def to_json(self) -> dict[str, Any]:
        """The plan as plain numbers, strings, lists and dicts."""
        names: dict[str, Any] = {
            "heads": name_of(self.heads, HEADS),
            "layers": name_of(self.layers, LAYERS),
            "maps": name_of(self.maps, MAPS),
            "affinity": name_of(self.affinity, AFFINITIES),
            "refit": name_of(self.refit, REFITS),
            "reference_channels": name_of(self.reference_channels, CHANNELS),
            "rescale": [name_of(step, STEPS) for step in self.rescale],
            "background": self.background
            if isinstance(self.background, str)
            else {"rule": name_of(self.background.rule, BACKGROUNDS), "threshold": self.background.threshold},
        }
        return {item.name: names.get(item.name, _jsonable(getattr(self, item.name))) for item in fields(self)}


def plan(
    recipe: Recipe,
    settings: CheckpointSettings,
    blocks: Sequence[str],
    model: str,
    options: Options,
    joint: bool = False,
    prototypes: int | None = None,
) -> Plan:
    """Make every field of a recipe concrete.

    Args:
        recipe, settings, options: The rules, the checkpoint's settings for what they leave open, and the user's, which
            override both.
        blocks: The denoiser's blocks that attend to the text.
        model: The checkpoint's name.
        joint: Whether text and pixels share one attention.
        prototypes: Timestep of the model's prototypes; None without any.

    Raises:
        GocaError: The recipe names a block that does not exist or needs joint attention, or an option is out of
            range.
    """
    chosen: dict[str, Any] = {}
    origin: dict[str, str] = {}
    facts = {**vars(settings), "evidence": "attention" if prototypes is None else "prototypes"}
    for item in fields(Recipe):
        value = getattr(recipe, item.name)
        from_model = isinstance(value, str) and value == FROM_MODEL
        chosen[item.name] = facts[item.name] if from_model else value
        origin[item.name] = "settings" if from_model else "recipe"
    chosen["heads"] = named(chosen["heads"], HEADS, "head rule")
    if joint and chosen["heads"] in OF_TEXT_ALONE:
        chosen["heads"], origin["heads"] = named(settings.heads, HEADS, "head rule"), "settings"
    chosen["layers"] = named(chosen["layers"], LAYERS, "layer rule")
    chosen["rescale"] = tuple(named(step, STEPS, "rescaling step") for step in chosen["rescale"])
    # JSON cannot hold numpy's numbers.
    chosen["size"] = int(settings.size if options.size is None else options.size)
    timestep = chosen["timestep"] if options.timestep is None else options.timestep
    chosen["timestep"] = tuple(map(int, timestep if isinstance(timestep, Sequence) else (timestep,)))
    by_model = options.timestep is None and recipe.timestep == FROM_MODEL
    if by_model and chosen["evidence"] == "prototypes" and prototypes is not None:
        chosen["timestep"] = (prototypes,)
    chosen["refine_edges"] = chosen.pop("edges")
    origin["refine_edges"] = origin.pop("edges")
    for name in ("refine_edges", "flip"):
        chosen[name] = bool(chosen[name] or getattr(options, name))
    chosen["window"] = bool(options.window)
    seeds = recipe.seeds if options.seeds == 1 else options.seeds
    check_seed(options.seed, seeds)
    chosen["seeds"] = tuple(range(options.seed, options.seed + seeds))
    facts_of_settings = ("token_cells", "feature", "background_classes", "evidence_blocks")
    chosen |= {name: getattr(settings, name) for name in facts_of_settings}
    origin |= {"size": "settings", "window": "default"}
    origin |= {name: "default" for name in ("refine_edges", "flip") if not chosen[name]}
    origin |= {"seeds": "default"} if recipe.seeds == 1 else {}
    origin |= dict.fromkeys(options.set_by_user(), "user")
    if options.floor is not None:
        chosen["floor"] = float(options.floor)
    if joint and recipe.keys == "side":
        chosen["keys"], origin["keys"] = "caption", "settings"
    made = Plan(
        recipe=name_of(recipe, RECIPES),
        model=model,
        settings=settings.origin,
        origin=origin,
        **chosen,
    )
    _check(made, blocks, joint, prototypes)
    return made


def _check(plan: Plan, blocks: Sequence[str], joint: bool, prototypes: int | None) -> None:
    if plan.size < 1:
        raise GocaError(f"size {plan.size} is too small: give a side in pixels, 1 or more", hint="size")
    if not plan.timestep:
        raise GocaError(
            "the list of timesteps is empty: give at least one, or None for the model's own", hint="timestep"
        )
    if min(plan.timestep) < 0:
        raise GocaError(f"timestep {min(plan.timestep)} is out of range: give 0 or more", hint="timestep")
    if plan.order < 0:
        raise GocaError(f'recipe "{plan.recipe}" has order {plan.order}: give 0 or more', hint="recipe")
    if plan.evidence == "prototypes" and prototypes is None:
        raise GocaError(
            f'recipe "{plan.recipe}" needs prototypes, which {plan.model} lacks: learn them, or choose another recipe',
            hint="recipe",
        )
    if plan.evidence is None and plan.floor > 0:
        raise GocaError(
            f'recipe "{plan.recipe}" measures no evidence, so floor {plan.floor} has no effect: choose another recipe',
            hint="recipe",
        )
    if plan.maps is not None and not joint:
        raise GocaError(
            f'recipe "{plan.recipe}" needs joint attention, which {plan.model} lacks: choose another recipe',
            hint="recipe",
        )
    missing = [block for block in (plan.reference, *plan.refine, *plan.cross) if block not in blocks]
    if missing:
        raise GocaError(
            f'recipe "{plan.recipe}" needs block {missing[0]}, which {plan.model} lacks: name one that it has',
            hint="recipe",
        )


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
