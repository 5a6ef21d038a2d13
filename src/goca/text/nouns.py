"""The user's nouns: checked, put into a model's own words, listed as a caption, spread over prompts."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from goca.errors import GocaError
from goca.text.clean import one_line
from goca.text.spelling import STOP, WORD, composed, forms, found_in, plain

Classes = Sequence[str] | Mapping[str, Sequence[str]]
"""Class names, or {class: [synonyms]}."""

_NO_THINGS = """
about above across after around as at behind below beneath beside between by down for from front he her his in inside
into is are it its near next of off on onto or out outside over she some that their them these they this those through
to toward towards under up upon was were which while who with
"""
NO_THINGS = frozenset(_NO_THINGS.split())
"""Words of a sentence that name nothing visible."""

TOO_LITTLE_EVIDENCE = "too little evidence for "
"""How the note begins that names the classes without pixels."""


@dataclass(frozen=True)
class Noun:
    """Something the user named: its name in the result, and the words that stand for it in a caption."""

    name: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Category:
    """A class of a data set or of the user: its name in results, and further words that stand for it in a caption."""

    name: str
    synonyms: tuple[str, ...] = ()


def parse_nouns(
    classes: Classes, background_classes: Sequence[str] | None = None
) -> tuple[tuple[Noun, ...], tuple[Noun, ...]]:
    """The user's checked nouns: those of the classes, and those of the background classes, each on one line.

    Raises GocaError if a list is empty or not a list, or a name is empty, repeated or has a comma.
    """
    background_classes = () if background_classes is None else background_classes
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
            raise GocaError(
                f'the synonyms of "{name}" must be a list: write {json.dumps(listed)} instead of {synonyms!r}'
            )
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
            raise GocaError(f'"{word}" contains a comma: name each class separately')
        if plain(word) in keys:
            raise _twice(word)
        keys.add(plain(word))
    return class_nouns, background_nouns


def check_rivals(background: str | float | None, classes: Sequence[Noun]) -> None:
    """Raise GocaError if a single class would cover the whole image."""
    if isinstance(background, str | None) and background in (None, "none") and len(classes) == 1:
        raise GocaError(
            f'with one class and no background every pixel would be labelled "{classes[0].name}": name another class, '
            'or leave the background at "auto"',
            hint="background",
        )


def check_words(
    classes: Classes,
    background_classes: Sequence[str] | None = None,
    background: str | float | None = "auto",
    caption: str | None = None,
    vocabulary: Sequence[str] = (),
    model: str = "this model",
) -> None:
    """Raise GocaError for a request that is wrong for any model, before one is loaded.

    The arguments are those of `goca.request.SegmentationRequest`; `vocabulary` has all words of `model`, if it knows no
    others.
    """
    nouns, background_nouns = parse_nouns(classes, background_classes)
    check_rivals(background, nouns)
    if vocabulary:
        nouns = in_vocabulary(nouns + background_nouns, vocabulary, model)[: len(nouns)]
    if caption is None:
        return
    if not caption.strip():
        raise GocaError("the caption is empty: write one that names every class, or leave it out", "caption")
    text = composed(caption)
    missing = [
        f'"{noun.name}"'
        for noun in nouns
        if not any(any(found_in(form, text)) for word in noun.words for form in forms(word))
    ]
    if missing:
        are, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        raise GocaError(f'{", ".join(missing)} {are} not in the caption "{caption}": add {them}', "caption")


def cleaned(names: Any) -> Any:
    """Class names, {class: [synonyms]} or background classes, each on one line, see `one_line`; other values stay.

    Raises GocaError if a class then occurs twice.
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
    """The nouns in the fewest groups, of equal sizes, that fit in one prompt each. fits: whether nouns fit in one.

    Raises GocaError for a noun that is too long for its own prompt.
    """
    for count in range(1, len(nouns) + 1):
        edges = [round(i * len(nouns) / count) for i in range(count + 1)]
        groups = [tuple(nouns[start:end]) for start, end in pairwise(edges)]
        if all(fits(group) for group in groups):
            return groups
    name = next(noun.name for noun in nouns if not fits((noun,)))
    raise GocaError(f'the prompt for "{name}" is longer than the tokenizer\'s limit: shorten it or name fewer others')


def in_vocabulary(nouns: Sequence[Noun], vocabulary: Sequence[str], model: str = "this model") -> tuple[Noun, ...]:
    """The nouns in the words of a model with a closed vocabulary: "Cats" becomes "cat". model: its name.

    Raises GocaError, naming them all, if nouns have no known word, or if two nouns share one.
    """
    entries = {form: word for word in vocabulary for form in forms(word)} | {plain(word): word for word in vocabulary}
    translated: list[Noun] = []
    owners: dict[str, str] = {}
    known = [
        tuple(dict.fromkeys(entries[plain(word)] for word in noun.words if plain(word) in entries)) for noun in nouns
    ]
    unknown = [f'"{noun.name}"{_meant(noun, entries)}' for noun, words in zip(nouns, known, strict=True) if not words]
    if unknown:
        raise GocaError(
            f"{model} does not know {', '.join(unknown)}; it knows {', '.join(vocabulary)}. For anything else load "
            "another checkpoint: a diffusers folder or a Hub id such as "
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "model",
        )
    for noun, words in zip(nouns, known, strict=True):
        for word in words:
            if word in owners:
                raise GocaError(f'"{owners[word]}" and "{noun.name}" are both "{word}" to {model}: name one of them')
            owners[word] = noun.name
        translated.append(Noun(noun.name, words))
    return tuple(translated)


def _meant(noun: Noun, entries: Mapping[str, str]) -> str:
    """The question after the name of an unknown noun, if it is nearly a known one. entries: {form: the known word}."""
    # Below the similarity of "horse" to "house", which is 0.8, other words begin.
    alike = [form for word in noun.words for form in get_close_matches(plain(word), entries, 1, cutoff=0.81)]
    return f' (did you mean "{entries[alike[0]]}"?)' if alike else ""


def without_names(note: str) -> str:
    """A result's note as images have it in common: otherwise each set of absent classes would have a line."""
    return f"{TOO_LITTLE_EVIDENCE}some classes: no pixels" if note.startswith(TOO_LITTLE_EVIDENCE) else note


def check_prompt(prompt: str, scale: float | None = None) -> None:
    """Raise GocaError for an empty prompt, or a guidance scale that is not a number from 0."""
    if not prompt.strip():
        raise GocaError('the prompt is empty: describe the image, for instance "cat, grass, sky"')
    if scale is not None and not 0 <= scale < math.inf:
        raise GocaError(f"scale {scale} is not valid: give a number from 0, 1 for no guidance", "scale")


def unknown_words(prompt: str, known: Iterable[str]) -> tuple[str, ...]:
    """The words of a prompt, in lower case, that are neither known, singular or plural, nor words that name nothing."""
    all_known = {form for word in known for form in forms(word)}
    words = dict.fromkeys(plain(match[0]) for match in WORD.finditer(prompt))
    return tuple(
        word
        for word in words
        if not (forms(word) & all_known or word in NO_THINGS or word.isdigit() or STOP.fullmatch(word))
    )
