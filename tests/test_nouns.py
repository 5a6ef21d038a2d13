"""From answers to captions to requests: the parser, the policies, and that the requests can be made."""

import time
from dataclasses import replace
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from goca import GocaError, Segmenter
from goca.evaluation.choices import ODD_SYNONYMS
from goca.evaluation.datasets.names import published_classes
from goca.evaluation.evaluator import request_for
from goca.evaluation.protocol import paper_policy
from goca.request import prompts_of, request_nouns
from goca.tagging.answers import LONGEST_CAPTION, caption_in, key, parse, write
from goca.tagging.caption_nouns import HONEST, CaptionedRequest, Policy, captioned
from goca.text.nouns import Category, Noun, parse_nouns
from goca.text.spelling import STOP
from goca.text.token_spans import find_noun_tokens
from goca.text.tokens import Tokens

CITYSCAPES = paper_policy("cityscapes")
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
        ("1. cat\n2. (person, hat)\n 12. a dog", (("cat",), ("person", "hat"), ("dog",))),
        ("1) cat\n2) dog", (("cat",), ("dog",))),
        ("- 1) **Cat**\n- 2) **Dog**", (("cat",), ("dog",))),
        ('["Cat", "dog house"]', (("cat",), ("dog house",))),
        ("cat \u2022 dog | sky", (("cat",), ("dog",), ("sky",))),
        ("**cat**, __dog__, `cow`, «sky»", (("cat",), ("dog",), ("cow",), ("sky",))),
        ("Nouns: cat, dog", (("cat",), ("dog",))),
        ("**Nouns:** (cat, tail), dog", (("cat", "tail"), ("dog",))),
        ("Here is the list of nouns:\n\ncat", (("cat",),)),
        # Numbers and colons that belong to a name.
        (
            "7up, 4.5 inch phone, 3d printer, boeing 747, 2 cats, 747, 16:9 screen",
            tuple(
                (noun,)
                for noun in ("7up", "4.5 inch phone", "3d printer", "boeing 747", "2 cats", "747", "16:9 screen")
            ),
        ),
        # Commas and parentheses of other scripts.
        ("cat\u3001dog\uff0cbird\uff08wing\uff09", (("cat",), ("dog",), ("bird",), ("wing",))),
    ],
)
def test_parsing(caption: str, groups: tuple[tuple[str, ...], ...]) -> None:
    assert parse(caption) == groups


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("Cat, (dog, tail).\n", "Cat, (dog, tail)."),
        ('{"nouns": ["(person, hat)", "grass"]}', "(person, hat), grass"),
        ('Here you are:\n```json\n{"nouns": ["cat"]}\n```\nAnything else?', "cat"),
        ('["cat", "dog"]', "cat, dog"),
        ("```\ncat, dog\n```", "cat, dog"),
        # Thoughts, in every markup; a template may hold their beginning back, and a limit their end.
        ("<think>a cow\n</think>\ncat", "cat"),
        ("<seed:think>a cow</seed:think>cat", "cat"),
        ("<reasoning>a cow</reasoning>cat", "cat"),
        ("\u25c1think\u25b7a cow\u25c1/think\u25b7cat", "cat"),
        ("<|channel|>analysis<|message|>a cow<|end|><|start|>assistant<|channel|>final<|message|>cat", "cat"),
        ('a cow, {"nouns": ["cow"]}</think>{"nouns": ["cat"]}', "cat"),
        ("<think>a cow, a do", ""),
        ("[THINK]a cow[/THINK]cat", "cat"),
        ("a cow[/THINK]cat", "cat"),
        ("<|START_THINKING|>a cow<|END_THINKING|><|START_RESPONSE|>cat<|END_RESPONSE|>", "cat"),
        ("<|begin_of_thought|>a cow<|end_of_thought|><|begin_of_solution|>cat<|end_of_solution|>", "cat"),
        ("<|channel|>analysis<|message|>a cow", ""),
        ("analysisWe need a cow.assistantfinalcat", "cat"),
        ("<unused94>thought\na cow<unused95>cat", "cat"),
        ("<think>a <think> tag, a cow</think>cat", "cat"),
        ("&lt;think&gt;a cow&lt;/think&gt;cat", "cat"),
        ("\uff1cthink\uff1ea cow\uff1c/think\uff1ecat", "cat"),
        ("\u3010\u601d\u8003\u3011a cow\u3010/\u601d\u8003\u3011cat", "cat"),
        ('<details type="reasoning">a cow</details>cat', "cat"),
        ("<whatever>a cow</whatever>cat", "cat"),
        ("Thinking...\na cow\n...done thinking.\ncat", "cat"),
        ("**Thinking:** a cow, a horse\n\n**Answer:** cat", "cat"),
        ("Reasoning: a cow\na horse\n\ncat", "cat"),
        ("```thinking\na cow\n```\ncat", "cat"),
        ("I see a cow, a horse and a dog.\ncat, sky", "cat, sky"),
        ('{"reasoning": ["a cow"], "nouns": ["cat"]}', "cat"),
        # Other markup, and what is behind the end of the turn.
        ("cat, sky<|im_end|>\n<|im_start|>user\na cow", "cat, sky"),
        ("<s>cat, sky</s>", "cat, sky"),
        ("<ref>cat</ref><box>(12,34),(56,78)</box>", "cat"),
        ("cat<loc_12>, sky<loc_34>", "cat, , sky,"),
        ("\\boxed{cat, sky}", "cat, sky}"),
        ("# Nouns\n- cat\n* **sky**", "- cat, * **sky**"),
        ("cat\x1b[31m, \u202esky\x00", "cat, sky"),
        ("<answer>cat, sky</answer>", "cat, sky"),
        # JSON that is cut off, not quite JSON, or of another form.
        ('{"nouns": ["cat", "sk', "cat"),
        ("{'nouns': ['cat', 'sky']}", "cat, sky"),
        ('{"nouns": "cat, sky"}', "cat, sky"),
        ('{"nouns": [["person", "hat"], {"label": "cat"}, null, 7]}', "(person, hat), cat"),
        ('{"foreground": ["cat"], "background": ["sky"]}', "cat, sky"),
        ('{"nouns": ["I cannot identify people"]}', ""),
        ('{"error": "no image"}', ""),
        # Around a list, and nouns that are told to be absent.
        ("Sure! Here is the list: cat, sky", "Here is the list: cat, sky"),
        ("Of course.\n\n1. Cat\n2. Sky\n\nLet me know if you need more!", "Cat, Sky"),
        ("- **Cat**: asleep\n- Sky - blue", "**Cat**, Sky"),
        ("- Foreground: cat, dog\n- Background: sky", "- Foreground: cat, dog, - Background: sky"),
        ("cat (on the left), no people, sky", "cat (),, sky"),
        ("trash can, no parking sign", "trash can, no parking sign"),
        ("<|begin_of_box|>cat, grass<|end_of_box|>", "cat, grass"),
        # No list at all.
        ("I'm sorry, but I can't help with identifying people in images.", ""),
        ("Sorry, that is not possible.", ""),
        ("I cannot help", ""),
        ("As an AI language model, I can't see images", ""),
        ("Unable to identify any objects", ""),
        ("There are no people, cars", ""),
        ("There are no cows in this image.", ""),
        ("The image shows a cow, a horse", ""),
        ("Lo siento, no puedo ayudar", ""),
        ("\u62b1\u6b49\uff0c\u6211\u65e0\u6cd5\u8bc6\u522b", ""),
        ("None", ""),
        ("n/a", ""),
        ("Error: could not load the image", ""),
        ("Is it a cow?", ""),
        ('{"nouns": []}', ""),
        ('{"nouns": 7}', ""),
        ("cat, " * LONGEST_CAPTION, ""),
        # Half of a surrogate pair cannot be written to a file.
        ("cat\ud800", "cat\ufffd"),
    ],
)
def test_the_caption_in_an_answer(answer: str, caption: str) -> None:
    assert parse(caption_in(answer)) == parse(caption)
    assert bool(caption_in(answer)) == bool(caption)


