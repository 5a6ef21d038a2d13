"""A recipe names the rules; a plan is a recipe made concrete for one checkpoint.

A method is a value: `VANILLA` is `GOCA` with three fields replaced, and so is any ablation or new idea. Fields take the
rules themselves (functions of `goca.maths`) or their names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.metadata import version
from numbers import Integral
from typing import Any

from goca.diffusion.families.spec import CheckpointSettings
from goca.errors import GocaError
from goca.maths import aggregate, background, rescale
from goca.maths.aggregate import HeadRule, LayerRule
from goca.maths.background import Background
from goca.maths.concepts import MapRule, attention
from goca.maths.rescale import Step
from goca.maths.rules import BACKGROUNDS, HEADS, LAYERS, MAPS, STEPS, name_of, named

FROM_MODEL = "from_model"
"""A field with this value takes what the checkpoint's settings say."""
AUTO = "auto"
"""Background rule: offset 0 where there are background classes, else constant 0.5."""


@dataclass(frozen=True)
class Recipe:
    """The rules of a method; see `goca.maths.rules` for the named ones.

    heads, layers: how heads and layers are weighed. rescale: steps from raw class scores to class maps. cross: the
    blocks whose cross-attention takes part, () for all. reference: the block whose dense feature the layers are
    compared with. refine: blocks whose self-attention refines. order: how often. timestep: training timestep of the one
    forward pass. background: a `Background`, or "auto". maps: what a layer's map is made of.
    """

    heads: HeadRule | str = FROM_MODEL
    layers: LayerRule | str = aggregate.agreement
    rescale: tuple[Step | str, ...] | str = (rescale.share, rescale.blur, rescale.minmax)
    cross: tuple[str, ...] | str = FROM_MODEL
    reference: str = FROM_MODEL
    refine: tuple[str, ...] | str = FROM_MODEL
    order: int | str = FROM_MODEL
    timestep: int | str = FROM_MODEL
    background: Background | str = AUTO
    maps: MapRule | str = attention

    def __post_init__(self) -> None:
        for name, known, what in (("heads", HEADS, "head rule"), ("layers", LAYERS, "layer rule")):
            if getattr(self, name) != FROM_MODEL:
                object.__setattr__(self, name, named(getattr(self, name), known, what))
        object.__setattr__(self, "maps", named(self.maps, MAPS, "map rule"))
        if self.rescale != FROM_MODEL:
            if isinstance(self.rescale, str):
                raise GocaError(f'rescale is a tuple of steps: write ("{self.rescale}",)')
            object.__setattr__(self, "rescale", tuple(named(step, STEPS, "rescaling step") for step in self.rescale))
        if not isinstance(self.background, Background) and self.background not in (AUTO, FROM_MODEL):
            raise GocaError(f'background {self.background!r} is neither "{AUTO}" nor a Background(rule, threshold)')


GOCA = Recipe()
"""Auto aggregation and per-pixel rescaling as published (Meng et al., CVPR 2026)."""
VANILLA = replace(GOCA, heads="mean", layers="mean", rescale=("blur", "minmax"))
"""The averaging segmentors' way: equal heads, equal layers, no shares. Nothing else differs from `GOCA`."""
GOCA_BALANCED = replace(GOCA, layers="balanced-agreement")
"""`GOCA` whose resized affinities sum to 1 a row again before layers are weighed, so that no grid is favoured."""
GOCA_COMPOUND = replace(
    GOCA,
    rescale=("share", "blur", "minmax", "times-raw", "blur", "minmax"),
    background=Background(background.maximum, 0.4),
)
"""The longer rescaling and the `max` background that a later report found better on SD 1.5 (a hypothesis here)."""
DAAM = replace(
    VANILLA, cross=(), rescale=("peak",), refine=(), order=0, background=Background(background.constant, 0.4)
)
"""DAAM (Tang et al., ACL 2023, section 3): attention averaged over all heads and layers, each word's map over its peak,
cut at 0.4. Here at one timestep of a real image and resized bilinearly; over a sampler's steps in the original."""
FTTM = replace(
    VANILLA,
    cross=tuple(f"up_blocks.1.attentions.{index}.transformer_blocks.0" for index in range(3)),
    refine=tuple(f"up_blocks.3.attentions.{index}.transformer_blocks.0" for index in range(3)),
    order=1,
)
"""Hand-picked layers in the manner of FTTM (Xiao et al. 2023, "From Text to Mask"), for SD 1.x and 2.x: the decoder's
coarsest cross-attentions averaged, refined by its finest self-attentions. Its code was not at hand: the choice of
layers is ours in its spirit, and the figure reported for it need not be reproduced."""
DIFFSEGMENTER = replace(
    VANILLA, layers="by-resolution", cross=(), rescale=(), order=1, background=Background(background.constant, 0.5)
)
"""DiffSegmenter's aggregation (Wang et al. 2023, arXiv 2309.02773, and its code): the layers of a grid averaged, each
token's map of it min-maxed, the grids weighed 0.3, 0.5, 0.1, 0.1 from coarse to fine; the sum multiplied once by
self-attention and min-maxed. The original multiplies by all self-attention of the finest grid, of which the settings of
SD 1.5 take three layers of five; asks for each class in a prompt of its own that a captioner writes, and weighs its
noun more; and picks the threshold, from 0.30 to 0.74, on the evaluated split. Windows are min-maxed each by itself."""
CONCEPT_ATTENTION = replace(VANILLA, maps="output-space", layers="plain-mean", cross=(), rescale=(), refine=(), order=0)
"""ConceptAttention's score (Helbling et al., ICML 2025, arXiv 2502.04320), for joint attention: which noun a pixel is
most alike in what the attention gave them, softmax over nouns, averaged over layers. The original adds concept tokens
that look at the image without being looked at, and takes blocks 15 to 18 of Flux. Here, in one stock pass, the nouns
of the caption are the concepts, and all blocks take part unless `cross` names some."""

