"""Recipes as values, plans made of them, and the table of settings that the authors used."""

import json
from dataclasses import FrozenInstanceError, fields, replace
from importlib.metadata import version
from typing import Any

import pytest
import torch

from goca.diffusion.checkpoints import CHECKPOINTS, settings_for
from goca.diffusion.families import FAMILIES
from goca.diffusion.families.spec import CheckpointSettings, Family
from goca.diffusion.families.unet import SD15, SD21, SDXL
from goca.errors import GocaError
from goca.maths import background, concepts, heads, layers, rescale
from goca.maths.background import Background
from goca.maths.rules import AFFINITIES, BACKGROUNDS, CHANNELS, HEADS, LAYERS, MAPS, REFITS, STEPS
from goca.plan import Options, Plan, plan
from goca.recipe import (
    CONCEPT_ATTENTION,
    DAAM,
    DIFFSEGMENTER,
    FTTM,
    GOCA,
    GOCA_BALANCED,
    GOCA_COMPOUND,
    GOCA_QUALITY,
    GOCA_REFINED,
    GOCA_RELEASED,
    RECIPES,
    VANILLA,
    Recipe,
    recipe_named,
)

UNET = next(family for family in FAMILIES if family.name == "unet")
KNOWN = [(family, settings) for family in FAMILIES for settings in family.checkpoints]


