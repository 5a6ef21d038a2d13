"""What the user named: checked, put into a model's own words, listed as a caption, spread over prompts."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from goca.errors import GocaError
from goca.text.clean import one_line
from goca.text.spelling import composed, forms, plain

Classes = Sequence[str] | Mapping[str, Sequence[str]]
"""Class names, or {class: [synonyms]}."""


@dataclass(frozen=True)
class Noun:
    """Something the user named: its name in the result, and the words that stand for it in a caption."""

    name: str
    words: tuple[str, ...]


def parse_nouns(classes: Classes, background_classes: Sequence[str] = ()) -> tuple[tuple[Noun, ...], tuple[Noun, ...]]:
    """What the user named, checked: the nouns of the classes, and those of the background classes, each on one line.

    Raises GocaError where a list is empty or not a list, or a name is empty, repeated or has a comma.
    """
    for names in (classes, background_classes):
        if not _is_list(names):
            raise GocaError(
                f'classes and background_classes are lists of names: write ["cat", "grass"] instead of {names!r}'
            )
    classes, background_classes = cleaned(classes), cleaned(background_classes)
    with_synonyms = classes.items() if isinstance(classes, Mapping) else [(name, ()) for name in classes]
    for name, synonyms in with_synonyms:
        if not _is_list(synonyms):
            listed = [synonyms] if isinstance(synonyms, str) else []
            raise GocaError(f'the synonyms of "{name}" are a list: write {json.dumps(listed)} instead of {synonyms!r}')
    class_nouns = tuple(Noun(name, (name, *synonyms)) for name, synonyms in with_synonyms)
    background_nouns = tuple(Noun(name, (name,)) for name in background_classes)
    if not class_nouns:
        raise GocaError('no classes: name at least one thing to look for, such as "cat"')
    keys: set[str] = set()
    for word in (word for noun in class_nouns + background_nouns for word in noun.words):
        if not isinstance(word, str) or not any(map(str.isalnum, word)):
            raise GocaError(
                f"{word!r} is not a name: every class, synonym and background class needs a letter or digit"
            )
        if "," in word:
            raise GocaError(f'"{word}" contains a comma: name each class by itself')
        if plain(word) in keys:
            raise _twice(word)
        keys.add(plain(word))
    return class_nouns, background_nouns


def cleaned(names: Any) -> Any:
    """Class names, {class: [synonyms]} or background classes on one line each, see `one_line`; what is no name stays.

    Raises GocaError for a class that is then named twice.
    """
    if isinstance(names, Mapping):
        classes = dict[Any, Any]()
        for name, synonyms in names.items():
            if _one_line(name) in classes:
                raise _twice(_one_line(name))
            classes[_one_line(name)] = cleaned(synonyms)
        return classes
    return tuple(map(_one_line, names)) if _is_list(names) else names


def _one_line(name: Any) -> Any:
    return one_line(name) if isinstance(name, str) else name


def _twice(word: str) -> GocaError:
    return GocaError(f'"{word}" is named twice: every class, synonym and background class may appear once')


def _is_list(names: object) -> bool:
    return isinstance(names, Iterable) and not isinstance(names, str)


def caption_of(nouns: Sequence[Noun]) -> str:
    """The caption that lists the nouns: "cat, grass, sky"."""
    return ", ".join(composed(word).replace("_", " ").strip() for noun in nouns for word in noun.words)


def split_over_prompts(nouns: Sequence[Noun], fits: Callable[[Sequence[Noun]], bool]) -> list[tuple[Noun, ...]]:
    """The nouns in as few groups, of sizes as equal, as fit one prompt each. fits: whether one prompt holds them.

    Raises GocaError for a noun that is too long for a prompt of its own.
    """
    for count in range(1, len(nouns) + 1):
        edges = [round(i * len(nouns) / count) for i in range(count + 1)]
        groups = [tuple(nouns[start:end]) for start, end in pairwise(edges)]
        if all(fits(group) for group in groups):
            return groups
    name = next(noun.name for noun in nouns if not fits((noun,)))
    raise GocaError(f'the prompt for "{name}" is longer than the tokenizer\'s limit: shorten it or name fewer others')


def in_vocabulary(nouns: Sequence[Noun], vocabulary: Sequence[str]) -> tuple[Noun, ...]:
    """The nouns in the words of a model that knows only its vocabulary: "Cats" becomes "cat".

    Raises GocaError where a noun has no known word, or two nouns share one.
    """
    entries = {form: word for word in vocabulary for form in forms(word)} | {plain(word): word for word in vocabulary}
    translated: list[Noun] = []
    owners: dict[str, str] = {}
    for noun in nouns:
        words = tuple(dict.fromkeys(entries[plain(word)] for word in noun.words if plain(word) in entries))
        if not words:
            raise GocaError(
                f'the bundled model does not know "{noun.name}"; it knows {", ".join(vocabulary)}. For anything else '
                "load a real checkpoint: a diffusers folder or a Hub id such as "
                "stable-diffusion-v1-5/stable-diffusion-v1-5",
                "model",
            )
        for word in words:
            if word in owners:
                raise GocaError(
                    f'"{owners[word]}" and "{noun.name}" are both "{word}" to the bundled model: name one of them'
                )
            owners[word] = noun.name
        translated.append(Noun(noun.name, words))
    return tuple(translated)
