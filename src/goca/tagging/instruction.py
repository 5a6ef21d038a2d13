"""What a vision-language model is asked for."""

from collections.abc import Sequence

from goca.tagging.base import ImageCollection

MOST_WORDS = {"context": 35}
"""Words that an answer may have, by data set; `USUAL_WORDS` for every other."""
USUAL_WORDS = 20


def most_words(dataset: ImageCollection) -> int:
    """How many words an answer may have."""
    return MOST_WORDS.get(dataset.name, USUAL_WORDS)


def class_names(dataset: ImageCollection) -> tuple[str, ...]:
    """The names of a data set's classes."""
    return tuple(category.name for category in dataset.categories)


def instruction(classes: Sequence[str] | None = None, most: int = USUAL_WORDS, as_json: bool = False) -> str:
    """The request for one image's nouns.

    Args:
        classes: names that the answer should use where they fit; None or empty leaves the words to the model.
        most: words that the answer may have.
        as_json: whether to ask for an object, {"nouns": [...]}, instead of a list between commas.
    """
    words = ", ".join(name.lower() for name in classes or ())
    vocabulary = f" Where one of the following words fits exactly, use that very word: {words}." if words else ""
    form = 'as JSON, such as {"nouns": ["(person, clothes)", "grass"]}, and' if as_json else "with the list and"
    return (
        "List what this image shows, as nouns divided by commas. Name the foreground and the background: people, "
        "animals and objects, and also sky, ground, walls and the like. Use singular nouns, no verbs and no plurals, "
        f"none of them twice, and at most {most} words in all. Nouns that are parts of one object go into parentheses "
        f"together, the object first, as in: (person, clothes), grass.{vocabulary} Answer {form} nothing else."
    )
