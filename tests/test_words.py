"""From class names to token columns, with real byte-level CLIP tokenizers: the bundled one, and one trained here."""

import importlib.util
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

import goca.bundled
from goca.errors import GocaError
from goca.text import nouns as module
from goca.text.nouns import Noun, caption_of, in_vocabulary, parse_nouns, split_over_prompts
from goca.text.plurals import plurals, singulars
from goca.text.spelling import forms
from goca.text.token_spans import NounTokens, Word, find_noun_tokens, prompt_words, token_indices_of
from goca.text.tokens import Tokens, tokens_of

STOP = {"a", "an", "the", "and"}
# Every letter ends a word here, for a byte-level vocabulary has end-of-word tokens only for what it saw at an end.
ENDINGS = " ".join("abcdefghijklmnopqrstuvwxyz0123456789,.-'/_:;")
CORPUS = [
    "a cat and an ant saw the banana band, the theme then",
    "traffic light, potted plant, dining table",
    ENDINGS,
] * 20
KNOWN = ("cat", "dog", "bus", "butterfly", "grass", "glass")
properties = settings(max_examples=50, deadline=None)


@cache
def bundled() -> Any:
    return CLIPTokenizer.from_pretrained(goca.bundled.pipeline() / "tokenizer")


@cache
def trained() -> Any:
    return CLIPTokenizer().train_new_from_iterator(CORPUS, vocab_size=400, show_progress=False)


class Asked:
    """The words of a caption, and the text that a noun's columns stand for."""

    def __init__(
        self,
        classes: Any,
        others: Sequence[str] = (),
        caption: str | None = None,
        tokenizer: Callable[[], Any] = bundled,
        limit: int = 1000,
    ) -> None:
        wanted, background = parse_nouns(classes, others)
        self.caption = caption_of((*wanted, *background)) if caption is None else caption
        batch = tokenizer()(self.caption, padding="max_length", truncation=True, max_length=limit, verbose=False)
        self.tokenizer, self.encoding = tokenizer(), batch.encodings[0]
        tokens = tokens_of(self.caption, self.encoding)
        self.words: NounTokens = find_noun_tokens(self.caption, [tokens], wanted, background, named=caption is not None)

    def says(self, columns: Sequence[int]) -> str:
        """What the tokens of these columns decode to, without the gaps between words."""
        return self.tokenizer.decode([self.encoding.ids[column] for column in columns]).replace(" ", "")

    @property
    def all(self) -> list[str]:
        return [self.says(columns) for columns in self.words.nouns]


