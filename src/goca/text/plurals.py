"""English singulars and plurals, to find "butterflies" in a caption for the class "butterfly", and the other way round.

Every possible spelling is offered, because the caption decides which of them occurs: "scarfs" and "scarves",
"persons" and "people". An unused spelling does no harm, another word would: "caves" must not offer "cafe".
"""

import re

_PAIRS = (
    "person people, child children, foot feet, tooth teeth, goose geese, mouse mice, louse lice, ox oxen, leaf leaves, "
    "wolf wolves, calf calves, half halves, shelf shelves, bookshelf bookshelves, loaf loaves, scarf scarves, "
    "thief thieves, hoof hooves, dwarf dwarves, knife knives, life lives, wife wives, quiz quizzes"
)
IRREGULAR = dict(pair.split() for pair in _PAIRS.split(", "))
SINGULARS = {plural: singular for singular, plural in IRREGULAR.items()}

# (singular ending, plural ending) beside the regular ones: snowman, cactus, axis.
CLASSICAL = (("man", "men"), ("us", "i"), ("is", "es"))
ENDINGS = (("", "s"), ("", "es"), ("y", "ies"), *CLASSICAL)


def plurals(word: str) -> frozenset[str]:
    """The plurals that a word in lower case may have."""
    if re.search(r"[^aeiou]y$", word):
        regular = {word[:-1] + "ies"}
    elif re.search(r"(?:s|x|z|ch|sh)$", word):
        regular = {word + "es"}
    elif word.endswith("o"):
        regular = {word + "s", word + "es"}
    else:
        regular = {word + "s"}
    classical = {word.removesuffix(singular) + plural for singular, plural in CLASSICAL if word.endswith(singular)}
    return frozenset(regular | classical | {IRREGULAR.get(word, word)}) - {word}


def singulars(word: str) -> frozenset[str]:
    """The words whose plural this word in lower case may be."""
    stems = {word.removesuffix(plural) + singular for singular, plural in ENDINGS if word.endswith(plural)}
    return frozenset({stem for stem in stems if stem and word in plurals(stem)} | {SINGULARS.get(word, word)}) - {word}
