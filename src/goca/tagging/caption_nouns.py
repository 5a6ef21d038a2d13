"""From a tagger's caption to a request: which of its nouns are classes of the data set or the user.

A `Policy` decides what becomes of a noun. No image is read here.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from goca.errors import GocaError
from goca.tagging.answers import MOST_NOUNS, NounGroup, clean, key, parse
from goca.text.nouns import Category
from goca.text.spelling import forms


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The policy for the nouns of a caption.

    Under any policy, a parenthesis that names one class stands for it as a whole, as the tagger says it is one object.

    Attributes:
        name: Name of the preset.
        suffix: Nouns that are appended to every caption, as background classes unless they are classes.
        complete: Whether ground-truth classes that the caption missed are appended.
        true_only: Whether a noun becomes a class only if the class is in the image's ground truth.
        keep_parts: Whether, if a parenthesis names two or more classes, its other nouns are kept as background classes;
            otherwise they are dropped.
        synonyms: Words for categories besides the data set's own; categories that the data set lacks are skipped.
    """

    name: str
    suffix: tuple[str, ...] = ()
    complete: bool = False
    true_only: bool = False
    keep_parts: bool = True
    synonyms: tuple[Category, ...] = ()


HONEST = Policy(name="honest")
"""A noun that names a category is that class, any other is a background class, and nothing comes from ground truth."""


@dataclass(frozen=True)
class CaptionedRequest:
    """A request made from a caption.

    Attributes:
        classes: {category: the caption's words for it}, in the caption's order.
        background_classes: Nouns that are not classes.
        caption: The prompt: every noun of both, in the order of the tagger's caption, and nothing else.
        notes: Changes made by the policy.
    """

    classes: Mapping[str, tuple[str, ...]]
    background_classes: tuple[str, ...]
    caption: str
    notes: tuple[str, ...] = ()


def company(vocabulary: Sequence[str]) -> tuple[str, ...]:
    """Nouns that an evaluation adds to a single noun. vocabulary: all words of a model with a closed vocabulary, or ().

    A segmenter's own background classes are not used, because captions decide what the prompt has.
    """
    return tuple(noun for noun in ("grass", "sky", "road") if noun in vocabulary) or ("background",)


def captioned(
    caption: str,
    categories: tuple[Category, ...],
    policy: Policy = HONEST,
    truth: Collection[str] = (),
    background_classes: Sequence[str] = (),
) -> CaptionedRequest:
    """Make a request from a tagger's caption.

    Args:
        caption: The tagger's caption, see `goca.tagging.answers.parse`.
        categories: Categories of the data set.
        policy: Policy for the nouns.
        truth: Names of the categories in the image's ground truth.
        background_classes: Background classes to add to a single noun, whose share of itself carries no information
            (see `company`).

    Raises:
        GocaError: The caption has more than `MOST_NOUNS` nouns.
    """
    category_names = _index(categories, policy.synonyms)

    def class_of(noun: str) -> str | None:
        name = category_names.get(key(noun))
        return None if policy.true_only and name not in truth else name

    groups = list(_split_pairs(parse(caption), category_names))
    count = sum(map(len, groups))
    if count > MOST_NOUNS:
        raise GocaError(f"the caption names {count:,} nouns, more than {MOST_NOUNS}: shorten it")
    notes = []
    if policy.complete:
        named = {class_of(noun) for group in groups for noun in group}
        names = [category.name for category in categories]
        missed = [name for name in names if name in truth and name not in named]
        if missed:
            notes.append(f"from the ground truth: {', '.join(missed)}")
            groups = _with(groups, missed)
    groups = _with(groups, policy.suffix)
    assigned = list(_assigned(groups, class_of, policy.keep_parts))
    if len(assigned) == 1:
        ((only_noun, name),) = assigned
        same_class = {key(only_noun)} | {word for word, category in category_names.items() if category == name}
        extra = [noun for noun in background_classes if key(noun) not in same_class]
        if extra:
            notes.append(f"a single noun: {', '.join(extra)} added as background classes")
        assigned += [(noun, None) for noun in extra]
    classes: dict[str, tuple[str, ...]] = {}
    for noun, name in assigned:
        if name is not None:
            classes[name] = (*classes.get(name, ()), noun)
    rest = tuple(noun for noun, name in assigned if name is None)
    return CaptionedRequest(classes, rest, ", ".join(noun for noun, _ in assigned), tuple(notes))


def _split_pairs(groups: Iterable[NounGroup], category_names: Mapping[str, str]) -> Iterator[NounGroup]:
    """ "Lamp and sky", as at the end of a list, is two nouns if it is not a class but one of them is."""
    seen: set[str] = set()
    for group in groups:
        nouns: dict[str, str] = {}
        for noun in group:
            halves = noun.split(" and ")
            keep = key(noun) in category_names or not any(key(half) in category_names for half in halves)
            for part in [noun] if keep else map(clean, halves):
                if part and key(part) not in seen:
                    nouns.setdefault(key(part), part)
        seen.update(nouns)
        parts = tuple(nouns.values())
        yield from [(part,) for part in parts] if len(group) == 1 else [parts]


def _assigned(
    groups: Iterable[NounGroup], class_of: Callable[[str], str | None], keep_parts: bool
) -> Iterator[tuple[str, str | None]]:
    """(noun, its class, or None for a background class), for every noun that stays."""
    for group in groups:
        named = [(noun, class_of(noun)) for noun in group]
        classes = tuple(dict.fromkeys(name for _, name in named if name is not None))
        for noun, name in named:
            if len(classes) == 1:
                yield noun, classes[0]
            elif name is not None or keep_parts or not classes:
                yield noun, name


def _with(groups: Sequence[NounGroup], nouns: Sequence[str]) -> list[NounGroup]:
    """The groups, followed by the nouns that are in none."""
    present = {key(noun) for group in groups for noun in group}
    return [*groups, *((noun.lower(),) for noun in nouns if key(noun) not in present)]


@lru_cache(maxsize=16)
def _index(categories: tuple[Category, ...], synonyms: tuple[Category, ...]) -> Mapping[str, str]:
    """{key of a word: the category it names}: names before synonyms, and both as written before their plurals."""
    names = {category.name for category in categories}
    words = [(category.name, category.name) for category in categories]
    words += [
        (word, category.name)
        for category in (*categories, *synonyms)
        if category.name in names
        for word in category.synonyms
    ]
    index: dict[str, str] = {}
    for word, name in words:
        index.setdefault(key(word), name)
    for word, name in words:
        for form in forms(word):
            index.setdefault(key(form), name)
    return index