def refused(error: pytest.ExceptionInfo[GocaError], *parts: str) -> None:
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def planned(recipe: Recipe = GOCA, settings: CheckpointSettings = SD15, **overrides: Any) -> Plan:
    blocks = (*settings.refine, settings.reference, *FTTM.refine, *FTTM.cross)
    return plan(recipe, settings, blocks, "a model", Options(**overrides), joint=True)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"size": 0}, "size"),
        ({"seeds": 0}, "seeds"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"timestep": ()}, "timestep"),
        ({"timestep": -1}, "timestep"),
        ({"timestep": (100, -1)}, "timestep"),
    ],
)
def test_each_setting_out_of_range_is_named_alone(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(GocaError, match=hint) as caught:
        planned(**options)
    assert caught.value.hint == hint
    assert not any(name in str(caught.value) for name in {"size", "seed", "timestep", "order"} - {hint, hint[:4]})


def test_an_order_out_of_range_is_the_recipe_s() -> None:
    with pytest.raises(GocaError, match="order -1: give 0 or more") as caught:
        planned(replace(GOCA, order=-1))
    assert caught.value.hint == "recipe"


def test_a_recipe_may_take_several_passes() -> None:
    eight = Recipe(flip=True, seeds=4)
    made = planned(eight)
    assert (made.seeds, made.flip, made.num_passes) == ((0, 1, 2, 3), True, 8)
    assert (made.origin["seeds"], made.origin["flip"]) == ("recipe", "recipe")
    assert planned(eight, seed=3).seeds == (3, 4, 5, 6)
    assert planned(eight, seeds=2).seeds == (0, 1)
    assert planned(Recipe(seeds=2), flip=True).num_passes == 4


def test_heads_are_weighed_by_what_varies_where_they_take_from_the_text_alone() -> None:
    blocks = (*SD15.refine, SD15.reference)
    crossing, joint = (plan(GOCA_REFINED, SD15, blocks, "a model", Options(), joint=joint) for joint in (False, True))
    assert (crossing.heads, crossing.origin["heads"]) == (heads.varying_share, "recipe")
    assert (joint.heads, joint.origin["heads"]) == (heads.output_share, "settings")


def test_a_recipe_s_grid_of_tokens_goes_before_that_of_the_settings() -> None:
    coarse = replace(SD15, grid=23, token_cells=2)
    assert [planned(GOCA, settings).common_grid((31, 47)) for settings in (SD15, coarse)] == [(52, 79), (19, 28)]
    made = planned(replace(GOCA, grid="tokens"), coarse)
    assert (made.grid, made.origin["grid"]) == ("tokens", "recipe")
    assert made.common_grid((31, 47)) == (16, 24)
    assert planned(replace(GOCA, grid="tokens")).common_grid((31, 47)) == (31, 47)
    assert (planned(GOCA, coarse).grid, planned(GOCA, coarse).origin["grid"]) == (23, "settings")
    assert made.to_json()["grid"] == "tokens"


@pytest.mark.parametrize("grid", [0, 64, "token", None])
def test_a_grid_that_no_recipe_has_is_refused(grid: Any) -> None:
    with pytest.raises(GocaError, match="neither"):
        Recipe(grid=grid)


@pytest.mark.parametrize("seeds", [0, -3, 1001, 1.5, True, "2"])
def test_a_recipe_of_no_number_of_seeds_is_refused(seeds: Any) -> None:
    with pytest.raises(GocaError, match="seeds") as caught:
        Recipe(seeds=seeds)
    assert caught.value.hint == "seeds"


def test_a_recipe_cannot_take_more_seeds_than_there_are() -> None:
    with pytest.raises(GocaError, match="seed 9223372036854775807 is out of range"):
        planned(Recipe(seeds=4), seed=2**63 - 1)


# ---- recipes


def test_the_recipes_are_values_of_each_other() -> None:
    assert replace(GOCA, heads="mean", layers="mean", rescale=("blur", "minmax")) == VANILLA
    assert replace(GOCA, layers="balanced-agreement") == GOCA_BALANCED
    changed = {"heads": "from_model", "grid": "from_model", "refit": "never", "edges": False}
    assert replace(GOCA_REFINED, **changed) == GOCA_BALANCED  # type: ignore[arg-type]
    assert replace(GOCA_QUALITY, flip=False) == GOCA_REFINED
    assert replace(GOCA_RELEASED, reference_channels="all", square=False) == GOCA
    assert repr(GOCA_RELEASED) == "Recipe(reference_channels='first', square=True)"
    assert (
        repr(replace(GOCA, affinity="distinct", refit="gaussians")) == "Recipe(affinity='distinct', refit='gaussians')"
    )
    compound = replace(GOCA, rescale=("share", "blur", "minmax", "times-raw", "blur", "minmax"))
    assert replace(GOCA_COMPOUND, background=GOCA.background) == compound
    assert isinstance(GOCA_COMPOUND.background, Background)
    assert GOCA_COMPOUND.background.rule is background.maximum
    assert Recipe() == GOCA
    assert {GOCA, VANILLA, GOCA_BALANCED, GOCA_COMPOUND, DAAM, FTTM} < set(RECIPES.values())
    assert {DIFFSEGMENTER, CONCEPT_ATTENTION} < set(RECIPES.values())
    assert len(set(RECIPES.values())) == len(RECIPES)


def test_daam_averages_and_cuts_at_a_share_of_the_peak() -> None:
    made = planned(DAAM)
    assert (made.heads, made.layers) == (heads.mean_heads, layers.mean_layers)
    assert (made.rescale, made.cross, made.refine, made.order) == ((rescale.peak,), (), (), 0)
    assert made.background == Background(background.constant, 0.4)


def test_hand_picked_layers_are_refused_by_name_where_a_model_lacks_them() -> None:
    with pytest.raises(GocaError) as error:
        plan(FTTM, SD15, (*SD15.refine, SD15.reference), "a model", Options())
    refused(error, "fttm", FTTM.refine[-1], "a model")


def test_the_published_recipe() -> None:
    assert GOCA.layers == layers.agreement
    assert GOCA.rescale == (rescale.share, rescale.blur, rescale.minmax)
    assert {GOCA.heads, GOCA.reference, GOCA.refine, GOCA.order, GOCA.timestep} == {"from_model"}
    assert GOCA.background == "auto"


def test_names_and_the_rules_themselves_are_one() -> None:
    named = Recipe(heads="cosine", layers="iou-like", rescale=("share", "peak"))
    assert named == Recipe(heads.cosine, layers.iou_like, (rescale.share, rescale.peak))


def test_a_recipe_stays_as_it_is() -> None:
    with pytest.raises(FrozenInstanceError):
        GOCA.order = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "known"),
    [
        ("heads", "loudest", HEADS),
        ("layers", "deepest", LAYERS),
        ("rescale", ("share", "sharpen"), STEPS),
        ("maps", "fog", MAPS),
        ("affinity", "polite", AFFINITIES),
        ("refit", "tailor", REFITS),
        ("reference_channels", "odd", CHANNELS),
    ],
)
def test_unknown_rules_list_what_there_is(field: str, value: Any, known: dict[str, Any]) -> None:
    with pytest.raises(GocaError) as error:
        replace(GOCA, **{field: value})
    refused(error, value if isinstance(value, str) else value[-1], ", ".join(known))


