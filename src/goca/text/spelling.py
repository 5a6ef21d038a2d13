"""The spelling of names: gaps, accents, and the forms of a word."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from goca.text.plurals import plurals, singulars

START, END = r"(?<![^\W_])", r"(?![^\W_])"
"""Where a word may start and end; an underscore is a gap like a space."""

MARKS = "".join(chr(code) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M")
"""Accents and vowel signs that are characters of their own: they belong to the letter before them."""

LETTER = rf"[^{MARKS}][{MARKS}\u1160-\u11FF]*|[{MARKS}]"
"""A character with its marks; Hangul vowels and finals also compose with what precedes them."""

WORD = re.compile(rf"[^\W_](?:[^\W_]|[{MARKS}])*")

STOP = re.compile(rf"{START}(?:a|an|the|and){END}(?![{MARKS}])|[,.\-\s_]", re.IGNORECASE)
"""Stop words, punctuation and gaps: a token of nothing else is not content. The "an" of "ban-an-a" is not a word."""

DOTTED = "i\N{COMBINING DOT ABOVE}"
"""Python's lower case of the Turkish capital i."""


@lru_cache(maxsize=4096)
def forms(word: str) -> frozenset[str]:
    """A name in lower case with single spaces, and its possible plurals and singulars."""
    *before, last = plain(word).split(" ")
    return frozenset(" ".join((*before, form)) for form in {last} | plurals(last) | singulars(last))


def plain(word: str) -> str:
    """Lower case, one space for every gap: "Traffic_light", "traffic-light" and "traffic light" are one name."""
    # The lower case of this letter is two characters, which IGNORECASE does not match; "i" does.
    lower = composed(word).replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i").lower().replace(DOTTED, "i")
    return " ".join(re.findall(r"[^\s_-]+", lower))


def composed(word: str) -> str:
    """Letters with their accents as one character, as tokenizers compose them: an accent apart would have no token."""
    return unicodedata.normalize("NFC", word)


def found_in(form: str, text: str) -> Iterator[tuple[int, int]]:
    """The character ranges of a text that contain a name in lower case with single spaces, whatever its accents are."""
    pattern = START + r"[\s_-]+".join(re.escape(part) for part in form.split(" ")) + END
    composed, ranges = _letters(text)
    for match in re.finditer(pattern, composed, re.IGNORECASE):
        start, end = match.span()
        # A mark without a composition continues the word.
        if end == len(composed) or composed[end] not in MARKS:
            yield ranges[start][0], ranges[end - 1][1]


@lru_cache(maxsize=64)
def _letters(text: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """A text with its accents composed, and the range of each of its characters in the text as it was."""
    parts, ranges = [], []
    for match in re.finditer(LETTER, text, re.DOTALL):
        parts.append(composed(match[0]).replace(DOTTED, "i"))
        ranges += [match.span()] * len(parts[-1])
    return "".join(parts), tuple(ranges)