def test_words_that_the_model_was_told_to_use_count_however_they_read() -> None:
    assert caption_in("who is there, do not enter", ["Who is there", "do not enter"]) == "who is there, do not enter"
    assert caption_in("who is there, do not enter") == ""


@pytest.mark.parametrize("file", ["voc", "context", "coco", "cityscapes", "ade20k"])
def test_no_published_class_is_taken_for_a_sentence(file: str) -> None:
    for entry in published_classes(file):
        for name in (entry.name, *entry.synonyms):
            assert parse(caption_in(f"{name}, sky, cat")) == parse(f"{name}, sky, cat")


WRAPPERS = (
    "{}",
    "<think>cow{}",
    "<think>cow</think>{}",
    "cow</think>{}",
    '{{"nouns": ["{}"]}}',
    "```\n{}\n```",
    "Sure! {}",
)
NOISE = st.one_of(
    st.text(max_size=40), st.sampled_from(["<|end|>", "[", "{", "<a>", "</think>", "```", "(", "1. ", "I "])
)


@pytest.mark.slow
@settings(max_examples=2000)
@given(st.sampled_from(WRAPPERS), st.lists(st.sampled_from(["cat", "(hat, sky)", "dog"]), max_size=9), st.lists(NOISE))
def test_any_answer_gives_a_bounded_list_or_nothing(wrapper: str, nouns: list[str], noise: list[str]) -> None:
    caption = caption_in(wrapper.format(", ".join([*nouns, *noise])))
    caption.encode()
    assert caption == "" or parse(caption)
    assert len(caption) <= LONGEST_CAPTION
    assert caption_in(wrapper.format(", ".join(nouns))) == "" or {
        noun for group in parse(caption_in(wrapper.format(", ".join(nouns)))) for noun in group
    } <= {"cat", "hat", "sky", "dog"}