RECIPES = {
    "goca": GOCA,
    "vanilla": VANILLA,
    "goca-balanced": GOCA_BALANCED,
    "goca-compound": GOCA_COMPOUND,
    "daam": DAAM,
    "fttm": FTTM,
    "diffsegmenter": DIFFSEGMENTER,
    "concept-attention": CONCEPT_ATTENTION,
}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name; GocaError, with the names there are, for any other."""
    plain = name.lower().replace("_", "-")
    if plain not in RECIPES:
        raise GocaError(f'no recipe "{name}": there are {", ".join(RECIPES)}')
    return RECIPES[plain]


@dataclass(frozen=True)
class Options:
    """What the user sets for a run; None leaves it to the recipe and the checkpoint's settings.

    size: pixels a side. timestep: one training timestep or several, whose maps are averaged. seed: of the first noise;
    seeds: how many. flip: average with the mirrored image. window: see the image through overlapping windows.
    refine_edges: before pixels are labelled, scores are made to follow the image's own edges (`goca.maths.edges`).
    """

    size: int | None = None
    timestep: int | tuple[int, ...] | None = None
    seed: int = 0
    seeds: int = 1
    flip: bool = False
    window: bool = False
    refine_edges: bool = False

    @classmethod
    def of(cls, **given: Any) -> "Options":
        """From keyword arguments; GocaError for one that there is not, and for a number that is not whole."""
        known = [item.name for item in fields(cls)]
        for name, value in given.items():
            if name not in known:
                raise GocaError(f'no setting "{name}": there are {", ".join(known)}')
            values = value if isinstance(value, tuple | list) else (value,)
            if not all(one is None or isinstance(one, Integral) for one in values):
                raise GocaError(f"{name} {value!r} is not a whole number")
        timesteps = given.get("timestep")
        return cls(**{**given, "timestep": tuple(timesteps)} if isinstance(timesteps, list) else given)


@cache
def versions() -> Mapping[str, str]:
    """Versions of the packages that decide a result."""
    return {name: version(name) for name in ("goca", "torch", "diffusers", "transformers")}


@dataclass(frozen=True)
class Plan:
    """Every choice of a run, made concrete, with where it came from; what a result prints as its provenance.

    origin: {field: "recipe", "settings" or "user"}. device, dtype: what the pipeline ran on and in. captions and notes
    are filled in by the run itself: the prompts used, and what had to differ from the recipe.
    """

    recipe: str
    model: str
    settings: str
    size: int
    grid: int
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
    feature: str
    refine: tuple[str, ...]
    order: int
    background: Background | str
    background_classes: tuple[str, ...]
    origin: Mapping[str, str]
    device: str = ""
    dtype: str = ""
    captions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=versions)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain numbers, strings, lists and dicts."""
        names: dict[str, Any] = {
            "heads": name_of(self.heads, HEADS),
            "layers": name_of(self.layers, LAYERS),
            "maps": name_of(self.maps, MAPS),
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
    overrides: Options,
    joint: bool = False,
) -> Plan:
    """Make every field of the recipe concrete.

    blocks: the denoiser's blocks that have attention. joint: whether text and pixels share it. Raises GocaError where
    the recipe names a block that is not among them or needs joint attention that there is not, or an override is out of
    range.
    """
    chosen: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for item in fields(Recipe):
        asked = getattr(recipe, item.name)
        from_model = isinstance(asked, str) and asked == FROM_MODEL
        chosen[item.name] = getattr(settings, item.name) if from_model else asked
        origin[item.name] = "settings" if from_model else "recipe"
    chosen["heads"] = named(chosen["heads"], HEADS, "head rule")
    chosen["layers"] = named(chosen["layers"], LAYERS, "layer rule")
    chosen["rescale"] = tuple(named(step, STEPS, "rescaling step") for step in chosen["rescale"])
    for name in ("size", "timestep"):
        mine = getattr(overrides, name)
        chosen[name] = chosen.get(name, settings.size) if mine is None else mine
        origin[name] = origin.get(name, "settings") if mine is None else "user"
    chosen["timestep"] = (
        (chosen["timestep"],) if isinstance(chosen["timestep"], Integral) else tuple(chosen["timestep"])
    )
    if chosen["size"] < 1 or overrides.seeds < 1 or chosen["order"] < 0 or not chosen["timestep"]:
        raise GocaError(
            f"size ({chosen['size']}), seeds ({overrides.seeds}) and the number of timesteps "
            f"({len(chosen['timestep'])}) are 1 or more, order ({chosen['order']}) is 0 or more"
        )
    if chosen["maps"].score is not None and not joint:
        raise GocaError(
            f'recipe "{name_of(recipe, RECIPES)}" needs joint attention, which {model} lacks: choose another recipe'
        )
    missing = [block for block in (chosen["reference"], *chosen["refine"], *chosen["cross"]) if block not in blocks]
    if missing:
        raise GocaError(
            f'recipe "{name_of(recipe, RECIPES)}" needs block {missing[0]}, which {model} lacks: name one it has'
        )
    return Plan(
        recipe=name_of(recipe, RECIPES),
        model=model,
        settings=settings.origin,
        grid=settings.grid,
        seeds=tuple(range(overrides.seed, overrides.seed + overrides.seeds)),
        flip=overrides.flip,
        window=overrides.window,
        refine_edges=overrides.refine_edges,
        feature=settings.feature,
        background_classes=settings.background_classes,
        origin=origin,
        **chosen,
    )


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
