"""From nouns to token indices: which tokens of the caption stand for which noun.

Nouns are found by character spans in the text that the tokenizer really got, so templates, lower-casing and
multi-token words need no special case. A token index is a position in the sequence that the denoiser attends to.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from goca.errors import GocaError
from goca.text.nouns import Noun
from goca.text.spelling import STOP, WORD, forms, found_in, plain
from goca.text.tokens import Tokens

Indices = tuple[int, ...]
"""Token indices, in increasing order."""
TextKeys = Mapping[str, tuple[Float[Tensor, "_head _token _dim"], Float[Tensor, "_head _token _dim"]]]
"""{block: (keys, values) of a text's tokens in its cross-attention}."""

MAX_QUOTED = 60
"""Most characters of a text in a message."""


@dataclass(frozen=True)
class NounTokens:
    """The token indices of a caption's nouns, in the order of the request. prompt: all but special tokens.

    side_keys: if the nouns are not in the caption but additional keys, those of each of their words in turn; the
    indices then count these keys.
    """

    caption: str
    classes: tuple[Indices, ...]
    background_classes: tuple[Indices, ...]
    prompt: Indices
    side_keys: tuple[TextKeys, ...] = field(default=(), repr=False, compare=False)

    @property
    def nouns(self) -> tuple[Indices, ...]:
        """The indices of classes, then of background classes."""
        return self.classes + self.background_classes

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of tokens of each noun."""
        return tuple(map(len, self.nouns))

    @property
    def content(self) -> Indices:
        """The indices of all nouns together, without special tokens, stop words and punctuation."""
        return tuple(sorted({index for indices in self.nouns for index in indices}))


def find_noun_tokens(
    caption: str, texts: Sequence[Tokens], classes: Sequence[Noun], background_classes: Sequence[Noun], named: bool
) -> NounTokens:
    """Find the nouns' token indices.

    A noun owns every occurrence of its words, singular and plural; inside a longer noun ("light" in
    "traffic light") the longer one owns it.

    Args:
        caption: The prompt.
        texts: Each tokenizer's tokens of it; if one cuts a noun off, another may still have it.
        classes, background_classes: The nouns.
        named: Whether the user wrote the caption, so that a noun may be missing from it.

    Raises:
        GocaError: A noun is not in the caption, is cut off, or consists of stop words.
    """
    nouns = (*classes, *background_classes)
    indices: list[set[int]] = [set() for _ in nouns]
    errors: dict[int, GocaError] = {}
    for tokens in _longest_first(texts):
        spans = _spans(tokens.text, nouns)
        for number, noun in enumerate(nouns):
            try:
                indices[number].update(_indices(tokens, noun, spans[number], named))
            except GocaError as error:
                errors.setdefault(number, error)
    for number, reason in errors.items():
        if not indices[number]:
            raise reason
    of_nouns = [tuple(sorted(noun_indices)) for noun_indices in indices]
    prompt = {tokens.start + index for tokens in texts for index, special in enumerate(tokens.special) if not special}
    count = len(classes)
    return NounTokens(caption, tuple(of_nouns[:count]), tuple(of_nouns[count:]), tuple(sorted(prompt)))


class Word(NamedTuple):
    """A word of a prompt, in lower case, and which of its occurrences, from 1; as text "cat", and "cat#2"."""

    name: str
    occurrence: int = 1

    def __str__(self) -> str:
        return self.name if self.occurrence == 1 else f"{self.name}#{self.occurrence}"


def prompt_words(texts: Sequence[Tokens]) -> dict[Word, Indices]:
    """The words of a prompt, in its order, with their token indices; no stop words, and none that is cut off."""
    indices: dict[Word, set[int]] = {}
    for tokens in texts:
        counts = Counter[str]()
        for match in WORD.finditer(tokens.text):
            name = plain(match[0])
            counts[name] += 1
            word_indices = indices.setdefault(Word(name, counts[name]), set())
            with suppress(GocaError):  # another text may still have it
                word_indices.update(_indices(tokens, Noun(name, (name,)), [match.span()], named=True))
    return {word: tuple(sorted(word_indices)) for word, word_indices in indices.items() if word_indices}


def token_indices_of(name: str, texts: Sequence[Tokens]) -> list[Indices]:
    """The token indices of each occurrence of a name in a prompt, as written or else in singular or plural.

    An occurrence beyond the tokenizer's limit has none, and neither have stop words.
    """
    noun = Noun(name, (name,))
    indices: list[set[int]] = []
    for tokens in texts:
        exact = list(found_in(plain(name), tokens.text))
        for number, span in enumerate(exact or sorted(_spans(tokens.text, [noun])[0])):
            if number == len(indices):
                indices.append(set())
            with suppress(GocaError):  # another text may still have it
                indices[number].update(_indices(tokens, noun, [span], named=True))
    return [tuple(sorted(place_indices)) for place_indices in indices]


def why_absent(words: Sequence[str], texts: Sequence[Tokens], prompt: str, unread: Mapping[str, str]) -> str | None:
    """Why a name that occurs nevertheless has no token index, and what to do; None if it does not occur.

    Args:
        words: The name, and its synonyms.
        texts: Each tokenizer's tokens of the prompt.
        prompt: The prompt.
        unread: {argument of the pipeline: its text} for texts whose tokens are not attended to.
    """
    for word in words:
        for tokens in _longest_first(texts):
            if spans := _spans(tokens.text, [Noun(word, (word,))])[0]:
                try:
                    _indices(tokens, Noun(word, (word,)), spans, named=True)
                except GocaError as error:
                    return str(error)
    for word in words:
        for argument, text in unread.items():
            if says(text, word):
                negative = argument.startswith("negative")
                why = "whose tokens the model does not attend to"
                if negative:
                    why = 'which only trace(pipe, keep="negative") reads'
                return f'"{shortened(word)}" occurs only in {argument}, {why}'
    for word in words:
        if texts and says(prompt, word) and prompt not in unread.values():
            count = max(len(tokens.offsets) for tokens in texts)
            return f'"{shortened(word)}" is beyond the first {count} tokens of the prompt: shorten what is before it'
    return None


def says(text: str, name: str) -> bool:
    """Whether a text contains a name, in singular or plural."""
    return any(True for form in forms(name) for _ in found_in(form, text))


def shortened(text: str) -> str:
    """A text for messages: on one line, and cut if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_QUOTED else line[: MAX_QUOTED - 3] + "..."


def _longest_first(texts: Sequence[Tokens]) -> list[Tokens]:
    """The texts, the one with the highest limit first, which messages name."""
    return sorted(texts, key=lambda tokens: -len(tokens.offsets))


def _spans(text: str, nouns: Sequence[Noun]) -> dict[int, list[tuple[int, int]]]:
    """Character spans of each noun in the text, the longest names first to choose."""
    patterns = [(form, number) for number, noun in enumerate(nouns) for word in noun.words for form in forms(word)]
    # Exact names come before inflected ones of the same length, so that "glass" and "glasses" keep their own.
    exact = {(plain(word), number) for number, noun in enumerate(nouns) for word in noun.words}
    patterns.sort(key=lambda entry: (-len(entry[0]), entry not in exact))
    spans: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(nouns))}
    taken: list[tuple[int, int]] = []
    for form, number in patterns:
        for start, end in found_in(form, text):
            if all(end <= taken_start or start >= taken_end for taken_start, taken_end in taken):
                taken.append((start, end))
                spans[number].append((start, end))
    return spans


