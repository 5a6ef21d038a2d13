"""English singulars and plurals, to find "butterflies" in a caption for the class "butterfly", and the other way round.

Every spelling that may be right is offered, for a caption decides which one occurs: "scarfs" and "scarves", "persons" and
"people". A spelling that nobody writes does no harm, another word does: "caves" must not offer "cafe".
"""

import re

_PAIRS = (
    "person people, child children, foot feet, tooth teeth, goose geese, mouse mice, louse lice, ox oxen, quiz quizzes, "
    "leaf leaves, wolf wolves, calf calves, half halves, shelf shelves, bookshelf bookshelves, loaf loaves, scarf scarves, "
    "thief thieves, hoof hooves, dwarf dwarves, knife knives, life lives, wife wives"
)
IRREGULAR = dict(pair.split() for pair in _PAIRS.split(", "))
SINGULAR = {plural: singular for singular, plural in IRREGULAR.items()}

# (ending, what may stand in its place in the plural)
RULES = (
    (r"(?<=[^aeiou])y$", ("ies",)),
    (r"(?<=s|x|z)$|(?<=ch|sh)$", ("es",)),
    (r"(?<=o)$", ("s", "es")),
    (r"(?<![sxzo])(?<!ch|sh)(?<![^aeiou]y)$", ("s",)),
    (r"man$", ("men",)),  # and policeman, snowwoman
    (r"us$", ("i",)),
    (r"is$", ("es",)),
)


def plurals(word: str) -> frozenset[str]:
    """The plurals that a word in lower case may have."""
    regular = {re.sub(ending, new, word) for ending, news in RULES if re.search(ending, word) for new in news}
    return frozenset(regular | {IRREGULAR.get(word, word)} - {word})


def singulars(word: str) -> frozenset[str]:
    """The words in lower case that may have this plural."""
    ends = {"s": "", "es": "", "ies": "y", "men": "man", "i": "us"}
    stems = {word.removesuffix(end) + old for end, old in ends.items() if word.endswith(end)}
    stems |= {word.removesuffix("es") + "is"} if word.endswith("es") else set()
    return frozenset({stem for stem in stems if stem and word in plurals(stem)} | {SINGULAR.get(word, word)} - {word})
