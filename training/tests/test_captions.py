"""Captions name all of a scene's nouns; the tokenizer knows every word of them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer, T5Tokenizer

from training.captions import caption, noun_list, sentence, words
from training.nouns import NAMES, NOUN
from training.scenes import Content
from training.tokenizer import POSITIONS, SPLIT, T5_FOLDER, learn_merges

BUSY = Content(("butterfly", "airplane", "butterfly"), "grass", "sky")
PLAIN = Content(("fish",), "water", None)


@pytest.fixture(scope="module")
def tokenizer(work: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(work / "tokenizer")


def tokens(tokenizer: CLIPTokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids[1:-1])


def test_noun_list_is_a_permutation() -> None:
    rng = np.random.default_rng(0)
    lists = {noun_list(BUSY, rng) for _ in range(50)}
    assert {tuple(sorted(text.split(", "))) for text in lists} == {("airplane", "butterfly", "grass", "sky")}
    assert len(lists) > 10


def test_sentences_count_and_name_everything() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = sentence(BUSY, rng)
        assert all(part in text for part in ("two butterflies", "an airplane", "grass", "sky")), text
    assert sentence(PLAIN, rng).endswith(("a fish on the water", "a fish in the water"))


def test_share_of_sentences_and_synonyms() -> None:
    rng = np.random.default_rng(0)
    texts = [caption(PLAIN, rng) for _ in range(2000)]
    assert np.mean([", " not in text for text in texts]) == pytest.approx(0.4, abs=0.03)
    said = noun_list(Content(("cat",), "snow", None), rng, synonyms=1.0)
    assert set(said.split(", ")) <= {*NOUN["cat"].synonyms, *NOUN["snow"].synonyms}


def test_every_word_is_one_token_except_the_split_ones(tokenizer: CLIPTokenizer) -> None:
    for word in set(words()):
        first, second = SPLIT.get(word, ("", word))
        assert tokens(tokenizer, word) == [*([first] if first else []), second + "</w>"]
    assert sorted(set(NAMES) & set(SPLIT)) == ["airplane", "butterfly", "mushroom"]


def test_captions_fit_and_other_words_fall_to_bytes(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(0)
    longest = max(len(tokenizer(caption(BUSY, rng, synonyms=0.5)).input_ids) for _ in range(200))
    assert longest < 30
    assert tokenizer.model_max_length == POSITIONS
    assert tokenizer.decode(tokenizer("Zébra").input_ids[1:-1]).strip() == "zébra"
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3


def test_merges_by_hand() -> None:
    """In "ab" three times and "abc" twice, (a, b) is the most frequent pair, then (ab, c)."""
    assert learn_merges(Counter({("a", "b"): 3, ("a", "b", "c"): 2})) == [("a", "b"), ("ab", "c")]


def test_t5_has_the_same_words_and_spells_others(work: Path) -> None:
    tokenizer = T5Tokenizer.from_pretrained(work / T5_FOLDER)
    for word in set(words()) - set(",.-"):
        first, second = SPLIT.get(word, ("", ""))
        pieces = ["▁" + first, second] if first else ["▁" + word]
        assert tokenizer.tokenize(word) == pieces
    assert tokenizer.tokenize("cat, grass") == ["▁cat", ",", "▁grass"]
    assert tokenizer.decode(tokenizer("Zebra-4").input_ids, skip_special_tokens=True) == "Zebra-4"
    assert tokenizer("").input_ids == [tokenizer.eos_token_id]
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (0, 512)