def test_recipes_by_name() -> None:
    assert recipe_named("goca") is GOCA
    assert recipe_named("Vanilla") is VANILLA
    assert recipe_named("goca_balanced") is GOCA_BALANCED
    for name, recipe in RECIPES.items():
        assert recipe_named(name) is recipe
        assert planned(recipe).recipe == name
    with pytest.raises(GocaError) as error:
        recipe_named("chocolate")
    refused(error, '"chocolate"', ", ".join(RECIPES))


# ---- plans


def test_what_the_recipe_leaves_open_comes_from_the_settings() -> None:
    made = planned()
    assert made.heads == heads.output_share
    assert (made.reference, made.refine) == (SD15.reference, SD15.refine)
    assert (made.order, made.timestep, made.size, made.grid) == (2, (100,), 512, 64)
    assert (made.layers, made.rescale, made.background) == (GOCA.layers, GOCA.rescale, "auto")
    assert made.background_classes == SD15.background_classes
    assert (made.model, made.settings) == ("a model", SD15.origin)
    assert (made.seeds, made.flip, made.window, made.refine_edges) == ((0,), False, False, False)
    assert made.maps == concepts.attention
    assert (made.captions, made.notes) == ((), ())
    assert made.origin == {
        "heads": "settings",
        "reference": "settings",
        "refine": "settings",
        "order": "settings",
        "timestep": "settings",
        "size": "settings",
        "grid": "settings",
        "layers": "recipe",
        "rescale": "recipe",
        "cross": "settings",
        "background": "recipe",
        "maps": "recipe",
        "keys": "recipe",
        "evidence": "recipe",
        "floor": "recipe",
        "affinity": "recipe",
        "refit": "recipe",
        "reference_channels": "recipe",
        "square": "recipe",
        "seeds": "default",
        "flip": "default",
        "window": "default",
        "refine_edges": "default",
    }


def test_what_the_recipe_says_goes_before_the_settings() -> None:
    block = SD15.refine[1]
    recipe = Recipe(heads="cosine", reference=block, refine=(block,), order=0, timestep=7)
    made = planned(recipe)
    assert made.heads == heads.cosine
    assert (made.reference, made.refine, made.order, made.timestep) == (block, (block,), 0, (7,))
    assert {made.origin[name] for name in ("heads", "reference", "refine", "order", "timestep")} == {"recipe"}
    assert made.recipe == "custom"


def test_what_the_user_says_goes_before_both() -> None:
    made = planned(Recipe(timestep=7), timestep=(100, 50), size=96, seed=3, seeds=2, flip=True, refine_edges=True)
    assert (made.timestep, made.size, made.seeds, made.flip, made.refine_edges) == ((100, 50), 96, (3, 4), True, True)
    assert {name for name, origin in made.origin.items() if origin == "user"} == {
        "timestep",
        "size",
        "seeds",
        "flip",
        "refine_edges",
    }
    assert made.num_passes == 2 * 2 * 2
    # Zero is a timestep like any other, not "unset".
    assert planned(timestep=0).timestep == (0,)
    assert planned(timestep=0).origin["timestep"] == "user"
    assert [planned(**{name: True}).origin[name] for name in ("flip", "window", "refine_edges")] == ["user"] * 3
    assert planned(seed=3).origin["seeds"] == "user"


