"""From captions to questions: the parser, the policies, and that the questions can be asked."""

from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from goca import GocaError, Segmenter
from goca.evaluation.caption_nouns import HONEST, Asked, Policy, ask, key, paper, parse, write
from goca.evaluation.datasets.base import Category
from goca.request import find_words
from goca.text.nouns import parse_nouns
from goca.text.spelling import STOP
from goca.text.token_spans import find_noun_tokens
from goca.text.tokens import Tokens

VOC = (
    Category("aeroplane", ("airplane", "jet")),
    Category("bicycle", ("bike",)),
    Category("person", ("man", "woman")),
    Category("tvmonitor", ("tv", "monitor", "traffic light")),
    Category("bus"),
)


@pytest.mark.parametrize(
    ("caption", "groups"),
    [
        ("Cat, Grass, sky.", (("cat",), ("grass",), ("sky",))),
        ("(person, clothes), grass", (("person", "clothes"), ("grass",))),
        # Duplicates go, however they are spelt, and a parenthesis of nothing else with them.
        ("cat, traffic-light, Cat, traffic_light, (cat), dog", (("cat",), ("traffic-light",), ("dog",))),
        ("(cat, dog), (dog, tail)", (("cat", "dog"), ("tail",))),
        # A parenthesis ends at the next one, or with the caption.
        ("(cat, dog", (("cat", "dog"),)),
        ("cat), dog", (("cat",), ("dog",))),
        ("(cat, (dog, tail), leg), sky", (("cat",), ("dog", "tail"), ("leg",), ("sky",))),
        ("person (clothes, hat) grass", (("person",), ("clothes", "hat"), ("grass",))),
        ("()", ()),
        # What models write around nouns.
        (
            '- a cat\n* the "dog";  potted   plant ,, , and an apple',
            (("cat",), ("dog",), ("potted plant",), ("apple",)),
        ),
        ("the, and, -, 7-up, st. bernard", (("7-up",), ("st. bernard",))),
        ("", ()),
        ("cafe\N{COMBINING ACUTE ACCENT}, CAFÉ", (("café",),)),
        # Numbers of a list, in every way that models write them, and counts.
        ("1. cat\n2. dog", (("cat",), ("dog",))),
        ('["Cat", "dog house"]', (("cat",), ("dog house",))),
        ("[person, clothes]", (("person", "clothes"),)),
        ("Foreground: cat, lamp. Background: sky, tree.", (("cat",), ("lamp",), ("sky",), ("tree",))),
        ("1) wall 2) lamp 3) sky", (("wall",), ("lamp",), ("sky",))),
        ("1. wall 2. lamp", (("wall",), ("lamp",))),
        ("<answer>cat, (dog, tail)</answer>", (("cat",), ("dog", "tail"))),
        ("cat \u2022 dog | sky", (("cat",), ("dog",), ("sky",))),
        ("1.cat\n 12. a dog\n3. (person, hat)\n4.", (("cat",), ("dog",), ("person", "hat"))),
        ("1) cat\n2) dog", (("cat",), ("dog",))),
        ("1) cat, 2)dog, (3) sky", (("cat",), ("dog",), ("sky",))),
        ("- 1) **Cat**\n- 2) **Dog**", (("cat",), ("dog",))),
        ("person (2), (cat, 7) dog", (("person",), ("cat", "7"), ("dog",))),
        # Numbers that belong to a name.
        (
            "7up, 4.5 inch phone, 3d printer, boeing 747, 2 cats, 747",
            tuple((noun,) for noun in ("7up", "4.5 inch phone", "3d printer", "boeing 747", "2 cats", "747")),
        ),
        # Bullets, bold type and quotation marks.
        ("- cat\n* dog\n\u2022 cow\n\u2013 bird", (("cat",), ("dog",), ("cow",), ("bird",))),
        ("**cat**, __dog__, `cow`", (("cat",), ("dog",), ("cow",))),
        (
            "\"cat\", 'dog', \u201ccow\u201d, \u2018bird\u2019, «sky»",
            (("cat",), ("dog",), ("cow",), ("bird",), ("sky",)),
        ),
        # What stands before the first noun of a line and ends in a colon.
        ("Nouns: cat, dog", (("cat",), ("dog",))),
        ("**Nouns:** cat, dog", (("cat",), ("dog",))),
        ("Here is the list of nouns:\n\n1. Cat\n2. (person, hat)", (("cat",), ("person", "hat"))),
        ("Foreground: (cat, tail), dog\nBackground: sky", (("cat", "tail"), ("dog",), ("sky",))),
        ("Nouns:(cat, tail), dog", (("cat", "tail"), ("dog",))),
        ("1) poster: cat", (("cat",),)),
        # Colons that belong to a name.
        ("16:9 screen, 10:30, sky, poster: alien", (("16:9 screen",), ("10:30",), ("sky",), ("poster: alien",))),
        # Brackets and commas of other kinds.
        ("[person, clothes], {dog, leash}, sky", (("person", "clothes"), ("dog", "leash"), ("sky",))),
        ("cat\u3001dog\uff1bcow;bird\uff0csky", (("cat",), ("dog",), ("cow",), ("bird",), ("sky",))),
        (
            "nouns\uff1acat\uff08tail\u3001leg\uff09\u3010dog\u3001ear\u3011",
            (("cat",), ("tail", "leg"), ("dog", "ear")),
        ),
    ],
)
def test_parsing(caption: str, groups: tuple[tuple[str, ...], ...]) -> None:
    assert parse(caption) == groups


