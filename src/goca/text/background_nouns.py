"""Nouns for the surroundings of the classes: they join the prompt, and their pixels become background.

A pixel is divided among the nouns of the prompt only, so that without these a class takes everything that was not
named.
"""

from collections.abc import Sequence

from goca.text.nouns import Noun
from goca.text.spelling import forms, plain

# The paper adds "background" to the classes of the data sets that have one. The others are the large kinds of stuff
# that COCO-Stuff and ADE20K annotate, one short common word for each, indoors and outdoors; background lists of
# training-free segmenters on CLIP consist of them too. Things are left out, because each may be a wanted class, and
# the list is short, because it takes up room in every prompt. What covers most of images comes first: if there is no
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
    """The listed nouns that do not compete with a class: not one of them, singular or plural, nor related to one.

    A class of several words is judged by its last one: a "pine tree" is a tree.
    """
    words = {word for noun in classes for word in noun.words}
    wanted = {form for word in words for name in (word, plain(word).split(" ")[-1]) for form in forms(name)}
    rivals = wanted.union(*(_RELATED[name] for name in wanted & _RELATED.keys()))
    return tuple(
        Noun(name, (name,))
        for name in listed
        if name not in rivals and wanted.isdisjoint(_RELATED.get(name, frozenset()))
    )
