"""Captions of scenes: noun lists, and short sentences from a small grammar.

Every caption names every noun of its scene, and nothing else. Sentences give the stop words something to
do: "a cat and two birds on the grass". CLIP learns from many wordings (synonyms too); the UNet sees nouns
and plurals only, because understanding other words is the frozen text encoder's part.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from .nouns import NOUN, NOUNS
from .scenes import Content

SENTENCES = 0.4  # share of sentences; the rest are noun lists
NUMBERS = {2: "two", 3: "three"}
OPENINGS = ("", "", "", "a picture of ", "we see ", "an image with ")
ON_GROUND = {
    "grass": ("on the {}", "in the {}"),
    "sand": ("on the {}", "on {}"),
    "water": ("on the {}", "in the {}"),
    "sky": ("in the {}", "under the {}"),
    "snow": ("on the {}", "in the {}"),
    "brick": ("in front of the {}", "on {}"),
    "wood": ("on the {}", "on {}"),
    "road": ("on the {}", "on a {}"),
}
BEHIND = ("with {} behind", "and the {}", "in front of the {}", "with the {} in the back")
ABOVE = ("under the {}", "and the {}", "with {} above")

Rng = np.random.Generator


def caption(content: Content, rng: Rng, sentences: float = SENTENCES, synonyms: float = 0.0) -> str:
    """One wording of `content`; each noun is said by one of its synonyms with probability `synonyms`."""
    if rng.random() < sentences:
        return sentence(content, rng, synonyms)
    return noun_list(content, rng, synonyms)


def noun_list(content: Content, rng: Rng, synonyms: float = 0.0) -> str:
    """The scene's nouns in random order: "grass, cat, sky"."""
    return ", ".join(_word(noun, rng, synonyms) for noun in rng.permutation(content.nouns))


def sentence(content: Content, rng: Rng, synonyms: float = 0.0) -> str:
    """The scene in a few words: "two birds and a cat on the grass under the sky"."""
    counts = Counter(content.things)
    things = [_counted(noun, counts[noun], rng, synonyms) for noun in rng.permutation(list(counts))]
    parts = [
        _pick(rng, OPENINGS) + _enumerate(things),
        _place(content.ground, ON_GROUND[content.ground], rng, synonyms),
    ]
    if content.backdrop:
        parts.append(_place(content.backdrop, ABOVE if content.backdrop == "sky" else BEHIND, rng, synonyms))
    return " ".join(parts)


def words() -> Iterator[str]:
    """Every word that a caption can contain."""
    for noun in NOUNS:
        yield from (noun.name, noun.plural, *noun.synonyms, *(_plural(word) for word in noun.synonyms))
    for phrase in (
        *OPENINGS,
        *BEHIND,
        *ABOVE,
        *sum(ON_GROUND.values(), ()),
        *NUMBERS.values(),
        "a an and , . - the",
    ):
        yield from phrase.replace("{}", " ").split()


def _word(noun: str, rng: Rng, synonyms: float) -> str:
    others = NOUN[noun].synonyms
    return _pick(rng, others) if others and rng.random() < synonyms else str(noun)


def _counted(noun: str, count: int, rng: Rng, synonyms: float) -> str:
    word = _word(noun, rng, synonyms)
    if count == 1:
        return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
    return f"{NUMBERS[count]} {NOUN[noun].plural if word == noun else _plural(word)}"


def _plural(word: str) -> str:
    if word.endswith(("s", "craft")):
        return word
    if word.endswith(("ch", "sh")):
        return word + "es"
    if word.endswith("lf"):
        return word[:-1] + "ves"
    return word[:-1] + "ies" if word.endswith("ty") else word + "s"


def _enumerate(items: list[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _place(noun: str, patterns: tuple[str, ...], rng: Rng, synonyms: float) -> str:
    return _pick(rng, patterns).format(_word(noun, rng, synonyms))


def _pick(rng: Rng, options: tuple[str, ...]) -> str:
    return options[rng.integers(len(options))]