@pytest.mark.parametrize(
    "piece", ["<a>", "<think>", "[", "[a", "cat ", "a, ", "{", "<", "Thinking:", "\n", "answer:\n"]
)
def test_a_megabyte_of_anything_takes_seconds_at_most(piece: str) -> None:
    start = time.process_time()
    assert caption_in(piece * (2**20 // len(piece))) == ""
    assert caption_in(piece * (2 * LONGEST_CAPTION // len(piece))) == ""
    assert time.process_time() - start < 5


def test_captions_of_thousands_of_nouns_are_refused_at_once() -> None:
    with pytest.raises(GocaError, match=r"1,000 nouns, more than 500"):
        captioned(", ".join(f"n{number}" for number in range(1000)), VOC)
    with pytest.raises(GocaError, match=r"14,000,000 characters is not a list"):
        captioned("a noun, " * 1_750_000, VOC)


@pytest.mark.parametrize(
    "name", [" cat", "cat\n", "\ufeffcat", "c\u00adat", "\x1b[31mcat\x1b[0m", "cat\x00", "\u202ecat"]
)
def test_names_are_cleaned(name: str, bundled: Segmenter) -> None:
    assert parse_nouns({name: [" tom \t cat"]}, [f"{name}  tail\r\n"]) == (
        (Noun("cat", ("cat", "tom cat")),),
        (Noun("cat tail", ("cat tail",)),),
    )
    for names in ([name, "cat"], {name: [], "cat": []}, {"dog": [name], "cat": []}):
        with pytest.raises(GocaError, match='"cat" is named twice'):
            parse_nouns(names)
    image = Image.new("RGB", (64, 64))
    assert bundled(image, [name, "grass"]).classes == ("cat", "grass")
    assert bundled(image, {name: ["dog"], "grass": []}).classes == ("cat", "grass")


def test_a_name_that_cannot_be_written_down_gets_a_replacement() -> None:
    ((noun,), _) = parse_nouns(["caf\udce9"])
    assert noun.name == "caf\ufffd"


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
    return Tokens(caption, tuple((index, index + 1) for index in range(len(caption))), (False,) * len(caption))


@given(CAPTIONS, st.sets(st.sampled_from([category.name for category in VOC])))
@pytest.mark.parametrize("policy", [HONEST, paper_policy("voc"), replace(CITYSCAPES, synonyms=ODD_SYNONYMS)])
def test_every_noun_of_a_request_has_columns_of_its_own(policy: Policy, caption: str, truth: set[str]) -> None:
    request = captioned(caption + ", jets, (bike, tyre), dog", VOC, policy, truth)
    if not request.classes:
        return
    segmentation_request = request_for(request, "photo.jpg")
    wanted, others = parse_nouns(segmentation_request.classes, segmentation_request.background_classes)
    spans = find_noun_tokens(
        request.caption, [by_characters(normalize("NFC", request.caption))], wanted, others, named=True
    )
    columns = [column for noun in spans.nouns for column in noun]
    silent = {index for match in STOP.finditer(request.caption) for index in range(*match.span())}
    assert sorted(columns) == [index for index in range(len(request.caption)) if index not in silent]


def test_honest() -> None:
    request = captioned("Sky, MEN, tvs, jet, buses, dog.", VOC)
    assert request.classes == {"person": ("men",), "tvmonitor": ("tvs",), "aeroplane": ("jet",), "bus": ("buses",)}
    assert request.background_classes == ("sky", "dog")
    assert request.caption == "sky, men, tvs, jet, buses, dog"
    # Ground truth is not looked at, and words inside other nouns do not count.
    assert captioned("sky, bus stop", VOC, truth={"bus", "person"}) == CaptionedRequest(
        {}, ("sky", "bus stop"), "sky, bus stop"
    )
    assert captioned("man, woman, man", VOC).classes == {"person": ("man", "woman")}


def test_names_come_before_synonyms_and_words_before_their_plurals() -> None:
    sets = (Category("glass", ("cup",)), Category("cup"), Category("glasses"))
    assert captioned("cup, glasses, glass, cups", sets).classes == {
        "cup": ("cup", "cups"),
        "glasses": ("glasses",),
        "glass": ("glass",),
    }


def test_parts_of_one_object() -> None:
    # One class: the whole parenthesis is it. Two: they stand alone, and what becomes of the rest is the policy's.
    caption = "(clothes, man, hat), (leaf, tree), (bike, basket, bus)"
    honest = captioned(caption, VOC)
    assert honest.classes == {"person": ("clothes", "man", "hat"), "bicycle": ("bike",), "bus": ("bus",)}
    assert honest.background_classes == ("leaf", "tree", "basket")
    paper_request = captioned(caption, VOC, CITYSCAPES, truth={"person", "bicycle", "bus"})
    assert paper_request.classes == honest.classes
    assert paper_request.background_classes == ("leaf", "tree")
    assert paper_request.caption == "clothes, man, hat, leaf, tree, bike, bus"
    # Two words for one class are one class.
    assert captioned("(man, woman, hat)", VOC).classes == {"person": ("man", "woman", "hat")}
    # A class that is not true does not count: then the other has the parenthesis.
    assert captioned("(bike, basket, bus)", VOC, CITYSCAPES, {"bus"}).classes == {"bus": ("bike", "basket", "bus")}


def test_the_paper_takes_classes_from_the_ground_truth() -> None:
    request = captioned("sky, man, jet", VOC, paper_policy("coco-object"), truth={"person", "bus"})
    assert request == CaptionedRequest({"person": ("man",)}, ("sky", "jet", "background"), "sky, man, jet, background")
    request = captioned("sky, man, jet", VOC, paper_policy("voc"), truth={"person", "bus", "bicycle"})
    assert request.classes == {"person": ("man",), "bicycle": ("bicycle",), "bus": ("bus",)}
    assert request.caption == "sky, man, jet, bicycle, bus, background"
    assert request.notes == ("from the ground truth: bicycle, bus",)


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
    request = captioned("sky, background" if suffix else "sky", VOC, paper_policy(dataset), truth={"bus"})
    # The suffix is not said twice.
    assert request.background_classes == (("sky", "background") if suffix else ("sky",))
    assert request.classes == ({"bus": ("bus",)} if complete else {})


def test_the_switch_for_odd_synonyms() -> None:
    caption, truth = "skyline, woodpecker", {"aeroplane", "person"}
    assert captioned(caption, VOC, CITYSCAPES, truth).classes == {}
    odd = captioned(caption, VOC, replace(CITYSCAPES, synonyms=ODD_SYNONYMS), truth)
    assert odd.classes == {"aeroplane": ("skyline",), "person": ("woodpecker",)}
    # A data set without such a category is not given one.
    policy = replace(paper_policy("ade20k"), synonyms=ODD_SYNONYMS)
    assert captioned(caption, VOC[:1], policy, truth).classes == {"aeroplane": ("skyline",)}


def test_a_lone_noun_gets_support() -> None:
    request = captioned("jets", VOC, background_classes=("background", "aeroplane", "jets", "sky"))
    assert request.classes == {"aeroplane": ("jets",)}
    assert request.background_classes == ("background", "sky")
    assert request.caption == "jets, background, sky"
    assert "background, sky added" in request.notes[0]
    assert captioned("jets, bus", VOC, background_classes=("background",)).background_classes == ()


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(GocaError, match="voc, context"):
        paper_policy("scenes")
    for name in ("door, double", "wall (brick)", "the"):
        with pytest.raises(GocaError, match="cannot be in a list"):
            write([(name,)])
    assert write([("Wall-brick",), ("man", "hat")]) == "Wall-brick, (man, hat)"


def test_a_request_is_about_the_captions_own_words(bundled: Segmenter) -> None:
    request = captioned(
        "snow, (cats, mushrooms), road", (Category("dog"), Category("cat", ("kitten",)), Category("Road"))
    )
    segmentation_request = request_for(request, Image.new("RGB", (64, 64)))
    nouns = request_nouns(segmentation_request, bundled.plan, bundled.backbone)
    (prompt,), _, _ = prompts_of(segmentation_request, nouns, bundled.plan, bundled.backbone.session())
    assert prompt.caption == "snow, cats, mushrooms, road"
    tokens = bundled.backbone.pipeline.tokenizer(prompt.caption, return_offsets_mapping=True)["offset_mapping"]
    words_of = [[prompt.caption[slice(*tokens[column])] for column in noun] for noun in prompt.nouns]
    assert words_of == [["cats", "mush", "rooms"], ["road"], ["snow"]]
    ((_, result),) = bundled.stream([segmentation_request])
    assert result.classes == ("cat", "Road")


def test_the_end_of_a_list() -> None:
    """ "A, b and c": two nouns where they are classes, one where they are one class or none."""
    classes = (Category("lamp"), Category("sky"), Category("salt and pepper"))
    assert captioned("wall, lamp and the sky", classes).classes == {"lamp": ("lamp",), "sky": ("sky",)}
    assert captioned("wall, lamp and dog", classes).background_classes == ("wall", "dog")
    assert captioned("lamp, sky and lamp", classes).caption == "lamp, sky"
    assert captioned("salt and pepper, bread and butter", classes).classes == {"salt and pepper": ("salt and pepper",)}
    assert captioned("salt and pepper, bread and butter", classes).background_classes == ("bread and butter",)