def test_a_plan_says_in_one_line_what_it_is() -> None:
    assert repr(planned(VANILLA, size=96)) == "Plan(vanilla on a model, 96 px, timestep (100,))"
    assert repr(planned(seeds=3, flip=True)) == "Plan(goca on a model, 512 px, timestep (100,), 6 passes)"


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": -64}, {"seeds": 0}], ids=str)
def test_counts_below_1_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(GocaError) as error:
        planned(**wrong)
    refused(error, *(str(value) for value in wrong.values()))


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(reference="up_blocks.9"),
        Recipe(refine=(SD15.reference, "up_blocks.9")),
        Recipe(refine=("up_blocks.9", SD15.reference)),
        Recipe(cross=("up_blocks.9",)),
    ],
    ids=["reference", "last", "first", "cross"],
)
def test_a_recipe_of_a_block_that_the_model_lacks(recipe: Recipe) -> None:
    with pytest.raises(GocaError) as error:
        planned(recipe)
    refused(error, "custom", "up_blocks.9", "a model")


def test_settings_of_a_block_that_the_model_lacks() -> None:
    with pytest.raises(GocaError) as error:
        plan(VANILLA, SD15, SD15.refine, "a model", Options())
    refused(error, "vanilla", SD15.reference, "a model")


def test_versions_are_those_installed() -> None:
    names = ("goca", "torch", "diffusers", "transformers")
    assert planned().versions == {name: version(name) for name in names}
    # A wheel of an index of builds has its build in the name, "2.13.0+cpu"; of the package index it has none.
    assert planned().versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


# ---- provenance


@pytest.mark.parametrize("settings", CHECKPOINTS, ids=lambda settings: settings.name)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_plan_as_json_is_plain_and_complete(recipe: Recipe, settings: CheckpointSettings) -> None:
    made = replace(planned(recipe, settings, timestep=(100, 50)), captions=("cat, sky",), notes=("a note",))
    plain = made.to_json()
    assert set(plain) == {item.name for item in fields(Plan)}
    # No tuple that would come back as a list, no key that would come back as a string.
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert HEADS[plain["heads"]] == made.heads
    assert LAYERS[plain["layers"]] == made.layers
    assert MAPS[plain["maps"]] == made.maps
    assert AFFINITIES[plain["affinity"]] == made.affinity
    assert REFITS[plain["refit"]] == made.refit
    assert CHANNELS[plain["reference_channels"]] == made.reference_channels
    assert plain["refine_edges"] is (recipe in (GOCA_REFINED, GOCA_QUALITY))
    assert tuple(STEPS[step] for step in plain["rescale"]) == made.rescale
    assert plain["refine"] == list(made.refine)
    assert plain["timestep"] == [100, 50]
    assert plain["captions"] == ["cat, sky"]
    assert plain["notes"] == ["a note"]
    assert plain["origin"]["timestep"] == "user"
    assert set(plain["versions"]) == {"goca", "torch", "diffusers", "transformers"}


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_settled_background_as_json(name: str) -> None:
    settled = replace(planned(), background=Background(BACKGROUNDS[name], 0.25))
    assert settled.to_json()["background"] == {"rule": name, "threshold": 0.25}
    assert planned().to_json()["background"] == "auto"


def loudest(*arguments: Any) -> Any:
    raise NotImplementedError


def test_a_rule_of_the_users_own_is_written_by_its_name() -> None:
    plain = planned(replace(GOCA, rescale=("share", loudest))).to_json()
    assert plain["rescale"] == ["share", "loudest"]
    assert plain["recipe"] == "custom"


# ---- the authors' settings (method.md's table), block by block

UP2, UP3, DOWN0, UP1, DOWN1 = "up_blocks.2", "up_blocks.3", "down_blocks.0", "up_blocks.1", "down_blocks.1"
TABLE = {
    "SD15": (
        SD15,
        512,
        f"{UP2}.attentions.1.transformer_blocks.0",
        {
            f"{UP3}.attentions.0.transformer_blocks.0",
            f"{UP3}.attentions.1.transformer_blocks.0",
            f"{DOWN0}.attentions.1.transformer_blocks.0",
        },
    ),
    "SDXL": (
        SDXL,
        1024,
        f"{UP1}.attentions.0.transformer_blocks.0",
        {
            f"{UP1}.attentions.0.transformer_blocks.0",
            f"{UP1}.attentions.0.transformer_blocks.1",
            f"{UP1}.attentions.1.transformer_blocks.0",
            f"{UP1}.attentions.1.transformer_blocks.1",
            f"{UP1}.attentions.2.transformer_blocks.0",
            f"{DOWN1}.attentions.0.transformer_blocks.0",
            f"{DOWN1}.attentions.0.transformer_blocks.1",
        },
    ),
}