PIECES = st.sampled_from(
    [
        *("(", ")", ",", " ", ".", "a ", "the", "-", "_", "\n", ";", "'", "cat", "Cats", "glass", "es", "s"),
        *("[", "}", "7", "1.", "2)", ":", ": ", "\uff1a", "\uff0e", "\u3001", "**"),
    ]
)
CAPTIONS = st.one_of(st.text(), st.lists(PIECES, max_size=20).map("".join))


@given(CAPTIONS)
def test_parsing_never_fails_and_round_trips(caption: str) -> None:
    groups = parse(caption)
    assert all(any(map(str.isalnum, noun)) for group in groups for noun in group)
    assert parse(write(groups)) == groups
    every = [key(noun) for group in groups for noun in group]
    assert len(set(every)) == len(every)


def by_characters(caption: str) -> Tokens:
    """A tokenizer whose tokens are characters."""
    return Tokens(caption, tuple((place, place + 1) for place in range(len(caption))), (False,) * len(caption))


@given(CAPTIONS, st.sets(st.sampled_from([one.name for one in VOC])))
@pytest.mark.parametrize("policy", [HONEST, paper("voc"), paper("cityscapes", odd_synonyms=True)])
def test_every_noun_of_a_question_has_columns_of_its_own(policy: Policy, caption: str, truth: set[str]) -> None:
    asked = ask(caption + ", jets, (bike, tyre), dog", VOC, policy, truth)
    if not asked.classes:
        return
    question = asked.question("photo.jpg")
    wanted, others = parse_nouns(question.classes, question.background_classes)
    found = find_noun_tokens(
        asked.caption, [by_characters(normalize("NFC", asked.caption))], wanted, others, named=True
    )
    columns = [column for noun in found.nouns for column in noun]
    silent = {place for match in STOP.finditer(asked.caption) for place in range(*match.span())}
    assert sorted(columns) == [place for place in range(len(asked.caption)) if place not in silent]


def test_honest() -> None:
    asked = ask("Sky, MEN, tvs, jet, buses, dog.", VOC)
    assert asked.classes == {"person": ("men",), "tvmonitor": ("tvs",), "aeroplane": ("jet",), "bus": ("buses",)}
    assert asked.background_classes == ("sky", "dog")
    assert asked.caption == "sky, men, tvs, jet, buses, dog"
    # Ground truth is not looked at, and words inside other nouns do not count.
    assert ask("sky, bus stop", VOC, truth={"bus", "person"}) == Asked({}, ("sky", "bus stop"), "sky, bus stop")
    assert ask("man, woman, man", VOC).classes == {"person": ("man", "woman")}


def test_names_come_before_synonyms_and_words_before_their_plurals() -> None:
    sets = (Category("glass", ("cup",)), Category("cup"), Category("glasses"))
    assert ask("cup, glasses, glass, cups", sets).classes == {
        "cup": ("cup", "cups"),
        "glasses": ("glasses",),
        "glass": ("glass",),
    }


def test_parts_of_one_object() -> None:
    # One class: the whole parenthesis is it. Two: they stand alone, and what becomes of the rest is the policy's.
    caption = "(clothes, man, hat), (leaf, tree), (bike, basket, bus)"
    honest = ask(caption, VOC)
    assert honest.classes == {"person": ("clothes", "man", "hat"), "bicycle": ("bike",), "bus": ("bus",)}
    assert honest.background_classes == ("leaf", "tree", "basket")
    told = ask(caption, VOC, paper("cityscapes"), truth={"person", "bicycle", "bus"})
    assert told.classes == honest.classes
    assert told.background_classes == ("leaf", "tree")
    assert told.caption == "clothes, man, hat, leaf, tree, bike, bus"
    # Two words for one class are one class.
    assert ask("(man, woman, hat)", VOC).classes == {"person": ("man", "woman", "hat")}
    # A class that is not true does not count: then the other has the parenthesis.
    assert ask("(bike, basket, bus)", VOC, paper("cityscapes"), {"bus"}).classes == {"bus": ("bike", "basket", "bus")}


