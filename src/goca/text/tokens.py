"""What a tokenizer made of a text, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

GAPS = " \N{LOWER ONE EIGHTH BLOCK}\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""How tokenizers write a gap between words."""


@dataclass(frozen=True)
class Tokens:
    """What a tokenizer made of a caption: the text it got, each token's character range, and which are special.

    start: the column of the first token. ids: the tokens' numbers. tokenizer: its name in the pipeline,
    where that is known.
    """

    text: str
    offsets: tuple[tuple[int, int], ...]
    special: tuple[bool, ...]
    start: int = 0
    ids: tuple[int, ...] = ()
    tokenizer: str = ""


def tokens_of(text: str, encoding: Any, caption: str = "") -> Tokens:
    """Tokens from one entry of a fast tokenizer's `BatchEncoding.encodings`.

    caption: where it stands in a template, what is around it does not count. A piece that is nothing but the mark of a
    gap counts as special, for it may have the range of the word behind it.
    """
    offsets = tuple((int(a), int(b)) for a, b in encoding.offsets)
    pieces = zip(encoding.special_tokens_mask, encoding.tokens, strict=True)
    special = tuple(bool(flag) or not piece.strip(GAPS) for flag, piece in pieces)
    return _within(caption, Tokens(text, offsets, special, ids=tuple(encoding.ids)))


def tokens_by_decoding(tokenizer: Any, ids: Sequence[int], caption: str = "") -> Tokens:
    """Tokens of a tokenizer that tells no offsets, from what it makes of ever longer beginnings of its answer."""
    ends = [len(tokenizer.decode(ids[: count + 1])) for count in range(len(ids))]
    text, special = tokenizer.decode(ids), set(tokenizer.all_special_ids)
    ranges = zip(ids, [0, *ends[:-1]], ends, strict=True)
    # Special tokens stand for no character, as fast tokenizers tell it too.
    offsets = tuple((b, b) if token in special else (a, b) for token, a, b in ranges)
    flags = tuple(not text[a:b].strip() for a, b in offsets)
    return _within(caption, Tokens(text, offsets, flags, ids=tuple(ids)))


def _within(caption: str, tokens: Tokens) -> Tokens:
    """The caption's tokens alone, where it stands in a template: the rest is blanked, and counts as special."""
    text = tokens.text
    found_at = text.lower().rfind(caption.lower()) if caption else -1
    start, end = (0, len(text)) if found_at < 0 else (found_at, found_at + len(caption))
    special = tuple(flag or b <= start or a >= end for flag, (a, b) in zip(tokens.special, tokens.offsets, strict=True))
    return replace(tokens, text=" " * start + text[start:end] + " " * (len(text) - end), special=special)
