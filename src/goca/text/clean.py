"""Text from outside (file names, labels, answers of servers), made safe to show and to store."""

import re
import unicodedata

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # controls, invisible formats, lone surrogates, line separators
_JOINERS = frozenset("\u200c\u200d")  # parts of words in some scripts and of emoji
_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*\x07?)"
)  # terminal sequences such as colours and titles


def printable(text: str) -> str:
    """The text in a form that is safe for terminals: control and invisible characters become escapes such as \\x1b."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii") if _is_unsafe(character) else character for character in text
    )


def storable(text: str) -> str:
    """The text in valid UTF-8: each lone surrogate, from a JSON escape or a file name, becomes U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def one_line(text: str) -> str:
    """A name in stored form: trimmed, single spaces for gaps, and no control or invisible characters."""
    text = storable(text)
    if not text.isprintable():
        text = _SEQUENCE.sub("", text)
        text = "".join(letter for letter in text if letter.isspace() or not _is_unsafe(letter))
    return " ".join(text.split())


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in _UNSAFE and character not in _JOINERS