def test_the_paper_takes_classes_from_the_ground_truth() -> None:
    asked = ask("sky, man, jet", VOC, paper("coco-object"), truth={"person", "bus"})
    assert asked == Asked({"person": ("man",)}, ("sky", "jet", "background"), "sky, man, jet, background")
    asked = ask("sky, man, jet", VOC, paper("voc"), truth={"person", "bus", "bicycle"})
    assert asked.classes == {"person": ("man",), "bicycle": ("bicycle",), "bus": ("bus",)}
    assert asked.caption == "sky, man, jet, bicycle, bus, background"
    assert asked.notes == ("from the ground truth: bicycle, bus",)


@pytest.mark.parametrize(
    ("dataset", "suffix", "complete"),
    [
        ("voc", True, True),
        ("context", False, True),
        ("coco-object", True, False),
        ("coco-stuff-171", False, True),
        ("cityscapes", False, False),
        ("ade20k", True, False),
    ],
)
def test_the_papers_data_sets(dataset: str, suffix: bool, complete: bool) -> None:
    asked = ask("sky, background" if suffix else "sky", VOC, paper(dataset), truth={"bus"})
    # The suffix is not said twice.
    assert asked.background_classes == (("sky", "background") if suffix else ("sky",))
    assert asked.classes == ({"bus": ("bus",)} if complete else {})


def test_the_switch_for_odd_synonyms() -> None:
    caption, truth = "skyline, woodpecker", {"aeroplane", "person"}
    assert ask(caption, VOC, paper("cityscapes"), truth).classes == {}
    odd = ask(caption, VOC, paper("cityscapes", odd_synonyms=True), truth)
    assert odd.classes == {"aeroplane": ("skyline",), "person": ("woodpecker",)}
    # A data set without such a category is not given one.
    assert ask(caption, VOC[:1], paper("ade20k", odd_synonyms=True), truth).classes == {"aeroplane": ("skyline",)}


def test_a_lone_noun_gets_support() -> None:
    asked = ask("jets", VOC, background_classes=("background", "aeroplane", "jets", "sky"))
    assert asked.classes == {"aeroplane": ("jets",)}
    assert asked.background_classes == ("background", "sky")
    assert asked.caption == "jets, background, sky"
    assert "background, sky added" in asked.notes[0]
    assert ask("jets, bus", VOC, background_classes=("background",)).background_classes == ()


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(GocaError, match=r'"paper".*"honest"'):
        ask("cat", VOC, paper("voc"))
    with pytest.raises(GocaError, match="voc, context"):
        paper("scenes")
    with pytest.raises(GocaError, match="every pixel is background"):
        ask("cat", VOC).question("photo.jpg")
    for name in ("door, double", "wall (brick)", "the"):
        with pytest.raises(GocaError, match="cannot stand in a list"):
            write([(name,)])
    assert write([("Wall-brick",), ("man", "hat")]) == "Wall-brick, (man, hat)"


def test_a_question_is_answered_about_the_captions_own_words(bundled: Segmenter) -> None:
    asked = ask("snow, (cats, mushrooms), road", (Category("dog"), Category("cat", ("kitten",)), Category("Road")))
    question = asked.question(Image.new("RGB", (64, 64)))
    ((found,), _) = find_words(question, bundled.plan, bundled.backbone, {})
    assert found.caption == "snow, cats, mushrooms, road"
    tokens = bundled.backbone.pipeline.tokenizer(found.caption, return_offsets_mapping=True)["offset_mapping"]
    said = [[found.caption[slice(*tokens[column])] for column in noun] for noun in found.nouns]
    assert said == [["cats", "mush", "rooms"], ["road"], ["snow"]]
    ((_, result),) = bundled.stream([question])
    assert result.classes == ("cat", "Road")


def test_the_end_of_a_list() -> None:
    """ "A, b and c": two nouns where they are classes, one where they are one class or none."""
    classes = (Category("lamp"), Category("sky"), Category("salt and pepper"))
    assert ask("wall, lamp and the sky", classes).classes == {"lamp": ("lamp",), "sky": ("sky",)}
    assert ask("wall, lamp and dog", classes).background_classes == ("wall", "dog")
    assert ask("lamp, sky and lamp", classes).caption == "lamp, sky"
    assert ask("salt and pepper, bread and butter", classes).classes == {"salt and pepper": ("salt and pepper",)}
    assert ask("salt and pepper, bread and butter", classes).background_classes == ("bread and butter",)