def refused(error: pytest.ExceptionInfo[GocaError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


# ---- the words of a prompt


def whole(text: str) -> Tokens:
    """A token for every character."""
    return Tokens(text, tuple((i, i + 1) for i in range(len(text))), (False,) * len(text), start=3)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_words_with_accents_in_either_form(form: Any) -> None:
    text = unicodedata.normalize(
        form, "\u0130stanbul caf\xe9 no\xebl, \u0939\u093f\u0928\u094d\u0926\u0940 caf\xe9 cafe"
    )
    found = prompt_words([whole(text)])
    names = ["istanbul", "caf\xe9", "no\xebl", "\u0939\u093f\u0928\u094d\u0926\u0940", "caf\xe9#2", "cafe"]
    assert list(map(str, found)) == names
    first = len(unicodedata.normalize(form, "\u0130stanbul "))
    coffee = unicodedata.normalize(form, "caf\xe9")
    assert found[Word("caf\xe9")] == tuple(range(3 + first, 3 + first + len(coffee)))
    for asked in ("NFC", "NFD"):
        for word, columns in found.items():
            said = token_indices_of(unicodedata.normalize(asked, word.name), [whole(text)])  # type: ignore[arg-type]
            assert said[word.occurrence - 1] == columns
    assert len(token_indices_of("cafe", [whole(text)])) == 1
    assert token_indices_of("\u0130stanbul".lower(), [whole(text)]) == [found[Word("istanbul")]]


def test_a_word_is_found_as_it_is_written_before_it_is_found_in_another_number() -> None:
    text = "a cat and cats"
    places = [(match.start(), match.end()) for match in re.finditer(r"\w+", text)]
    tokens = Tokens(text, tuple(places), (False,) * len(places))
    assert token_indices_of("cat", [tokens]) == [(1,)]
    assert token_indices_of("cats", [tokens]) == [(3,)]
    # Where it is not written so, another number stands for it.
    assert token_indices_of("dog", [Tokens("dogs", ((0, 4),), (False,))]) == [(0,)]


def test_letters_that_composition_replaces_are_found() -> None:
    # A compatibility ideograph, and a Hebrew letter that is always taken apart.
    for text in ("\uf900", "\ufb2a"):
        ((word, columns),) = prompt_words([whole(text)]).items()
        assert columns == (3,)
        assert token_indices_of(word.name, [whole(text)]) == [columns]


# ---- any list of names, any tokenizer


def names(letters: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    """Lists of names of one to three words, stop words among them, no two alike."""
    word = st.text(letters, min_size=1, max_size=7) | st.sampled_from(["and", "the", "An", "light", "traffic"])
    name = st.builds(
        lambda parts, gaps: "".join(gap + part for gap, part in zip(["", *gaps], parts, strict=False)),
        st.lists(word, min_size=1, max_size=3),
        st.lists(st.sampled_from([" ", "-", "_", "  "]), min_size=2, max_size=2),
    )
    return st.lists(name.filter(meaning), min_size=1, max_size=6, unique_by=alike)


def alike(name: str) -> str:
    return " ".join(re.split(r"[ _-]+", lower(name)))


def lower(name: str) -> str:
    """As a tokenizer does it: composed, then letter by letter, so that no letter looks at its neighbours."""
    return "".join(letter.lower() for letter in unicodedata.normalize("NFC", name))


def meaning(name: str) -> str:
    return "".join(part for part in alike(name).split(" ") if part not in STOP)


ascii_names = names(st.sampled_from("abcdefnstxyzABST0179"))
# The letters of all scripts, as composition leaves them: some letters are always taken apart, into marks.
world = st.characters(categories=["Lu", "Ll", "Lo", "Nd"]).filter(
    lambda letter: unicodedata.normalize("NFC", letter).isalnum()
)


def check_list(listed: list[str], cut: int, tokenizer: Callable[[], Any]) -> None:
    cut = min(max(cut, 1), len(listed))
    asked = Asked(listed[:cut], listed[cut:], tokenizer=tokenizer)
    assert len(asked.words.classes) == cut
    assert len(asked.words.background_classes) == len(listed) - cut
    columns = [column for noun in asked.words.nouns for column in noun]
    assert all(asked.words.nouns)
    # Strictly rising: disjoint, and in the order of the caption.
    assert all(a < b for a, b in pairwise(columns))
    assert asked.words.content == tuple(columns)
    assert not any(asked.encoding.special_tokens_mask[column] for column in columns)
    assert asked.all == [meaning(name) for name in listed]


@properties
@given(ascii_names, st.integers(1, 6))
def test_a_list_of_names_with_a_trained_tokenizer(listed: list[str], cut: int) -> None:
    check_list(listed, cut, trained)


@properties
@given(names(world), st.integers(1, 6))
def test_a_list_of_names_in_any_script(listed: list[str], cut: int) -> None:
    check_list(listed, cut, bundled)


@properties
@given(ascii_names, st.data())
def test_a_noun_owns_all_its_repeats_in_a_caption(listed: list[str], data: st.DataObject) -> None:
    repeats = data.draw(st.lists(st.integers(1, 3), min_size=len(listed), max_size=len(listed)))
    order = data.draw(st.permutations([name for name, n in zip(listed, repeats, strict=True) for _ in range(n)]))
    assume("behold" not in {alike(name) for name in listed})
    asked = Asked(listed, caption=f"Behold: {'; '.join(order)}.", tokenizer=trained)
    assert asked.all == [meaning(name) * n for name, n in zip(listed, repeats, strict=True)]
    columns = [column for noun in asked.words.nouns for column in noun]
    assert len(set(columns)) == len(columns)


fillers = st.sampled_from(["jolly", "kiwi (milk)", "The", "!", "...", "and, hop", "#1234"])


@properties
@given(ascii_names, st.data())
def test_the_columns_of_a_noun_lie_inside_its_characters(listed: list[str], data: st.DataObject) -> None:
    extra = data.draw(st.lists(st.sampled_from(listed), max_size=4))
    caption, own = "", {name: set[int]() for name in listed}
    for name in data.draw(st.permutations([*listed, *extra])):
        caption += f"{data.draw(fillers)}; "
        own[name].update(range(len(caption), len(caption) + len(name)))
        caption += f"{name}; "
    asked = Asked(listed, caption=caption, tokenizer=trained)
    for name, columns in zip(listed, asked.words.classes, strict=True):
        for start, end in (asked.encoding.offsets[column] for column in columns):
            assert start < end
            # A tokenizer may hand out the space before a piece with it.
            assert {place for place in range(start, end) if caption[place] != " "} <= own[name]
    special = {column for column, flag in enumerate(asked.encoding.special_tokens_mask) if flag}
    assert special
    assert not special & set(asked.words.content)
    assert set(asked.words.content) <= set(asked.words.prompt)
    assert set(asked.words.prompt) == set(range(len(asked.encoding.ids))) - special


@properties
@given(ascii_names, st.integers(2, 40))
def test_a_noun_that_is_cut_off_is_named_or_nothing_is_cut(listed: list[str], limit: int) -> None:
    whole = Asked(listed, tokenizer=trained).words.classes
    # One place is the end token's. A name may end in a stop word, which no column stands for, and still be cut.
    safe = sum(columns[-1] < limit - 1 for columns in whole)
    try:
        assert Asked(listed, tokenizer=trained, limit=limit).words.classes == whole
    except GocaError as error:
        named = re.match(rf'"(.+)" is cut off by the tokenizer\'s limit of {limit} tokens', str(error))
        assert named
        assert [" ".join(name.split()) for name in listed].index(named[1]) in (safe - 1, safe)
    else:
        assert safe == len(listed)


@properties
@given(st.text("abdefinosxyz", min_size=1, max_size=6), st.sampled_from(["", "y", "o", "man", "us", "is", "ch", "fe"]))
def test_a_word_is_among_the_singulars_of_its_plurals(stem: str, ending: str) -> None:
    word = stem + ending
    assert plurals(word)
    for plural in plurals(word):
        assert word in singulars(plural)
        assert {word, plural} <= forms(word) & forms(plural)


@properties
@given(ascii_names, st.data())
def test_every_form_of_a_name_is_found(listed: list[str], data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(sorted(forms(listed[0]))))
    assert form == " ".join(form.lower().split())
    # "as" might be the plural of "a".
    assume(meaning(form))
    written = data.draw(st.sampled_from([form, form.upper(), form.replace(" ", "-"), form.replace(" ", "_")]))
    asked = Asked(listed[:1], caption=f"jolly {written}; hop", tokenizer=trained)
    assert asked.all == [meaning(form)]


@properties
@given(st.text(st.characters(codec="utf-8"), max_size=12))
def test_any_text_is_a_name_or_is_refused_in_one_line(text: str) -> None:
    try:
        asked = Asked([text, "zebra"])
    except GocaError as error:
        assert "\n" not in str(error).replace(text, "")  # noqa: PT017  either way of ending is right
    else:
        assert asked.all[1] == "zebra"
        assert asked.all[0]


# ---- single cases


@pytest.mark.parametrize(
    ("classes", "caption", "expected"),
    [
        # Several tokens, several words, several times.
        (["cat"], "A photo of a cat on grass", ["cat"]),
        (["umbrella stand"], "an umbrella stand, empty", ["umbrellastand"]),
        (["cat", "dog"], "a cat, a dog and a cat; cat", ["catcatcat", "dog"]),
        (["sky", "cat"], "a cat under the sky", ["sky", "cat"]),
        # Singular and plural, both ways.
        (["butterfly"], "two butterflies and a butterfly", ["butterfliesbutterfly"]),
        (["butterflies"], "a butterfly", ["butterfly"]),
        (["person"], "three people", ["people"]),
        (["people"], "one person", ["person"]),
        (["bus"], "buses", ["buses"]),
        (["buses"], "the bus", ["bus"]),
        (["glass"], "two glasses of water", ["glasses"]),
        (["glasses"], "a glass of water", ["glass"]),
        (["hot dog"], "many hot dogs", ["hotdogs"]),
        # Both named: each keeps what is written exactly like it, whichever comes first.
        (["glass", "glasses"], "glasses beside a glass", ["glass", "glasses"]),
        (["glasses", "glass"], "glasses beside a glass", ["glasses", "glass"]),
        (["person", "people"], "people and a person", ["person", "people"]),
        (["people", "person"], "people and a person", ["people", "person"]),
        # Inside a longer word a name is not meant; inside a longer noun the longer one is.
        (["car"], "a car on a carpet", ["car"]),
        (["carpet", "car"], "a car on a carpet", ["carpet", "car"]),
        (["man", "woman"], "a woman and a man", ["man", "woman"]),
        (["light", "traffic light"], "a light above the traffic light", ["light", "trafficlight"]),
        (["traffic light", "light"], "a light above the traffic lights", ["trafficlights", "light"]),
        (["dog", "hot dog"], "hot dogs for the dog", ["dog", "hotdogs"]),
        (["light"], "a light above the traffic light", ["lightlight"]),
        # Stop words and punctuation inside a noun are not content; other marks are.
        (["bow and arrow"], "the bow and arrow", ["bowarrow"]),
        (["bow and arrow"], "the bow\nand arrow", ["bowarrow"]),
        (["end of the line"], "end of the line", ["endofline"]),
        (["St. Bernard"], "a St. Bernard.", ["stbernard"]),
        (["baby's bottle"], "the baby's bottle", ["baby'sbottle"]),
        (["tv/monitor"], "a tv/monitor, old", ["tv/monitor"]),
        (["vitamin a"], "a vitamin a", ["vitamin"]),
        # Case, underscores, hyphens and spaces do not tell names apart.
        (["CAT"], "a Cat and a cat", ["catcat"]),
        (["t-shirt"], "a t-shirt", ["tshirt"]),
        (["t-shirt"], "a T shirt", ["tshirt"]),
        (["t shirt"], "two t-shirts", ["tshirts"]),
        (["traffic-light"], "the traffic light", ["trafficlight"]),
        (["Traffic_Light"], "the traffic light", ["trafficlight"]),
        (["traffic_light"], "the traffic-light", ["trafficlight"]),
        (["bow and arrow", "car"], "bow_and_arrow, red_car", ["bowarrow", "car"]),
        (["traffic light"], "the traffic \n light", ["trafficlight"]),
        ([" _cat_ "], "a cat.", ["cat"]),
        # Letters outside ASCII.
        (["café"], "the Café", ["café"]),
        (["İstanbul"], "İstanbul by night", ["i\u0307stanbul"]),
        (["ΓΆΤΟΣ"], "μια γάτος", ["γάτος"]),
        (["日本"], "日本, 富士", ["日本"]),
        (["cat 🐱"], "a cat 🐱!", ["cat🐱"]),
    ],
    ids=str,
)
def test_caption(classes: list[str], caption: str, expected: list[str]) -> None:
    assert Asked(classes, caption=caption).all == expected


@pytest.mark.parametrize(
    "name", ["cafe\u0301", "e\u0301tude", "İzmir", "straße", "हिन्दी", "❤️ heart", "x  y", "ice\ncream"]
)
def test_a_name_is_found_in_the_caption_that_lists_it(name: str) -> None:
    asked = Asked([name, "dog"])
    expected = "".join(letter.lower() for letter in unicodedata.normalize("NFC", "".join(name.split())))
    assert asked.all == [expected, "dog"]


def test_synonyms_stand_for_their_class() -> None:
    asked = Asked({"person": ["man", "Women"], "cat": []}, ["tv"])
    assert asked.caption == "person, man, Women, cat, tv"
    assert asked.all == ["personmanwomen", "cat", "tv"]
    # In a caption of the user's own one of them is enough.
    assert Asked({"person": ["man", "woman"]}, caption="the women").all == ["women"]


def test_pieces_that_look_like_stop_words_are_content() -> None:
    asked = Asked(["banana", "ant", "theatre"], tokenizer=trained)
    pieces = {asked.encoding.tokens[column].removesuffix("</w>") for column in asked.words.content}
    # The case is only there if the tokenizer cuts like that.
    assert {"an", "a"} & pieces
    assert asked.all == ["banana", "ant", "theatre"]


def test_a_space_handed_out_with_a_piece() -> None:
    # As byte-level GPT tokenizers cut: "bow", " and", " a", "rrow", ",", " the", " an", "t".
    text = "bow and arrow, the ant"
    ends = [3, 7, 9, 13, 14, 18, 21, 22]
    tokens = Tokens(text, tuple(zip([0, *ends[:-1]], ends, strict=True)), (False,) * 8)
    found = find_noun_tokens(
        text, [tokens], (Noun("bow and arrow", ("bow and arrow",)), Noun("ant", ("ant",))), (), True
    )
    assert found.classes == ((0, 2, 3), (6, 7))


def test_a_lone_space_and_joined_marks_are_no_content() -> None:
    # A space of its own, as T5 has it, and the two last marks as one token.
    text = "U.S.B., dog"
    offsets = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 7), (7, 8), (8, 11))
    found = find_noun_tokens(
        text, [Tokens(text, offsets, (False,) * 8)], (Noun("U.S.B.", ("U.S.B.",)), Noun("dog", ("dog",))), (), False
    )
    assert found.classes == ((0, 2, 4), (7,))


def test_a_special_token_is_no_content_wherever_it_claims_to_stand() -> None:
    # Some tokenizers give a special token the range of the text, or of the word that it follows.
    text = "cat, dog"
    offsets = ((0, 8), (0, 3), (3, 4), (5, 8), (5, 8))
    found = find_noun_tokens(
        text,
        [Tokens(text, offsets, (True, False, False, False, True))],
        (Noun("cat", ("cat",)),),
        (Noun("dog", ("dog",)),),
        False,
    )
    assert found.nouns == ((1,), (3,))


NUMBERS = (
    "cow cows, dog dogs, horse horses, house houses, shoe shoes, vase vases, orange oranges, giraffe "
    "giraffes, tv tvs, bus buses, glass glasses, dress dresses, cactus cactuses, cactus cacti, octopus "
    "octopuses, virus viruses, lens lenses, iris irises, gas gases, box boxes, axe axes, axis axes, bench "
    "benches, couch couches, brush brushes, quiz quizzes, butterfly butterflies, berry berries, cookie "
    "cookies, movie movies, tie ties, pie pies, toy toys, key keys, glove gloves, stove stoves, cave "
    "caves, wave waves, olive olives, sleeve sleeves, valve valves, drive drives, leaf leaves, wolf "
    "wolves, knife knives, shelf shelves, scarf scarves, scarf scarfs, roof roofs, hoof hooves, man men, "
    "woman women, policeman policemen, human humans, child children, person people, person persons, foot "
    "feet, tooth teeth, goose geese, mouse mice, tomato tomatoes, photo photos, hero heroes, piano "
    "pianos, stadium stadiums, aquarium aquariums, wine-glass wine-glasses"
)


@pytest.mark.parametrize("pair", NUMBERS.split(", "))
def test_singular_and_plural_find_each_other(pair: str) -> None:
    one, many = pair.split()
    assert Asked([one], caption=f"two {many}.").all == [many.replace("-", "")]
    assert Asked([many], caption=f"one {one}.").all == [one.replace("-", "")]


@pytest.mark.parametrize("pair", ["cave cafe", "cane can", "cube cub", "grass gras", "bus bush", "axe ox"])
def test_another_word_is_no_plural(pair: str) -> None:
    one, other = pair.split()
    for name, caption in ((one, other), (one + "s", other), (other, one), (other, one + "s")):
        with pytest.raises(GocaError, match="not in the caption"):
            Asked([name], caption=f"{caption}.")


# ---- what cannot be found


def test_a_class_missing_from_the_users_caption_is_named() -> None:
    with pytest.raises(GocaError) as error:
        Asked(["cat", "car"], caption="a cat on a carpet")
    refused(error, '"car"', "not in the caption", "add it")


@pytest.mark.parametrize("name", ["the", "A", "an and", "the-a", "An."])
def test_a_class_of_stop_words_is_refused(name: str) -> None:
    with pytest.raises(GocaError) as error:
        Asked(["cat", name])
    refused(error, f'"{name}"', "stop words")


def test_behind_and_astride_the_tokenizers_limit() -> None:
    listed = ["cat", "umbrella stand", "zebra"]
    whole = Asked(listed)
    length = sum(whole.encoding.attention_mask)
    outcomes = set()
    for limit in range(2, length + 1):
        # One place is the end token's.
        inside = [columns[-1] < limit - 1 for columns in whole.words.classes]
        outcomes.add(tuple(inside))
        if all(inside):
            assert Asked(listed, limit=limit).words.classes == whole.words.classes
            continue
        with pytest.raises(GocaError) as error:
            Asked(listed, limit=limit)
        refused(error, f'"{listed[inside.index(False)]}"', f"limit of {limit} tokens")
    # None of them, then one after the other: every way of being cut was seen.
    assert len(outcomes) == 4


def test_a_repeat_behind_the_limit_does_not_matter() -> None:
    caption = "a cat and then, after many more words, an umbrella, and the cat"
    whole = Asked(["cat"], caption=caption).words.classes[0]
    assert len(whole) == 2
    assert Asked(["cat"], caption=caption, limit=whole[1]).words.classes == (whole[:1],)


# ---- what may be asked for


@pytest.mark.parametrize(
    ("classes", "background_classes", "parts"),
    [
        ([], [], ["no classes"]),
        ({}, ["sky"], ["no classes"]),
        (["cat", ""], [], ["''", "letter or digit"]),
        (["cat", "  "], [], ["letter or digit"]),
        (["_"], [], ["'_'", "letter or digit"]),
        (["cat"], ["-"], ["'-'", "letter or digit"]),
        (["🐱"], [], ["🐱", "letter or digit"]),
        ({"cat": [""]}, [], ["''", "letter or digit"]),
        (["cat", "cat"], [], ['"cat"', "twice"]),
        (["cat", "CAT "], [], ["CAT", "twice"]),
        (["traffic light", "traffic_light"], [], ['"traffic_light"', "twice"]),
        (["traffic light", "Traffic-Light"], [], ['"Traffic-Light"', "twice"]),
        (["cafe\u0301", "café"], [], ["twice"]),
        (["cat"], ["cat"], ['"cat"', "twice"]),
        ({"cat": ["kitty"], "dog": ["Kitty"]}, [], ['"Kitty"', "twice"]),
        (["cat, dog"], [], ['"cat, dog"', "comma"]),
        ({"cat": ["a, b"]}, [], ['"a, b"', "comma"]),
        ("cat, dog", [], ["list"]),
        (["cat"], "sky", ["list"]),
        ({"cat": "kitty"}, [], ['"cat"', "synonyms", '["kitty"]']),
        ({"cat": "pet"}, [], ['"cat"', "synonyms", '["pet"]']),
    ],
    ids=str,
)
def test_refused_lists(classes: Any, background_classes: Any, parts: list[str]) -> None:
    with pytest.raises(GocaError) as error:
        parse_nouns(classes, background_classes)
    refused(error, *parts)


@pytest.mark.parametrize("name", [5, None, b"cat", ["cat"]], ids=str)
def test_what_is_no_string_is_no_name(name: Any) -> None:
    # The module as users have it: here the tests' type checks would speak first.
    spec = importlib.util.spec_from_file_location("goca_words_unchecked", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    unchecked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unchecked)
    for classes, others in ([["cat", name], []], [["cat"], [name]]):
        with pytest.raises(GocaError) as error:
            unchecked.parse_nouns(classes, others)
        refused(error, repr(name), "not a name")


def test_names_stay_as_they_were_written() -> None:
    wanted, others = parse_nouns({"Traffic_Light": ["semaphore"]}, ["Sky"])
    assert wanted == (Noun("Traffic_Light", ("Traffic_Light", "semaphore")),)
    assert others == (Noun("Sky", ("Sky",)),)
    assert caption_of(wanted + others) == "Traffic Light, semaphore, Sky"


# ---- several prompts


def many(count: int) -> list[Noun]:
    return [Noun(f"n{index}", (f"n{index}",)) for index in range(count)]


@properties
@given(st.integers(1, 40), st.integers(1, 12))
def test_split_takes_the_fewest_groups_of_equal_sizes(count: int, most: int) -> None:
    groups = split_over_prompts(many(count), lambda group: len(group) <= most)
    assert [noun for group in groups for noun in group] == many(count)
    sizes = [len(group) for group in groups]
    assert len(sizes) == -(-count // most)
    assert max(sizes) - min(sizes) <= 1


@properties
@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(9, 40))
def test_split_of_names_of_different_lengths(lengths: list[int], limit: int) -> None:
    wanted = many(len(lengths))
    cost = dict(zip(wanted, lengths, strict=True))

    def fits(group: Sequence[Noun]) -> bool:
        return sum(cost[noun] for noun in group) <= limit

    groups = split_over_prompts(wanted, fits)
    assert [noun for group in groups for noun in group] == wanted
    assert all(fits(group) for group in groups)
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert len(groups) >= -(-sum(lengths) // limit)
    assert (len(groups) == 1) == (sum(lengths) <= limit)


def test_a_class_too_long_for_any_prompt_is_named() -> None:
    with pytest.raises(GocaError) as error:
        split_over_prompts(many(5), lambda group: all(noun.name != "n3" for noun in group) and len(group) < 3)
    refused(error, '"n3"', "limit")


# ---- a model that knows few words


def test_vocabulary_finds_the_models_own_words() -> None:
    asked, _ = parse_nouns({"Cats": [], "pet": ["parrot", "dogs", "Dog's"], "Buses": ["butterflies"]})
    assert in_vocabulary(asked, KNOWN) == (
        Noun("Cats", ("cat",)),
        Noun("pet", ("dog",)),
        Noun("Buses", ("bus", "butterfly")),
    )
    assert in_vocabulary(parse_nouns(["GLASSES", "grass"])[0], KNOWN) == (
        Noun("GLASSES", ("glass",)),
        Noun("grass", ("grass",)),
    )
    assert in_vocabulary((), KNOWN) == ()
    # A word that the model knows as it is goes before one that it would be the plural of.
    for known in (("glass", "glasses"), ("glasses", "glass")):
        assert in_vocabulary(parse_nouns(["glasses"])[0], known) == (Noun("glasses", ("glasses",)),)


def test_no_form_of_a_name_is_empty() -> None:
    assert all(forms(name) and "" not in forms(name) for name in ("s", "es", "ies", "i", "men", "a s"))


def test_the_bundled_vocabulary_is_its_own_and_knows_its_plurals() -> None:
    known = goca.bundled.vocabulary()
    assert in_vocabulary(parse_nouns(known)[0], known) == tuple(Noun(word, (word,)) for word in known)
    for name, word in (("Cats", "cat"), ("cows", "cow"), ("buses", "bus"), ("butterflies", "butterfly")):
        assert in_vocabulary(parse_nouns([name])[0], known) == (Noun(name, (word,)),)


def test_vocabulary_names_its_words_for_another() -> None:
    with pytest.raises(GocaError) as error:
        in_vocabulary(parse_nouns({"cat": [], "parrot": ["macaw"]})[0], KNOWN)
    refused(error, '"parrot"', ", ".join(KNOWN), "another checkpoint")


def test_a_slip_of_the_pen_is_told_from_another_word() -> None:
    with pytest.raises(
        GocaError, match=r'not know "pengins" \(did you mean "penguin"\?\), "horse", "zebra"; it knows house'
    ):
        in_vocabulary(parse_nouns(["pengins", "house", "horse", "zebra"])[0], ("house", "penguin"))


def test_two_names_for_one_known_word_are_refused() -> None:
    with pytest.raises(GocaError) as error:
        in_vocabulary(parse_nouns(["cat", "Cats"])[0], KNOWN)
    refused(error, '"cat"', '"Cats"')


def test_two_nouns_of_one_word_in_a_caption_are_refused() -> None:
    # A class and a background class may come to this through a vocabulary.
    text = "cat, cat"
    tokens = tokens_of(text, bundled()(text).encodings[0])
    with pytest.raises(GocaError) as error:
        find_noun_tokens(text, [tokens], (Noun("cat", ("cat",)),), (Noun("Cats", ("cat",)),), named=False)
    refused(error, '"Cats"', "another name")
