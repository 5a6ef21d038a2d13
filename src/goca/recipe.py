"""Recipes: the rules of a method, as values.

`VANILLA` is `GOCA` with three fields replaced, and so is any ablation or new idea. Fields take the rules themselves
(functions of `goca.maths`) or their names.
"""

from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from goca.errors import GocaError
from goca.imaging import html
from goca.maths import background, layers, rescale
from goca.maths.background import Background
from goca.maths.concepts import MapRule, attention
from goca.maths.heads import HeadRule
from goca.maths.layers import ChannelRule, LayerRule, all_channels
from goca.maths.refine import AffinityRule, plain
from goca.maths.refit import RefitRule, never
from goca.maths.rescale import Step
from goca.maths.rules import AFFINITIES, BACKGROUNDS, CHANNELS, HEADS, LAYERS, MAPS, REFITS, STEPS, name_of, named

FROM_MODEL = "from_model"
"""A field with this value is taken from the checkpoint's settings."""
AUTO = "auto"
"""Background rule: offset 0 where there are background classes, else constant 0.5."""
TOKENS = "tokens"
"""A common grid with a cell for each token of the finest attention to the text."""
NO_BACKGROUND = "none"
"""A background of a request, like None: every pixel gets a class."""
KEYS = ("caption", "side")
"""Where cross-attention meets the classes: in the image's caption, or beside it as additional keys."""
MAX_SEEDS = 1000
"""Most noise seeds: a larger number is likely a mistake, such as a seed given as their number."""
EVIDENCE = ("attention", "prototypes")
"""How evidence is measured, see `Recipe.evidence`."""


def check_floor(floor: float) -> None:
    """Raise GocaError for a floor that is not a number from 0 to 1."""
    if isinstance(floor, bool) or not isinstance(floor, Real) or not 0 <= floor <= 1:
        raise GocaError(f"floor {floor!r} is not a number from 0 to 1: give one, 0 to keep every class", hint="floor")


def check_seeds(seeds: int) -> None:
    """Raise GocaError for a number of noise seeds that is out of range."""
    if seeds < 1:
        raise GocaError(f"seeds {seeds} is too few: give 1 or more", hint="seeds")
    if seeds > MAX_SEEDS:
        raise GocaError(f"seeds {seeds} is too large: give {MAX_SEEDS} or fewer", hint="seeds")


