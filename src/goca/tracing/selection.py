"""The tokens of a word, an occurrence of it, a token or an encoder; or why there are none."""

import re
from collections.abc import Sequence
from operator import index
from typing import SupportsIndex

from goca.errors import GocaError
from goca.text.spelling import plain
from goca.text.token_spans import Word, shortened, token_indices_of, why_absent
from goca.text.tokens import Tokens
from goca.tracing.steps import TracedAttention

NUMBERED = re.compile(r"(.+)#([0-9]{1,9})", re.DOTALL)
"""A word and its occurrence, as in "cat#2"."""
MAX_WORDS = 20
"""Most words that a message lists."""


def indices_of(
    attention: TracedAttention,
    word: str | Word | None,
    occurrence: int | None,
    token: SupportsIndex | None = None,
    encoder: str | None = None,
) -> tuple[int, ...]:
    """The token indices of a word, or of one of its occurrences; or a single one. Raises GocaError without a map."""
    texts = texts_of(attention, encoder)
    if token is not None:
        if word is not None:
            raise GocaError(f"{word!r} and token {token!r} cannot be combined: give a word or the index of a token")
        return _token(attention, token)
    name = word.name if isinstance(word, Word) else word
    if not isinstance(name, str) or not plain(name) or not isinstance(occurrence, int | None):
        raise GocaError(
            f"{word!r} with occurrence {occurrence!r} is not a word and a number: give a word of the prompt, and "
            "which of its occurrences from 1"
        )
    if isinstance(word, Word):
        occurrence = word.occurrence if occurrence is None else occurrence
    elif occurrence is None and not token_indices_of(name, texts) and (numbered := NUMBERED.fullmatch(name)):
        name, occurrence = numbered[1], int(numbered[2])
    places = token_indices_of(name, texts)
    by_occurrence = [indices for indices in places if indices]
    if not by_occurrence:
        raise missing(attention, name, (name,))
    if occurrence is None:
        return tuple(sorted({index for indices in by_occurrence for index in indices}))
    count = len(by_occurrence)
    if not 1 <= occurrence <= count:
        where = "the prompt" if count == len(places) else "the part of the prompt that its tokens hold"
        times = "once" if count == 1 else f"{count} times"
        raise GocaError(f'"{shortened(name)}" occurs {times} in {where}: give an occurrence from 1 to {count}')
    return by_occurrence[occurrence - 1]


def texts_of(attention: TracedAttention, encoder: str | None) -> tuple[Tokens, ...]:
    """The tokens of the prompt, or of the part that one text encoder reads."""
    texts = attention.prompt.texts
    if encoder is None:
        return texts
    names = list(dict.fromkeys(tokens.encoder for tokens in texts))
    if encoder not in names:
        raise GocaError(f"there are no tokens of {encoder!r}: choose from {', '.join(names)}")
    return tuple(tokens for tokens in texts if tokens.encoder == encoder)


def _token(attention: TracedAttention, token: SupportsIndex) -> tuple[int]:
    """The index of a kept token, in the form of a word's indices."""
    known = {entry.index for entry in attention.tokens}
    if not isinstance(token, SupportsIndex) or index(token) not in known:
        raise GocaError(f"there is no token {token!r}: give the index of one of its {len(known)} tokens")
    if index(token) not in attention.token_indices:
        require_special(attention)
    return (index(token),)


def require_special(attention: TracedAttention) -> None:
    """Raise GocaError if special tokens are not kept."""
    if not attention.keep.special:
        raise GocaError('special tokens are not kept: ask for them with trace(pipe, keep="special")')


def missing(attention: TracedAttention, name: str, words: Sequence[str]) -> GocaError:
    """Why a name has no map; words: all names that it may have."""
    prompt = attention.prompt
    reason = why_absent(words, prompt.texts, prompt.prompt, prompt.unread)
    if reason is None:
        reason = f'the prompt "{shortened(prompt.prompt)}" does not contain "{shortened(name)}", so it has no map'
    names = list(dict.fromkeys(word.name for word in attention.word_indices))
    more = ["..."] if len(names) > MAX_WORDS else []
    listed = ", ".join([*map(shortened, names[:MAX_WORDS]), *more]) or "nothing: it has no words"
    return GocaError(f"{reason}{', or' if ': ' in reason else ':'} choose from {listed}")
