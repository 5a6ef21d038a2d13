"""Nouns that the surroundings of what is wanted are made of: they are asked for too, and their pixels get no label.

A pixel is shared out among the nouns of the prompt alone, so that without these a wanted class takes all that nobody
named.
"""

from collections.abc import Sequence

from goca.text.nouns import Noun
from goca.text.spelling import forms, plain

# The paper asks "background" beside the classes of the data sets that have one. The others are the large kinds of stuff
# that COCO-Stuff and ADE20K annotate, one short common word for each, indoors and outdoors; background lists of
# training-free segmenters on CLIP consist of them too. Things are left out, for each may be what somebody wants, and
# the list is short, because it takes up room in every prompt. What covers most of images comes first: where there is no
# room, the last are left out.
BACKGROUND_NOUNS = (
    "background",
    "wall",
    "sky",
    "tree",
    "grass",
    "floor",
    "ground",
    "water",
    "building",
    "road",
    "vegetation",
    "ceiling",
    "mountain",
    "snow",
)
"""The background classes of a model without a list of its own."""

_WORDS = {
    "background": "backdrop surroundings environment scenery",
    "wall": "brick brickwork tile plaster wallpaper facade",
    "sky": "air cloud heaven horizon fog mist sunset sunrise",
    "tree": "plant forest woodland jungle grove orchard palm pine oak fir spruce birch willow foliage branch trunk",
    "grass": "lawn meadow turf field pasture prairie plant",
    "floor": "flooring parquet carpet rug tile linoleum",
    "ground": "earth soil dirt land terrain mud sand gravel field grass lawn beach desert floor road pavement path",
    "water": "sea ocean lake river pond pool stream waterfall wave puddle",
    "building": "house home cottage skyscraper tower church castle barn shed architecture facade",
    "road": "street asphalt pavement highway path lane track crosswalk driveway runway tarmac",
    "vegetation": "plant tree grass bush shrub hedge flower leaf moss fern weed ivy vine crop garden forest woodland "
    "jungle field lawn meadow greenery foliage flora palm pine",
    "mountain": "hill rock cliff volcano peak ridge valley canyon",
    "snow": "ice frost slush glacier blizzard",
    "sand": "beach desert dune",
    "brick": "brickwork",
    "wood": "plank timber lumber board",
}
_RELATED = {noun: frozenset(words.split()) for noun, words in _WORDS.items()}
"""{noun: its synonyms, kinds and parts}, for the list above and the stuff of the bundled models, in the singular."""


def background_nouns(listed: Sequence[str], classes: Sequence[Noun]) -> tuple[Noun, ...]:
    """The listed nouns that do not compete with a class: none that is wanted, in any number, nor one related to it.

    A class of several words is what its last one says: a "pine tree" is a tree.
    """
    words = {word for noun in classes for word in noun.words}
    wanted = {form for word in words for name in (word, plain(word).split(" ")[-1]) for form in forms(name)}
    rivals = wanted.union(*(_RELATED[name] for name in wanted & _RELATED.keys()))
    return tuple(
        Noun(name, (name,))
        for name in listed
        if name not in rivals and wanted.isdisjoint(_RELATED.get(name, frozenset()))
    )