@pytest.mark.parametrize(("settings", "size", "reference", "refine"), TABLE.values(), ids=TABLE)
def test_the_authors_settings(settings: CheckpointSettings, size: int, reference: str, refine: set[str]) -> None:
    assert (settings.size, settings.timestep, settings.order, settings.grid) == (size, 100, 2, 64)
    assert HEADS[settings.heads] == heads.output_share
    assert settings.reference == reference
    assert set(settings.refine) == refine
    assert len(settings.refine) == len(refine)
    assert settings.nouns == ()


def test_reported_scores() -> None:
    reported = {
        "SD15": {"VOC": 60.7, "Context": 40.4, "COCO-Object": 39.2, "Cityscapes": 16.1, "ADE20K": 22.0},
        "SDXL": {"VOC": 65.6, "Context": 42.3, "COCO-Object": 44.3, "Cityscapes": 21.2, "ADE20K": 23.2},
    }
    for settings, name in ((SD15, "SD15"), (SDXL, "SDXL")):
        published = {score.dataset: score.miou for score in settings.scores if "reported" in score.source}
        assert published == reported[name]
    assert [(score.dataset, score.miou) for score in SD15.scores if "rerun" in score.source] == [("VOC", 54.97)]
    # Nobody has reported any of these.
    assert SD21.scores == ()


# ---- recognising a checkpoint


class Config(dict[str, Any]):
    """A denoiser's configuration, read like diffusers' own: by key and by attribute."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Denoiser:
    """What is read of a denoiser: its configuration, and what hangs on its up path."""

    def __init__(self, **config: Any) -> None:
        self.config = Config(config)
        self.up_blocks = [Level(0), Level(3), Level(2)]
        self.config.setdefault("patch_size", 2)


class Attention:
    def __init__(self) -> None:
        self.transformer_blocks = [object()]


class Level:
    def __init__(self, attentions: int) -> None:
        if attentions:
            self.attentions = [Attention() for _ in range(attentions)]


@pytest.mark.parametrize(("family", "settings"), KNOWN, ids=[settings.name for _, settings in KNOWN])
@pytest.mark.parametrize("plain", [tuple, list], ids=["tuples", "lists"])
def test_a_checkpoint_is_recognised_by_its_layout(family: Family, settings: CheckpointSettings, plain: Any) -> None:
    # A configuration read from a file has lists.
    layout = {key: plain(value) if isinstance(value, tuple) else value for key, value in settings.layout.items()}
    blocks = {settings.reference, *settings.refine}
    denoiser = Denoiser(**{"sample_size": 48, **layout})
    # The size is the denoiser's own: Stable Diffusion 2.1 comes at 512 and at 768 px. SD's UNet attends to every cell.
    cells = 1 if settings.name.startswith("Stable Diffusion") and "XL" not in settings.name else 2
    expected = replace(settings, size=family.image_size(denoiser, 8), token_cells=cells)
    assert settings_for(denoiser, family, 8, blocks) == expected
    # A distilled one of the same layout, which lacks a block, goes by the family's rule.
    for missing in blocks:
        assert family.block_rule.description in settings_for(denoiser, family, 8, blocks - {missing}).origin


def test_layouts_tell_the_checkpoints_apart() -> None:
    layouts = [tuple(sorted(settings.layout.items())) for settings in CHECKPOINTS]
    assert len(set(layouts)) == len(layouts)


def test_an_unlisted_checkpoint_goes_by_the_familys_rule() -> None:
    found = settings_for(Denoiser(sample_size=32, block_out_channels=[8, 16], cross_attention_dim=32), UNET, 4, ())
    # The middle one of three on the second finest level with attention, and all of the finest.
    assert found.reference == "up_blocks.1.attentions.1.transformer_blocks.0"
    assert found.refine == tuple(f"up_blocks.2.attentions.{place}.transformer_blocks.0" for place in (0, 1))
    assert (found.size, found.timestep, found.order, found.grid) == (128, 100, 2, 64)
    assert UNET.block_rule.description in found.origin
    assert (found.scores, found.nouns) == ((), ())
