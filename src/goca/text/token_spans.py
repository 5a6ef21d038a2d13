"""From class names to token columns: which tokens of the caption stand for which noun.

Names are found in the text that the tokenizer really got, by character offsets, so templates, lower-casing and
multi-token words need no special case. Columns are positions in the tokenizer's output.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from goca.errors import GocaError
from goca.text.spelling import STOP, WORD, composed, forms, found_in, plain
from goca.text.tokens import Tokens

Classes = Sequence[str] | Mapping[str, Sequence[str]]
"""Class names, or {class: [synonyms]}."""


@dataclass(frozen=True)
class Noun:
    """Something the user named: its name in the result, and the words that stand for it in a caption."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class NounTokens:
    """The token columns of a caption's nouns.

    classes, background_classes: the columns of each noun, in the order asked for. content: the columns of all nouns together; no
    special token, stop word or punctuation is in any of them. prompt: every column but those of special tokens.
    """

    caption: str
    classes: tuple[tuple[int, ...], ...]
    background_classes: tuple[tuple[int, ...], ...]
    prompt: tuple[int, ...]

    @property
    def nouns(self) -> tuple[tuple[int, ...], ...]:
        return self.classes + self.background_classes

    @property
    def content(self) -> tuple[int, ...]:
        return tuple(sorted({column for columns in self.nouns for column in columns}))


def nouns(classes: Classes, background_classes: Sequence[str] = ()) -> tuple[tuple[Noun, ...], tuple[Noun, ...]]:
    """Check what the user asked for; (classes, background classes).

    Raises GocaError for an empty list, an empty or repeated name, a comma inside a name, anything but a list of names.
    """
    for given in (classes, background_classes):
        if not _is_list(given):
            raise GocaError(
                f'classes and background_classes are lists of names: write ["cat", "grass"] instead of {given!r}'
            )
    synonyms = classes.items() if isinstance(classes, Mapping) else [(name, ()) for name in classes]
    for name, more in synonyms:
        if not _is_list(more):
            listed = [more] if isinstance(more, str) else []
            raise GocaError(f'the synonyms of "{name}" are a list: write {json.dumps(listed)} instead of {more!r}')
    wanted = tuple(Noun(name, (name, *more)) for name, more in synonyms)
    background_nouns = tuple(Noun(name, (name,)) for name in background_classes)
    if not wanted:
        raise GocaError('no classes: name at least one thing to look for, such as "cat"')
    seen: set[str] = set()
    for noun in wanted + background_nouns:
        for word in noun.words:
            if not isinstance(word, str) or not any(map(str.isalnum, word)):
                raise GocaError(
                    f"{word!r} is no name: every class, synonym and background class needs a letter or digit"
                )
            if "," in word:
                raise GocaError(f'"{word}" contains a comma: name each class by itself')
            key = plain(word)
            if key in seen:
                raise GocaError(f'"{word}" is named twice: every class, synonym and background class may appear once')
            seen.add(key)
    return wanted, background_nouns


def _is_list(given: object) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, str)


def caption_of(named: Sequence[Noun]) -> str:
    """The caption that lists the nouns: "cat, grass, sky"."""
    return ", ".join(composed(word).replace("_", " ").strip() for noun in named for word in noun.words)


def words(
    caption: str, texts: Sequence[Tokens], classes: Sequence[Noun], background_classes: Sequence[Noun], named: bool
) -> NounTokens:
    """Find the nouns' token columns. `named`: the user wrote the caption, so a noun may be missing from it.

    texts: one for each tokenizer that is attended to; where one cuts a noun off, another may still have it.

    A noun owns every occurrence of its words, in singular and plural; inside a longer noun ("light" in "traffic light")
    the longer one owns it. Raises GocaError for a noun that is not in the caption, that stands behind the tokenizer's
    limit, or that consists of stop words.
    """
    found: list[set[int]] = [set() for _ in (*classes, *background_classes)]
    missing: dict[int, GocaError] = {}
    for tokens in texts:
        spans = _spans(tokens.text, (*classes, *background_classes))
        for index, noun in enumerate((*classes, *background_classes)):
            try:
                found[index].update(tokens.start + place for place in _columns(tokens, noun, spans[index], named))
            except GocaError as error:
                missing.setdefault(index, error)
    for index, reason in missing.items():
        if not found[index]:
            raise reason
    columns = [tuple(sorted(some)) for some in found]
    prompt = {tokens.start + place for tokens in texts for place, special in enumerate(tokens.special) if not special}
    return NounTokens(caption, tuple(columns[: len(classes)]), tuple(columns[len(classes) :]), tuple(sorted(prompt)))


class Word(NamedTuple):
    """A word of a prompt, in lower case, and which of its occurrences, from 1; as text "cat", and "cat#2"."""

    name: str
    occurrence: int = 1

    def __str__(self) -> str:
        return self.name if self.occurrence == 1 else f"{self.name}#{self.occurrence}"


