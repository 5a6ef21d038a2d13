"""The tokens of a text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

GAPS = " \N{LOWER ONE EIGHTH BLOCK}\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""Marks of a gap between words in tokenizers."""


@dataclass(frozen=True)
class Tokens:
    """A tokenizer's tokens of a caption: the text that it got, each token's character range, and which are special.

    start: the column of the first token. ids: the tokens' numbers. tokenizer: its name in the pipeline, if known.
    pieces: how the tokenizer itself writes each token.
    """

    text: str
    offsets: tuple[tuple[int, int], ...]
    special: tuple[bool, ...]
    start: int = 0
    ids: tuple[int, ...] = ()
    tokenizer: str = ""
    pieces: tuple[str, ...] = ()

    @property
    def encoder(self) -> str:
        """The name, in the pipeline, of the text encoder that the tokens are for."""
        return self.tokenizer.replace("tokenizer", "text_encoder")


@dataclass(frozen=True)
class Token:
    """A token that the denoiser attends to.

    Attributes:
        index: Its position in the sequence that is attended to.
        text: Its part of the prompt, in lower case if the tokenizer lowers it; for a special token its name, such
            as "<|endoftext|>".
        special: Whether it is a mark of beginning or end, padding, or of a template around the prompt.
        encoder: Its text encoder's name in the pipeline.
    """

    index: int
    text: str
    special: bool
    encoder: str


def attended_tokens(texts: Sequence[Tokens]) -> tuple[Token, ...]:
    """All tokens of some texts, without those of a template that is cut off."""
    return tuple(
        Token(
            tokens.start + number,
            tokens.pieces[number] if special and tokens.pieces else tokens.text[slice(*tokens.offsets[number])],
            special,
            tokens.encoder,
        )
        for tokens in texts
        for number, special in enumerate(tokens.special)
        if tokens.start + number >= 0
    )


def tokens_of(text: str, encoding: Any, caption: str = "") -> Tokens:
    """Tokens from one entry of a fast tokenizer's `BatchEncoding.encodings`.

    caption: if it is inside a template, the rest is ignored. A piece that is only the mark of a
    gap counts as special, because it may have the range of the next word.
    """
    offsets = tuple((int(a), int(b)) for a, b in encoding.offsets)
    pieces = zip(encoding.special_tokens_mask, encoding.tokens, strict=True)
    special = tuple(bool(flag) or not piece.strip(GAPS) for flag, piece in pieces)
    return _within(caption, Tokens(text, offsets, special, ids=tuple(encoding.ids), pieces=tuple(encoding.tokens)))


def tokens_by_decoding(tokenizer: Any, ids: Sequence[int], caption: str = "") -> Tokens:
    """Tokens of a tokenizer without offsets, found by decoding ever longer beginnings of its output."""
    ends = [len(tokenizer.decode(ids[: count + 1])) for count in range(len(ids))]
    text, special = tokenizer.decode(ids), set(tokenizer.all_special_ids)
    ranges = zip(ids, [0, *ends[:-1]], ends, strict=True)
    # Special tokens have no characters, as in fast tokenizers.
    offsets = tuple((b, b) if token in special else (a, b) for token, a, b in ranges)
    flags = tuple(not text[a:b].strip() for a, b in offsets)
    pieces = tuple(map(str, tokenizer.convert_ids_to_tokens(ids)))
    return _within(caption, Tokens(text, offsets, flags, ids=tuple(ids), pieces=pieces))


def _within(caption: str, tokens: Tokens) -> Tokens:
    """Only the caption's tokens, if it is inside a template: the rest is blanked, and counts as special."""
    text = tokens.text
    found_at = text.lower().rfind(caption.lower()) if caption else -1
    start, end = (0, len(text)) if found_at < 0 else (found_at, found_at + len(caption))
    special = tuple(flag or b <= start or a >= end for flag, (a, b) in zip(tokens.special, tokens.offsets, strict=True))
    return replace(tokens, text=" " * start + text[start:end] + " " * (len(text) - end), special=special)
