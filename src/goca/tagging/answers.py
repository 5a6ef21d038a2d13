"""Captions: lists of nouns as taggers write them, "(person, clothes), grass", read and written."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any
from unicodedata import normalize

from goca.errors import GocaError
from goca.text.spelling import STOP

NounGroup = tuple[str, ...]
"""The nouns of one parenthesis, or one noun that stands alone."""

_NUMBER = re.compile(r"(?<![\w.])\d{1,3}\.(?=\s)|^[ *-]*\d{1,3}\)", re.MULTILINE)  # of a list: "1. cat", "2) dog"
_DIVIDER = re.compile(r"[,;|\u2022\u3001\uFF0C\uFF1B\r\n]")
_PARENTHESIS = re.compile(r"([()\uFF08\uFF09])")
_MARKS = " \"'`\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f«»「」『』*.:·_-\u2013\u2014[]{}<>"
_LEADING = re.compile(rf"(?:[{re.escape(_MARKS)}]|(?:a|an|the|and)\s)+")
_LEAD_IN = re.compile(rf".*:(?=[{re.escape(_MARKS)}]|$)")  # "Nouns: cat", but not "16:9 screen"


def parse(caption: str) -> tuple[NounGroup, ...]:
    """The nouns of a caption.

    Commas, semicolons, bullets, the numbers of a list and line breaks divide nouns. A parenthesis makes a group; it
    ends at the next one, or with the caption. Quotation marks, brackets, bold type, articles and what ends in a colon
    ("Nouns: cat") are removed around a noun. Of a noun that occurs twice the first stays.

    Returns:
        Nouns in lower case, in the caption's order.
    """
    # The lower case of this letter is two characters, which no spelling of a word has.
    lower = normalize("NFC", caption).replace("\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}", "i").lower()
    pieces = _PARENTHESIS.split(_NUMBER.sub("\n", normalize("NFC", lower)))
    groups: list[NounGroup] = []
    seen: set[str] = set()
    for piece, bracket in zip(pieces[::2], ["", *pieces[1::2]], strict=True):
        nouns = []
        for noun in map(clean, _DIVIDER.split(piece)):
            if noun and key(noun) not in seen:
                seen.add(key(noun))
                nouns.append(noun)
        if bracket in ("(", "\uff08") and nouns:
            groups.append(tuple(nouns))
        else:
            groups += [(noun,) for noun in nouns]
    return tuple(groups)


def clean(noun: str) -> str:
    """A noun without what decorates it; "" if nothing but articles and punctuation is there."""
    bare = " ".join(noun.split())
    for prefix in (_LEAD_IN, _LEADING):
        match = prefix.match(bare)
        bare = bare[match.end() :] if match else bare
    bare = bare.rstrip(_MARKS)
    return bare if any(map(str.isalnum, STOP.sub("", bare))) else ""


def write(groups: Iterable[Sequence[str]]) -> str:
    """A caption that `parse` reads as these groups; GocaError for nouns that it would not, such as "door, double"."""
    groups = [tuple(group) for group in groups]
    caption = ", ".join(group[0] if len(group) == 1 else f"({', '.join(group)})" for group in groups)
    readable = {key(noun) for group in parse(caption) for noun in group}
    for noun in (noun for group in groups for noun in group):
        if key(noun) not in readable:
            raise GocaError(
                f'"{noun}" cannot stand in a list of nouns: leave out its punctuation, or name it otherwise'
            )
    return caption


def key(noun: str) -> str:
    """What the spellings of one noun share: "Traffic_light", "traffic-light" and "traffic light" are the same."""
    return " ".join(re.findall(r"[^\s_-]+", noun)).casefold()


LONGEST_CAPTION = 4000
"""Characters; what is longer is not a list of a few dozen words."""

# What models put around an answer. A chat template may open the thoughts in the prompt, so that only their end is in
# the answer, and an answer that is cut off may lack the end.
_THOUGHT = r"[^<>◁▷]{0,20}(?:think|thought|reason)[^<>◁▷]{0,20}[>▷]"
_THOUGHTS = re.compile(rf"^.*(?:[<◁]\|?/{_THOUGHT}|<\|message\|>)|[<◁]{_THOUGHT}.*$", re.DOTALL | re.IGNORECASE)
_MARKUP = re.compile(r"</?[a-z][^<>]*>|<\|[^<>]*\|>|^[ \t]*```.*$", re.IGNORECASE | re.MULTILINE)
_APOLOGY = re.compile(r"\W*(?:i['\u2019 ]|(?:sorry|unfortunately|as an ai)\b)", re.IGNORECASE)


def caption_in(answer: str) -> str:
    """The caption in a vision-language model's answer, which is JSON, {"nouns": [...]}, or a list of nouns.

    Returns:
        The caption without thoughts, markup and code fences; "" if there is none, as in an apology.
    """
    text = _MARKUP.sub("\n", _THOUGHTS.sub("", answer.encode(errors="replace").decode())).strip()
    nouns = _json_nouns(text)
    caption = text if nouns is None else ", ".join(nouns)
    return "" if len(caption) > LONGEST_CAPTION or (nouns is None and _APOLOGY.match(text)) else caption


def _json_nouns(text: str) -> list[str] | None:
    """The nouns of a JSON object or list that the text contains; None if there is none."""
    start = min((index for index in map(text.find, "{[") if index >= 0), default=-1)
    if start < 0:
        return None
    try:
        value: Any = json.JSONDecoder().raw_decode(text, start)[0]
    except (ValueError, RecursionError):
        return None
    nouns = value.get("nouns") if isinstance(value, dict) else value
    return [noun for noun in nouns if isinstance(noun, str)] if isinstance(nouns, list) else []