def spoken(texts: Sequence[Tokens]) -> dict[Word, tuple[int, ...]]:
    """The words of a prompt that tokens stand for, in its order, with their columns; no stop words."""
    found: dict[Word, set[int]] = {}
    for tokens in texts:
        said = Counter[str]()
        for match in WORD.finditer(tokens.text):
            name = plain(match[0])
            said[name] += 1
            columns = found.setdefault(Word(name, said[name]), set())
            with suppress(GocaError):  # another text may still have it
                one = _columns(tokens, Noun(name, (name,)), [match.span()], named=True)
                columns.update(tokens.start + place for place in one)
    return {word: tuple(sorted(columns)) for word, columns in found.items() if columns}


def occurrences(name: str, texts: Sequence[Tokens]) -> list[tuple[int, ...]]:
    """The token columns of each place where a prompt says the name as it is written, or else in another number.

    () for a place behind the tokenizer's limit, and for stop words.
    """
    noun = Noun(name, (name,))
    found: list[set[int]] = []
    for tokens in texts:
        exact = list(found_in(plain(name), tokens.text))
        for number, span in enumerate(exact or sorted(_spans(tokens.text, [noun])[0])):
            if number == len(found):
                found.append(set())
            with suppress(GocaError):  # another text may still have it
                found[number].update(tokens.start + place for place in _columns(tokens, noun, [span], named=True))
    return [tuple(sorted(columns)) for columns in found]


def split(wanted: Sequence[Noun], fits: Callable[[Sequence[Noun]], bool]) -> list[tuple[Noun, ...]]:
    """The classes in as few groups, of sizes as equal, as fit one prompt each.

    Raises GocaError naming a class that is too long for a prompt of its own.
    """
    for count in range(1, len(wanted) + 1):
        edges = [round(i * len(wanted) / count) for i in range(count + 1)]
        groups = [tuple(wanted[a:b]) for a, b in pairwise(edges)]
        if all(fits(group) for group in groups):
            return groups
    name = next(noun.name for noun in wanted if not fits((noun,)))
    raise GocaError(f'the prompt for "{name}" is longer than the tokenizer\'s limit: shorten it or name fewer others')


def vocabulary(named: Sequence[Noun], known: Sequence[str]) -> tuple[Noun, ...]:
    """The nouns in the words of a model that knows only `known`: "Cats" becomes "cat"; unknown synonyms are left out.

    Raises GocaError for a noun without a known word, and for two nouns that share one.
    """
    entries = {form: word for word in known for form in forms(word)} | {plain(word): word for word in known}
    out: list[Noun] = []
    owners: dict[str, str] = {}
    for noun in named:
        kept = tuple(dict.fromkeys(entries[plain(word)] for word in noun.words if plain(word) in entries))
        if not kept:
            raise GocaError(
                f'the bundled model does not know "{noun.name}"; it knows {", ".join(known)}. For anything else load a '
                "real checkpoint, a diffusers folder or a Hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5",
                hint="model",
            )
        for word in kept:
            if word in owners:
                raise GocaError(
                    f'"{owners[word]}" and "{noun.name}" are both "{word}" to the bundled model: name one of them'
                )
            owners[word] = noun.name
        out.append(Noun(noun.name, kept))
    return tuple(out)


def _spans(text: str, named: Sequence[Noun]) -> dict[int, list[tuple[int, int]]]:
    """Character ranges of each noun in the text, the longest names first to choose."""
    patterns = [(form, index) for index, noun in enumerate(named) for word in noun.words for form in forms(word)]
    # Exact names come before inflected ones of the same length, so that "glass" and "glasses" keep what is theirs.
    exact = {(plain(word), index) for index, noun in enumerate(named) for word in noun.words}
    patterns.sort(key=lambda entry: (-len(entry[0]), entry not in exact))
    spans: dict[int, list[tuple[int, int]]] = {index: [] for index in range(len(named))}
    taken: list[tuple[int, int]] = []
    for form, index in patterns:
        for start, end in found_in(form, text):
            if all(end <= a or start >= b for a, b in taken):
                taken.append((start, end))
                spans[index].append((start, end))
    return spans


def _columns(tokens: Tokens, noun: Noun, spans: Sequence[tuple[int, int]], named: bool) -> tuple[int, ...]:
    """The content tokens under a noun's character ranges; ranges that the tokenizer cut off do not count."""
    if not spans:
        hint = "add it to the caption" if named else "another name has its place; leave one out or use a synonym"
        raise GocaError(f'"{noun.name}" is not in the caption "{tokens.text}": {hint}')
    silent = {place for match in STOP.finditer(tokens.text) for place in range(*match.span())}
    columns: set[int] = set()
    whole = False
    for start, end in spans:
        inside = [
            column
            for column, ((a, b), special) in enumerate(zip(tokens.offsets, tokens.special, strict=True))
            if not special and a < end and b > start
        ]
        if inside and max(tokens.offsets[column][1] for column in inside) >= end:
            whole = True
            columns.update(
                column for column in inside if not silent.issuperset(_overlap(tokens.offsets[column], (start, end)))
            )
    if not whole:
        raise GocaError(
            f'"{noun.name}" stands behind the tokenizer\'s limit of {len(tokens.offsets)} tokens: shorten the caption'
        )
    if not columns:
        raise GocaError(f'"{noun.name}" consists of stop words: name a thing')
    return tuple(sorted(columns))


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> range:
    return range(max(one[0], other[0]), min(one[1], other[1]))