def _indices(tokens: Tokens, noun: Noun, spans: Sequence[tuple[int, int]], named: bool) -> set[int]:
    """The content tokens under a noun's spans; spans that the tokenizer cut off do not count."""
    name = shortened(noun.name)
    if not spans:
        is_said = not named or any(says(tokens.text, word) for word in noun.words)
        remedy = "another name takes its place; leave one out or use a synonym" if is_said else "add it to the caption"
        adverb = "on its own " if is_said else ""
        raise GocaError(f'"{name}" is not {adverb}in the caption "{shortened(tokens.text)}": {remedy}')
    silent = {position for match in STOP.finditer(tokens.text) for position in range(*match.span())}
    indices: set[int] = set()
    complete = False
    for start, end in spans:
        inside = [
            index
            for index, ((first, past), special) in enumerate(zip(tokens.offsets, tokens.special, strict=True))
            if not special and first < end and past > start
        ]
        if inside and max(tokens.offsets[index][1] for index in inside) >= end:
            complete = True
            indices.update(
                index for index in inside if not silent.issuperset(_overlap(tokens.offsets[index], (start, end)))
            )
    if not complete:
        raise GocaError(
            f'"{name}" is cut off by the tokenizer\'s limit of {len(tokens.offsets)} tokens: shorten the caption'
        )
    if not indices:
        raise GocaError(f'"{name}" consists of stop words: use a noun')
    return {tokens.start + index for index in indices}


def _overlap(first: tuple[int, int], second: tuple[int, int]) -> range:
    return range(max(first[0], second[0]), min(first[1], second[1]))
