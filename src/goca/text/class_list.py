"""The grammar of class lists, on a command line, in a file, or in a data set's classes.txt.

One class per line. A colon, or a comma, separates it from its synonyms. "#" at the start of a line, or after a space, a
colon or a comma, starts a comment; blank lines are ignored.

    # animals first
    cat: kitty, puss
    dog
    grass

A list of a single line without a colon has comma-separated classes: `cat, dog, grass`.

A leading number is the class's label: its value in label files, and in results, which count from 1. Before a colon it
always is, `7: road`; lines without a number continue counting. Before a tab, space, dot, bracket or comma it is one if
every line has one and they count up by one: `1 cat`, `2 grass`. A list in which only part of the lines begin so is
refused, because it is unclear whether `2 wheeler` is a name: write `1: 2 wheeler` if it is. So is a list in
another notation, with bullets, quotes, other separators or numbers after the names, and one whose classes continue over
lines.

"background", "void" and "ignore", also as "_background_" and "__ignore__", are not classes: they name pixels that
have none. Without a number they get no label.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from goca.errors import GocaError
from goca.text.clean import one_line, storable

SPECIAL = {
    "background": "background",
    "_background_": "background",
    "void": "void",
    "ignore": "void",
    "__ignore__": "void",
}
"""{word that is not a class, in lower case: its meaning}."""
HIGHEST = 65535
"""The highest label in a 16-bit file."""

_COMMENT = re.compile(r"(?<![^\s:,])#.*")  # "c#" is a name
_NUMBER = re.compile(r"(-?[0-9]+)\s*:(.*)")
_PERHAPS = re.compile(
    r"(-?[0-9]+)(?:\s*[.),;=]\s*|\s+(?![\s:]))(.*[^\W\d_].*)"
)  # a number that may be part of the name

_ELSEWHERE = re.compile(r"[-*\[\]{}<>\"'`].*|.*[;|=\uff0c\u3001\uff1b].*|.*[\"\]}]|[0-9]+")
"""Names in a list of another notation: YAML, JSON, CSV, other separators; a number for a synonym."""


@dataclass(frozen=True)
class ListedClass:
    """A line of a list: a name, its synonyms, and its label; None for background or void without a number."""

    name: str
    synonyms: tuple[str, ...]
    label: int | None

    @property
    def special(self) -> str | None:
        """ "background" or "void", for what is not a class."""
        return SPECIAL.get(self.name.lower())


def parse_class_list(text: str, name: str) -> tuple[ListedClass, ...]:
    """The lines of a list in the module's grammar, without comments. name: the list's name in messages.

    Raises:
        GocaError: A line is ambiguous or malformed, or a word or label occurs twice.
    """
    # A byte order mark inside comes from joined files.
    lines = [
        (f"{name}, line {number}", content)
        for number, line in enumerate(storable(text).replace("\ufeff", "").splitlines(), start=1)
        if (content := _COMMENT.sub("", line).strip())
    ]
    if len(lines) == 1 and ":" not in lines[0][1]:
        lines = [(name, part.strip()) for part in lines[0][1].split(",") if part.strip()]
    entries: list[ListedClass] = []
    labels: set[int] = set()
    words: set[str] = set()
    last = 0
    for where, number, content in _numbered(lines, name):
        listed = _names(content, where)
        entry = ListedClass(listed[0], tuple(listed[1:]), None)
        if number is not None or entry.special is None:
            last = last + 1 if number is None else number
            if not 0 <= last <= HIGHEST:
                raise GocaError(f'{where} gives "{entry.name}" a label below 0 or above {HIGHEST}: choose another')
            if last in labels:
                raise GocaError(f"{where} gives {last} to two classes: give each its own label")
            labels.add(last)
            entry = ListedClass(entry.name, entry.synonyms, last)
        for word in listed:
            if word.lower() in words or SPECIAL.get(word.lower(), entry.special) != entry.special:
                raise GocaError(f'{where} names "{word}" twice: every class and synonym may appear once')
            words.add(word.lower())
        entries.append(entry)
    return tuple(entries)


def classes_to_find(entries: Sequence[ListedClass], name: str) -> Mapping[str, Sequence[str]]:
    """{class: synonyms} of a list, without background and void, whose labels in results are 1, 2, ...

    Raises:
        GocaError: No class is left, or the list gives one a label that differs from results.
    """
    classes = [entry for entry in entries if entry.special is None]
    if not classes:
        raise GocaError(f"{name} has no classes: name at least one thing to look for")
    for label, entry in enumerate(classes, start=1):
        if entry.label != label:
            raise GocaError(
                f'{name} gives "{entry.name}" the label {entry.label}, which in results would be {label}: number the '
                "classes from 1 without gaps, or leave out the numbers"
            )
    return {entry.name: entry.synonyms for entry in classes}


def _numbered(lines: Sequence[tuple[str, str]], name: str) -> list[tuple[str, int | None, str]]:
    """(where, the number in front or None, the rest) of each line; the whole list decides what is a number."""
    perhaps = [match for _, content in lines if (match := _PERHAPS.fullmatch(content))]
    if perhaps:
        first = _value(perhaps[0][1])
        counted = [_value(match[1]) for match in perhaps] == list(range(first, first + len(lines)))
        if not counted:
            raise GocaError(
                f'{name}: in "{perhaps[0][0][:60]}" it is unclear whether {perhaps[0][1][:20]} is a label, as not all '
                'lines count up by one: write "NUMBER: name", also for a name that begins with a number'
            )
        return [(where, _value(match[1]), match[2]) for (where, _), match in zip(lines, perhaps, strict=True)]
    out: list[tuple[str, int | None, str]] = []
    for where, content in lines:
        match = _NUMBER.fullmatch(content)
        out.append((where, _value(match[1]), match[2]) if match else (where, None, content))
    return out


def _value(digits: str) -> int:
    """The number; one that is too long for a label becomes the smallest number that is too high."""
    return int(digits) if len(digits) <= 9 else HIGHEST + 1


def _names(content: str, where: str) -> list[str]:
    """The class of a line, and its synonyms."""
    name, colon, rest = content.partition(":")
    if not colon:
        name, _, rest = content.partition(",")
    name, *synonyms = (word.strip() for word in (name, *rest.split(",")))
    synonyms = [word for word in synonyms if word]
    if not name:
        raise GocaError(f"{where} has no class before its synonyms: write the class first")
    for word in (name, *synonyms):
        if "\t" in word or ":" in word:
            raise GocaError(f'{where}: {word[:60]!r} is not a name: write "NUMBER: name: synonym, synonym"')
        if "," in word:
            raise GocaError(f'{where}: "{word[:60]}" has a comma before its colon: write one class per line')
        if _ELSEWHERE.fullmatch(word) and not (word == name and word.isdigit()):
            raise GocaError(f"{where}: {word[:60]!r} is not a name: separate classes by commas, or write one per line")
    if synonyms and not colon and content.endswith(","):
        raise GocaError(f"{where} ends in a comma, as if it continued: write one class per line, or all on one line")
    return [one_line(word) for word in (name, *synonyms)]
