"""From a tagger's caption to a question: its nouns, and which of them are classes of the data set.

A caption lists nouns; parts of one object stand in parentheses: "(person, clothes), grass". What becomes of a noun is a
`Policy`, and a preset of the bench is a value of it. Nothing here looks at an image.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from unicodedata import normalize

from goca.errors import GocaError
from goca.evaluation.datasets.base import Category
from goca.recipe import AUTO
from goca.request import SegmentationRequest
from goca.text.spelling import STOP, forms

Group = tuple[str, ...]
"""The nouns of one parenthesis, or one noun that stands alone."""

_OPENING, _CLOSING = tuple("([{【"), tuple(")]}】")
_BRACKET = re.compile(f"([{re.escape(''.join(_OPENING + _CLOSING))}])")
_COMMA = re.compile("[,;、•|]")
_WIDE = str.maketrans({chr(ord(one) + 0xFEE0): one for one in "()[]{},;."} | {"\N{FULLWIDTH COLON}": ": "})
_AROUND = r"[\s\"'`\u2018-\u201F«»「」『』*.:•·_\u2013\u2014-]"
_EDGES = re.compile(rf"^(?:{_AROUND}|(?:a|an|the|and)\s|\d{{1,3}}\.(?!\d))+|{_AROUND}+$")
# A list as programs write it, which is no parenthesis: ["cat", "dog"].
_QUOTED = re.compile(r"\s*\[(\s*[\"'].*)\]\s*", re.DOTALL)
_TAG = re.compile(r"</?[a-z][^<>]*>")
# "Foreground: cat. Background: sky" is two lines, and so is "1) cat 2) sky".
_LATER_LEAD_IN = re.compile(r"[.!?]\s+(?=[^:,.\n]{1,30}:(?:\s|$))")
_NUMBERED, _NUMBER = re.compile(r"\s*1[.)]\s"), re.compile(r"\s\d{1,3}[.)](?=\s)")
# The colon of "16:9 screen" ends no lead-in.
_LEAD_IN = re.compile(rf"^.*:(?={_AROUND}|$)")


def parse(caption: str) -> tuple[Group, ...]:
    """The nouns of a caption, in its order, in lower case.

    Commas, semicolons, bullets and line breaks divide nouns; brackets of any kind are parentheses. A parenthesis ends
    at the next one of any kind, or with the caption, so unbalanced and nested ones have a meaning too. What models
    write around nouns goes: stops, quotation marks, bullets and stop words, the numbers of a list or a count, "1. cat",
    "1) cat", "cat (2)", and before the first noun of a line whatever ends in a colon, "Nouns: cat". So does what is
    left without a letter or digit. Of a noun said twice the first stays.
    """
    lower = normalize("NFC", caption).replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i").lower()
    plain = _TAG.sub("\n", normalize("NFC", lower).translate(_WIDE))
    plain = _LATER_LEAD_IN.sub("\n", plain)
    if _NUMBERED.match(plain):
        plain = _NUMBER.sub("\n", plain)
    quoted = _QUOTED.fullmatch(plain)
    pieces = _BRACKET.split(quoted[1] if quoted else plain)
    groups: list[Group] = []
    seen: set[str] = set()
    inside, leading = False, True
    for piece, bracket in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        said, leading = _said(piece, leading)
        if said and said[-1].isdecimal() and bracket in _CLOSING and not (inside and said[1:]):
            said, leading = said[:-1], True
        fresh: dict[str, str] = {}
        for noun in said:
            if key(noun) not in seen:
                fresh.setdefault(key(noun), noun)
        seen.update(fresh)
        groups += [tuple(fresh.values())] if inside and fresh else [(noun,) for noun in fresh.values()]
        inside = bracket in _OPENING
    return tuple(groups)


def _said(piece: str, leading: bool) -> tuple[list[str], bool]:
    """The nouns between two brackets. leading: whether the line has no noun before them; and so for what follows."""
    said: list[str] = []
    for number, line in enumerate(piece.split("\n")):
        leading = leading or number > 0
        for part in _COMMA.split(line):
            noun = _clean(_LEAD_IN.sub("", part) if leading else part)
            if noun:
                said.append(noun)
                leading = False
    return said, leading


def write(groups: Iterable[Sequence[str]]) -> str:
    """A caption that `parse` reads as these groups; GocaError for a noun that would be read as something else."""
    listed = [tuple(group) for group in groups]
    caption = ", ".join(group[0] if len(group) == 1 else f"({', '.join(group)})" for group in listed)
    back = {key(noun) for group in parse(caption) for noun in group}
    for noun in (noun for group in listed for noun in group):
        if key(noun) not in back:
            raise GocaError(
                f'"{noun}" cannot stand in a list of nouns: leave out its punctuation, or name it otherwise'
            )
    return caption


def key(noun: str) -> str:
    """What two spellings of one noun share: "Traffic_light", "traffic-light" and "traffic light" are the same."""
    return " ".join(re.findall(r"[^\s_-]+", noun)).casefold()


def _clean(noun: str) -> str:
    bare = " ".join(_EDGES.sub("", noun).split())
    return bare if any(map(str.isalnum, STOP.sub("", bare))) else ""


@dataclass(frozen=True)
class Policy:
    """What becomes of the nouns of a caption.

    - suffix: nouns that are added behind every caption, as background classes unless they are classes.
    - complete: ground-truth classes that the caption missed are added behind it.
    - true_only: a noun becomes a class only if the class is in the image's ground truth.
    - keep_parts: where a parenthesis names two classes or more, its further nouns stay, as background classes; without
      it they are dropped.
    - synonyms: words for categories beside those of the data set; a category that the data set lacks is passed over.

    A parenthesis that names one class stands for it as a whole, whatever the policy: the tagger says it is one object.
    """

    name: str
    suffix: tuple[str, ...] = ()
    complete: bool = False
    true_only: bool = False
    keep_parts: bool = True
    synonyms: tuple[Category, ...] = ()

    @property
    def needs_truth(self) -> bool:
        return self.complete or self.true_only


HONEST = Policy("honest")
"""A noun that names a category is that class, any other is a background class, and nothing comes from ground truth."""

ODD_SYNONYMS = (Category("aeroplane", ("skyline",)), Category("person", ("woodpecker",)))
"""Odd synonyms of the released code, those that are known to us; the `paper` preset has a switch for them."""


def paper(dataset: str, odd_synonyms: bool = False) -> Policy:
    """What the released code does on a data set, which flatters: classes are those of the ground truth.

    dataset: "voc", "context", "coco-object", "coco-stuff-27", "coco-stuff-171", "cityscapes" or "ade20k"; GocaError for
    any other.
    """
    if dataset not in _PAPER:
        raise GocaError(f'no "paper" protocol for "{dataset}": there is one for {", ".join(_PAPER)}; use "honest"')
    suffix, complete = _PAPER[dataset]
    return Policy("paper", suffix, complete, True, False, ODD_SYNONYMS if odd_synonyms else ())


# Data set: (what stands behind every caption, whether missed classes are added).
_PAPER: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "voc": (("background",), True),
    "context": ((), True),
    "coco-object": (("background",), False),
    "coco-stuff-27": ((), True),
    "coco-stuff-171": ((), True),  # not evaluated by the authors: as the 27
    "cityscapes": ((), False),
    "ade20k": (("background",), False),
}


@dataclass(frozen=True)
class Asked:
    """A caption as something to ask a segmenter.

    classes: {category: the caption's words for it}, in the caption's order. background_classes: those of no class. caption: the
    prompt, every noun of classes and background_classes in the order they were said, and nothing else. notes: what the policy did.
    """

    classes: Mapping[str, tuple[str, ...]]
    background_classes: tuple[str, ...]
    caption: str
    notes: tuple[str, ...] = ()

    def question(self, image: Any, background: str | float | None = AUTO) -> SegmentationRequest:
        """To be asked through `Segmenter.stream`, whose columns are then those of the caption's nouns.

        Raises GocaError where no noun is a class: then every pixel is background, and there is nothing to ask.
        """
        if not self.classes:
            raise GocaError(f'no class of the data set is in the caption "{self.caption}": every pixel is background')
        # A name is one of its own words to a segmenter; it need not be in the caption.
        wanted = {name: [one for one in said if key(one) != key(name)] for name, said in self.classes.items()}
        return SegmentationRequest(image, wanted, self.background_classes, background, self.caption)


def ask(
    caption: str,
    categories: tuple[Category, ...],
    policy: Policy = HONEST,
    truth: Collection[str] | None = None,
    background_classes: Sequence[str] = (),
) -> Asked:
    """Make a question of a tagger's caption.

    truth: names of the categories in the image's ground truth; GocaError where the policy needs them and has none.
    background_classes: background classes to add where one noun stands alone, whose share of itself says nothing
    (`segmenter.plan.background_classes`).
    """
    if policy.needs_truth and truth is None:
        raise GocaError(f'the "{policy.name}" policy looks at the ground truth: give its classes, or use "honest"')
    names = _index(categories, policy.synonyms)
    true = set(truth or ())

    def class_of(noun: str) -> str | None:
        name = names.get(key(noun))
        return None if policy.true_only and name not in true else name

    groups = [*_halved(parse(caption), names)]
    notes = []
    if policy.complete:
        found = {class_of(noun) for group in groups for noun in group}
        missed = [one.name for one in categories if one.name in true and one.name not in found]
        if missed:
            notes.append(f"from the ground truth: {', '.join(missed)}")
            groups = _with(groups, missed)
    groups = _with(groups, policy.suffix)
    said = list(_assigned(groups, class_of, policy.keep_parts))
    if len(said) == 1:
        (alone, name) = said[0]
        extra = [
            one
            for one in background_classes
            if key(one) != key(alone) and (name is None or names.get(key(one)) != name)
        ]
        if extra:
            notes.append(f"one noun alone: {', '.join(extra)} added as background classes")
        said += [(one, None) for one in extra]
    classes: dict[str, tuple[str, ...]] = {}
    for noun, name in said:
        if name is not None:
            classes[name] = (*classes.get(name, ()), noun)
    background_classes = tuple(noun for noun, name in said if name is None)
    return Asked(classes, background_classes, ", ".join(noun for noun, _ in said), tuple(notes))


def _halved(groups: Iterable[Group], names: Mapping[str, str]) -> Iterator[Group]:
    """ "Lamp and sky", as a list may end, is two nouns where it is no class and one of them is."""
    seen: set[str] = set()
    for group in groups:
        out: dict[str, str] = {}
        for noun in group:
            halves = noun.split(" and ")
            whole = key(noun) in names or not any(key(half) in names for half in halves)
            for part in [noun] if whole else map(_clean, halves):
                if part and key(part) not in seen:
                    out.setdefault(key(part), part)
        seen.update(out)
        parts = tuple(out.values())
        yield from [(part,) for part in parts] if len(group) == 1 else [parts]


def _assigned(
    groups: Iterable[Group], class_of: Callable[[str], str | None], keep_parts: bool
) -> Iterator[tuple[str, str | None]]:
    """(noun, its class, or None for a background class), for every noun that stays."""
    for group in groups:
        named = [(noun, class_of(noun)) for noun in group]
        found = tuple(dict.fromkeys(name for _, name in named if name is not None))
        for noun, name in named:
            if len(found) == 1:
                yield noun, found[0]
            elif name is not None or keep_parts or not found:
                yield noun, name


def _with(groups: Sequence[Group], nouns: Sequence[str]) -> list[Group]:
    """The groups, and behind them the nouns that are in none."""
    there = {key(noun) for group in groups for noun in group}
    return [*groups, *((noun.lower(),) for noun in nouns if key(noun) not in there)]


@lru_cache(maxsize=16)
def _index(categories: tuple[Category, ...], more: tuple[Category, ...]) -> Mapping[str, str]:
    """{key of a word: the category it names}: names before synonyms, and both as written before their plurals."""
    known = {one.name for one in categories}
    words = [(one.name, one.name) for one in categories]
    words += [(word, one.name) for one in (*categories, *more) if one.name in known for word in one.synonyms]
    index: dict[str, str] = {}
    for word, name in words:
        index.setdefault(key(word), name)
    for word, name in words:
        for form in forms(word):
            index.setdefault(key(form), name)
    return index