@dataclass(frozen=True, repr=False)
class Recipe:
    """The rules of a method; `goca.maths.rules` has the named ones. "from_model" takes the checkpoint's settings.

    Attributes:
        heads: How the heads of a layer are weighed. Joint attention uses the settings' rule instead of "varying-share".
        layers: How layers are weighed and summed.
        rescale: Steps from raw class scores to class maps.
        cross: Blocks whose cross-attention takes part; () for all.
        reference: The block whose dense feature the layers are compared with.
        reference_channels: What of that feature counts: "all" channels, or the "first".
        refine: Blocks whose self-attention refines.
        order: How many times it is applied, 0 or more.
        grid: The common grid, on which the maps of all layers meet. "from_model": the authors' 64 cells a side, or as
            many as the checkpoint's settings say; as many in all if the image is not square. "tokens": a cell for each
            token of the finest attention to the text, whatever the settings say.
        timestep: Of the denoiser pass, 0 to 999; for a flow model, thousandths of sigma.
        background: A `Background`, or "auto".
        maps: What a layer's map is made from.
        keys: "caption" lists the classes in the image's caption, and spreads those that do not fit
            it over several, a pass each. "side" shows the image with the empty caption, or the user's; each class is
            encoded in a prompt of its own and only adds its tokens' keys to every cross-attention. Any number of
            classes then takes one pass, and none disturbs the image. Joint attention falls back to "caption".
        evidence: How to measure, before classes are put in the prompt, which ones the image shows (`goca.evidence`):
            "attention", "prototypes", "from_model" for prototypes where the model has them, else attention; None for
            not at all.
        floor: evidence, 0 to 1, that a class needs to get pixels; with more than a few classes each needs more, see
            `goca.maths.presence.present`.
        affinity: How the self-attention that refines is changed before it is applied: "plain" for not at all, or
            "distinct", see `goca.maths.refine`. Layers are weighed by their attention as it is.
        refit: How refined scores are fitted to the features of the image, the outputs of the blocks that refine:
            "never", or by "gaussians", see `goca.maths.refit`; a single class stays as it is.
        edges: Whether the scores follow the image's own edges before pixels are labelled; `refine_edges` of a
            segmenter switches this on for any recipe.
        flip: Whether scores are averaged with a pass over the mirrored image; `flip` of a segmenter switches this on
            for any recipe. A generation runs only once, so in a trace `flip` and `seeds` have no effect.
        seeds: Number of noise seeds to average over, 1 or more; a segmenter's `seeds` above 1 overrides it.
        square: Whether images are squashed to a square, bicubically, as in the authors' script; without
            it they keep their aspect. Windows are squares either way, and long images then need none.

    Raises:
        GocaError: A rule or the grid is unknown, or the number of seeds is not valid.
    """

    heads: HeadRule | str = FROM_MODEL
    layers: LayerRule | str = layers.agreement
    rescale: tuple[Step | str, ...] | str = (rescale.share, rescale.blur, rescale.minmax)
    cross: tuple[str, ...] | str = FROM_MODEL
    reference: str = FROM_MODEL
    refine: tuple[str, ...] | str = FROM_MODEL
    order: int | str = FROM_MODEL
    timestep: int | str = FROM_MODEL
    background: Background | str = AUTO
    maps: MapRule | str = attention
    keys: str = "caption"
    evidence: str | None = None
    floor: float = 0.0
    affinity: AffinityRule | str = plain
    refit: RefitRule | str = never
    edges: bool = False
    flip: bool = False
    seeds: int = 1
    reference_channels: ChannelRule | str = all_channels
    square: bool = False
    grid: str = FROM_MODEL

    def __post_init__(self) -> None:
        for name, rules, kind in (("heads", HEADS, "head rule"), ("layers", LAYERS, "layer rule")):
            if getattr(self, name) != FROM_MODEL:
                object.__setattr__(self, name, named(getattr(self, name), rules, kind))
        object.__setattr__(self, "maps", named(self.maps, MAPS, "map rule"))
        object.__setattr__(self, "affinity", named(self.affinity, AFFINITIES, "affinity rule"))
        object.__setattr__(self, "refit", named(self.refit, REFITS, "refitting rule"))
        channels = named(self.reference_channels, CHANNELS, "rule of reference channels")
        object.__setattr__(self, "reference_channels", channels)
        if self.rescale != FROM_MODEL:
            if isinstance(self.rescale, str):
                raise GocaError(f'rescale is a tuple of steps: write ("{self.rescale}",)')
            object.__setattr__(self, "rescale", tuple(named(step, STEPS, "rescaling step") for step in self.rescale))
        if not isinstance(self.background, Background) and self.background not in (AUTO, FROM_MODEL):
            raise GocaError(f'background {self.background!r} is neither "{AUTO}" nor a Background(rule, threshold)')
        if self.keys not in KEYS:
            raise GocaError(f'keys {self.keys!r} is neither "caption" nor "side"')
        if self.evidence not in (None, FROM_MODEL, *EVIDENCE):
            raise GocaError(
                f"evidence {self.evidence!r} is not valid: give {', '.join(EVIDENCE)}, {FROM_MODEL} or None"
            )
        check_floor(self.floor)
        if isinstance(self.seeds, bool) or not isinstance(self.seeds, Integral):
            raise GocaError(f"seeds {self.seeds!r} is not a whole number", hint="seeds")
        check_seeds(int(self.seeds))
        if self.grid not in (FROM_MODEL, TOKENS):
            raise GocaError(f'grid {self.grid!r} is neither "{FROM_MODEL}" nor "{TOKENS}"')

    def __repr__(self) -> str:
        changed = (f"{name}={value!r}" for name, value in self._named().items() if value != GOCA._named()[name])
        return f"Recipe({', '.join(changed)})"

    def _repr_html_(self) -> str:
        """HTML for notebooks: the rules by name, beside those of `GOCA` if they differ."""
        published = GOCA._named()
        rows = [
            (name, html.listed(value), html.listed(published[name]) if value != published[name] else "")
            for name, value in self._named().items()
        ]
        return html.figure(f"Recipe {name_of(self, RECIPES)}", None, ("rule", "value", "instead of"), rows)

    def _named(self) -> dict[str, Any]:
        """The fields, rules by their names."""
        rules: dict[str, Any] = {"heads": HEADS, "layers": LAYERS, "maps": MAPS}
        rules |= {"affinity": AFFINITIES, "refit": REFITS, "reference_channels": CHANNELS}
        named = {item.name: getattr(self, item.name) for item in fields(self)}
        named |= {name: name_of(named[name], known) for name, known in rules.items() if named[name] != FROM_MODEL}
        if self.rescale != FROM_MODEL:
            named["rescale"] = tuple(name_of(step, STEPS) for step in self.rescale)
        if isinstance(self.background, Background):
            named["background"] = f"{name_of(self.background.rule, BACKGROUNDS)} {self.background.threshold:g}"
        return named


