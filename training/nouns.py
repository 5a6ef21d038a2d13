"""The world's nouns: 24 things, 8 stuffs, and the words for them.

The order is part of the data format: a label map holds `LABEL[noun]`, and 0 is void (never drawn on
purpose).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """One class: its plural, other words for it, and the emoji that show it (hexadecimal code points)."""

    name: str
    plural: str
    synonyms: tuple[str, ...] = ()
    glyphs: tuple[str, ...] = ()


def _thing(name: str, glyphs: str, *synonyms: str, plural: str = "") -> Noun:
    return Noun(name, plural or name + "s", synonyms, tuple(glyphs.split()))


THINGS = (
    _thing("cat", "1F408 1F431", "kitten", "kitty"),
    _thing("dog", "1F415 1F436", "puppy", "hound"),
    _thing("cow", "1F404 1F42E", "calf"),
    _thing("pig", "1F416 1F437", "piglet", "hog"),
    _thing("elephant", "1F418"),
    _thing("frog", "1F438", "toad"),
    _thing("turtle", "1F422", "tortoise"),
    _thing("fish", "1F41F 1F420", plural="fish"),
    _thing("bird", "1F426 1F54A-FE0F", "dove"),
    _thing("penguin", "1F427"),
    _thing("butterfly", "1F98B", plural="butterflies"),
    _thing("car", "1F697 1F699", "automobile"),
    _thing("bus", "1F68C 1F68D", "coach", plural="buses"),
    _thing("boat", "26F5 1F6A4", "ship"),
    _thing("airplane", "2708-FE0F 1F6E9-FE0F", "plane", "aircraft"),
    _thing("rocket", "1F680", "spaceship"),
    _thing("house", "1F3E0 1F3E1", "home", "cottage"),
    _thing("tree", "1F333 1F332"),
    _thing("cactus", "1F335", plural="cacti"),
    _thing("mushroom", "1F344", "toadstool"),
    _thing("apple", "1F34E 1F34F"),
    _thing("banana", "1F34C"),
    _thing("pizza", "1F355"),
    _thing("ball", "26BD 1F3C0"),
)
STUFF = (
    Noun("grass", "grass", ("lawn", "meadow")),
    Noun("sand", "sand", ("beach", "desert")),
    Noun("water", "water", ("sea", "lake")),
    Noun("sky", "sky", ("air", "clouds")),
    Noun("snow", "snow", ("ice",)),
    Noun("brick", "bricks", ("brickwork",)),
    Noun("wood", "wood", ("planks", "timber")),
    Noun("road", "road", ("street", "asphalt")),
)
NOUNS = THINGS + STUFF
NAMES = tuple(noun.name for noun in NOUNS)
NOUN = {noun.name: noun for noun in NOUNS}
LABEL = {name: label for label, name in enumerate(NAMES, start=1)}
