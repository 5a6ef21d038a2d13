"""Background classes that nobody named: which nouns join the classes, where, and what the result says of it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from goca import GOCA, RECIPES, SegmentationRequest, Segmenter, bundled
from goca.diffusion.backbone import Backbone
from goca.maths.background import Background, none
from goca.plan import Options
from goca.request import prompts_of, request_nouns
from goca.testing.tiny import BUILDERS
from goca.text.background_nouns import BACKGROUND_NOUNS, background_nouns
from goca.text.nouns import Noun, parse_nouns
from training.nouns import STUFF

Make = Callable[..., Image.Image]


@pytest.fixture
def model(bundled: Segmenter) -> Segmenter:
    return bundled


def joined_by(classes: Any, listed: tuple[str, ...] = BACKGROUND_NOUNS) -> list[str]:
    return [noun.name for noun in background_nouns(listed, parse_nouns(classes)[0])]


def found(segmenter: Segmenter, classes: Any, **request: Any) -> tuple[list[str], tuple[str, ...], list[str]]:
    """The captions, the background classes and the notes of a request, without an image."""
    asked = SegmentationRequest("", classes, **request)
    with segmenter.inference():
        nouns = request_nouns(asked, segmenter.plan, segmenter.backbone)
        prompts, added, notes = prompts_of(asked, nouns, segmenter.plan, segmenter.backbone.session())
    assert all(len(tokens.background_classes) == len(added) for tokens in prompts)
    names = tuple(noun.name for noun in added)
    return [tokens.caption for tokens in prompts], names, [*nouns.notes, *notes]


# ---- which nouns


@pytest.mark.parametrize(
    ("classes", "missing"),
    [
        (["cat", "person"], set()),
        (["Background"], {"background"}),
        (["SKY"], {"sky"}),
        (["walls"], {"wall"}),
        (["clouds"], {"sky"}),
        (["grass"], {"grass", "vegetation", "ground"}),
        (["lawn"], {"grass", "vegetation", "ground"}),
        (["soil"], {"ground"}),
        (["Pine_Trees"], {"tree", "vegetation"}),
        (["potted plant"], {"tree", "grass", "vegetation"}),
        (["vegetation"], {"tree", "grass", "vegetation"}),
        ({"green": ["leaves"]}, {"vegetation"}),
        ({"home": [], "way": ["streets"]}, {"building", "road"}),
        # What stands in front says of what kind it is, and is not what is wanted.
        (["water bottle", "wall clock", "snowman"], set()),
        (["tiles"], {"wall", "floor"}),
    ],
    ids=lambda value: str(sorted(value)),
)
def test_what_is_wanted_has_no_rival(classes: Any, missing: set[str]) -> None:
    assert joined_by(classes) == [name for name in BACKGROUND_NOUNS if name not in missing]


@pytest.mark.parametrize("noun", STUFF, ids=lambda noun: noun.name)
def test_no_word_of_the_bundled_stuff_has_a_rival(noun: Any) -> None:
    others = [name for name in bundled.stuff() if name != noun.name]
    for word in (noun.name, noun.plural, noun.name.upper(), *noun.synonyms):
        assert noun.name not in joined_by([word], bundled.stuff()), word
    assert joined_by([noun.name], bundled.stuff()) == others


def test_the_bundled_stuff_is_the_rest_of_its_vocabulary() -> None:
    assert bundled.stuff() == tuple(noun.name for noun in STUFF)
    assert bundled.vocabulary()[-len(STUFF) :] == bundled.stuff()


def test_things_leave_the_bundled_stuff_as_it_is() -> None:
    things = [name for name in bundled.vocabulary() if name not in bundled.stuff()]
    assert joined_by(things, bundled.stuff()) == list(bundled.stuff())


def test_the_stated_nouns_can_stand_in_one_prompt() -> None:
    """None is refused as named twice."""
    _, nouns = parse_nouns(["cat"], BACKGROUND_NOUNS)
    assert nouns == tuple(Noun(name, (name,)) for name in BACKGROUND_NOUNS)


# ---- in a request


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "fttm"])  # which names blocks of SD 1.5
def test_any_number_of_classes_gets_background_classes(recipe: str, image: Make, model: Segmenter) -> None:
    joint = RECIPES[recipe].maps is not GOCA.maps
    backbone = Backbone(BUILDERS["flux"]()) if joint else model.backbone
    segmenter = Segmenter(backbone, recipe, Options(size=64, floor=0.0))  # without a floor all are asked for
    for classes in (["cat"], ["dog", "Cats"]):
        result = segmenter(image(), classes)
        names = segmenter.plan.background_classes
        assert result.plan.background_classes == names
        assert result.plan.captions == (", ".join((*classes, *names)).replace("Cats", caption_word(segmenter)),)
        assert f"background classes added: {', '.join(names)}" in result.plan.notes
        assert result.to_json()["plan"]["background_classes"] == list(names)
        assert result.scores.background is not None
        assert result.scores.grid.shape[0] == len(classes) == len(result.classes)


def caption_word(segmenter: Segmenter) -> str:
    """How "Cats" stands in a caption: a model of few words has it in its own spelling."""
    return "cat" if segmenter.backbone.settings.nouns else "Cats"


@pytest.mark.parametrize("name", BUILDERS)
def test_every_family_is_asked_for_them(name: str) -> None:
    segmenter = Segmenter.from_pipeline(BUILDERS[name](), GOCA, size=64)
    captions, names, notes = found(segmenter, {"Traffic_Light": ["lamp"], "lawn": []})
    assert names == tuple(name for name in BACKGROUND_NOUNS if name not in ("grass", "vegetation", "ground"))
    assert captions == [f"Traffic Light, lamp, lawn, {', '.join(names)}"]
    assert f"background classes added: {', '.join(names)}" in notes


@pytest.mark.parametrize("nothing", [[], ()], ids=str)
def test_an_empty_list_switches_them_off(nothing: Any, model: Segmenter, image: Make) -> None:
    result = model(image(), ["cat", "grass"], nothing)
    assert (result.plan.captions, result.plan.background_classes, result.plan.notes) == (("cat, grass",), (), ())
    assert result.plan.to_json()["background"] == {"rule": "constant", "threshold": 0.5}


def test_a_list_replaces_them(model: Segmenter) -> None:
    assert found(model, ["cat"], background_classes=["sky", "ball"]) == (["cat, sky, ball"], ("sky", "ball"), [])


def test_where_every_pixel_gets_a_class_there_are_none(model: Segmenter) -> None:
    for background in (None, "none"):
        assert found(model, ["cat", "dog"], background=background) == (["cat, dog"], (), [])
    assert found(model, ["cat", "dog"], background=0.3)[1] == bundled.stuff()
    everything = Segmenter(model.backbone, replace(GOCA, background=Background(none)))
    assert found(everything, ["cat", "dog"]) == (["cat, dog"], (), [])


def test_a_caption_of_the_user_s_has_none(model: Segmenter) -> None:
    assert found(model, ["cat"], caption="a cat on the grass") == (
        ["a cat on the grass"],
        (),
        ["a single noun in the prompt: its share of attention is not taken"],
    )


def test_where_all_are_wanted_the_recipe_s_rule_is_as_ever(model: Segmenter, image: Make) -> None:
    result = model(image(), ["cat", *bundled.stuff()])
    assert result.plan.background_classes == ()
    assert result.plan.notes == ()
    assert result.plan.to_json()["background"] == {"rule": "constant", "threshold": 0.5}
    without = model(image(), ["cat", *bundled.stuff()], background_classes=())
    np.testing.assert_array_equal(result.labels, without.labels)


def test_by_default_is_as_if_they_were_listed(model: Segmenter, image: Make) -> None:
    result = model(image(), ["cat", "grass"])
    names = [name for name in bundled.stuff() if name != "grass"]
    listed = model(image(), ["cat", "grass"], background_classes=names)
    np.testing.assert_array_equal(result.labels, listed.labels)
    assert result.plan.background == listed.plan.background
    assert result.plan.background_classes == listed.plan.background_classes
    # The model's own list stays whole for the next image.
    assert model.plan.background_classes == bundled.stuff()


def test_a_class_of_synonyms_leaves_out_all_of_them(model: Segmenter) -> None:
    captions, names, _ = found(model, {"way": ["road", "sand"], "garden": ["tree", "lawn"]})
    assert names == ("water", "sky", "snow", "brick", "wood")
    assert captions == ["road, sand, tree, water, sky, snow, brick, wood"]


# ---- room in the prompt


def test_classes_are_spread_over_prompts_that_each_have_the_list(sd15: Any) -> None:
    segmenter = Segmenter.from_pipeline(sd15, GOCA, size=64)
    captions, names, notes = found(segmenter, [f"thing number {index}" for index in range(9)])
    assert names == BACKGROUND_NOUNS
    assert len(captions) > 1
    assert all(caption.endswith(", ".join(BACKGROUND_NOUNS)) for caption in captions)
    assert notes == [
        f"background classes added: {', '.join(BACKGROUND_NOUNS)}",
        f"9 classes do not fit in one prompt: spread over {len(captions)}",
    ]


@pytest.mark.parametrize("listed", [None, [f"thing {index}" for index in range(40)]], ids=["default", "listed"])
def test_what_finds_no_room_is_left_out_from_the_end(listed: Any, sd15: Any) -> None:
    segmenter = Segmenter.from_pipeline(sd15, GOCA, size=64)
    captions, names, notes = found(segmenter, ["the quick brown fox " * 7, "dog"], background_classes=listed)
    whole = BACKGROUND_NOUNS if listed is None else tuple(listed)
    assert 0 < len(names) < len(whole)
    assert names == whole[: len(names)]
    assert all(caption.endswith(", ".join(names)) for caption in captions)
    assert f"background classes that do not fit in the prompt: {', '.join(whole[len(names) :])}" in notes
    more = [Noun(name, (name,)) for name in (" ".join(["the quick brown fox"] * 7), *whole[: len(names) + 1])]
    assert not segmenter.backbone.fits(more)