GOCA = Recipe()
"""Auto aggregation and per-pixel rescaling as published (Meng et al., CVPR 2026)."""
GOCA_RELEASED = replace(GOCA, reference_channels="first", square=True)
"""`GOCA` as the authors' released script for segmentation computes it, and so perhaps the published figures: layers are
compared with one channel of the reference feature, and images are squashed to a square. The script also draws the
latent from the VAE's posterior, of which this takes the mode, and stores attention in half precision."""
VANILLA = replace(GOCA, heads="mean", layers="mean", rescale=("blur", "minmax"))
"""The baseline of averaging segmentors: equal heads, equal layers, no shares; everything else as in `GOCA`."""
GOCA_BALANCED = replace(GOCA, layers="balanced-agreement")
"""`GOCA`, but rows of resized affinities sum to 1 again before layers are weighed, so that no grid is favoured."""
GOCA_OPEN = replace(GOCA_BALANCED, evidence=FROM_MODEL, floor=0.5)
"""Labels only what an image shows: each class's evidence is measured first, and `GOCA_BALANCED` labels the classes that
reach the floor. With prototypes the same look also labels the pixels, and no class needs to be in a prompt."""
GOCA_REFINED = replace(GOCA_BALANCED, heads="varying-share", grid=TOKENS, refit="gaussians", edges=True)
"""The best labels in one pass: `GOCA_BALANCED` with heads weighed by what varies over the image, on a grid as fine as
the attention, and refined by more than self-attention: scores are fitted to the image's own features, and follow its
edges. Not published."""
GOCA_QUALITY = replace(GOCA_REFINED, flip=True)
"""`GOCA_REFINED`, averaged with the mirrored image: the best labels, in two passes. More seeds gained nothing."""
GOCA_COMPOUND = replace(
    GOCA,
    rescale=("share", "blur", "minmax", "times-raw", "blur", "minmax"),
    background=Background(background.maximum, 0.4),
)
"""The longer rescaling and the "max" background that a later report found better on SD 1.5 (not verified here)."""
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
SD 1.5 take three layers of five; gives each class a prompt of its own, written by a captioner, and weighs its noun
more; and picks the threshold, from 0.30 to 0.74, on the evaluated split. Each window is min-maxed by itself."""
CONCEPT_ATTENTION = replace(VANILLA, maps="output-space", layers="plain-mean", cross=(), rescale=(), refine=(), order=0)
"""ConceptAttention's score (Helbling et al., ICML 2025, arXiv 2502.04320), for joint attention: the similarity of the
attention outputs of pixels and nouns, softmax over nouns, averaged over layers. The original adds concept tokens that
attend to the image without being attended to, and takes blocks 15 to 18 of Flux. Here, in one stock pass, the nouns of
the caption are the concepts, and all blocks take part unless `cross` names some."""

RECIPES = {
    "goca": GOCA,
    "goca-released": GOCA_RELEASED,
    "vanilla": VANILLA,
    "goca-balanced": GOCA_BALANCED,
    "goca-open": GOCA_OPEN,
    "goca-refined": GOCA_REFINED,
    "goca-quality": GOCA_QUALITY,
    "goca-compound": GOCA_COMPOUND,
    "daam": DAAM,
    "fttm": FTTM,
    "diffsegmenter": DIFFSEGMENTER,
    "concept-attention": CONCEPT_ATTENTION,
}


def recipe_named(recipe: Recipe | str) -> Recipe:
    """The recipe with a name, in any case, with "-" or "_"; a `Recipe` is returned. Raises GocaError if unknown."""
    if isinstance(recipe, Recipe):
        return recipe
    key = str(recipe).lower().replace("_", "-")
    if key not in RECIPES:
        raise GocaError(f'no recipe "{recipe}": there are {", ".join(RECIPES)}', hint="recipe")
    return RECIPES[key]
