"""The instruction for a vision-language model."""

from goca.tagging.base import ImageCollection

MOST_WORDS = {"context": 35}
"""Most words of an answer, by data set; `USUAL_WORDS` for all others."""
USUAL_WORDS = 20


def most_words(dataset: ImageCollection) -> int:
    """The number of words that an answer may have."""
    return MOST_WORDS.get(dataset.name, USUAL_WORDS)


def instruction(dataset: ImageCollection, as_json: bool = False) -> str:
    """The instruction to list an image's nouns.

    Args:
        dataset: The answer should use the names of its classes if they fit; without classes the model is free.
        as_json: Whether to ask for an object, {"nouns": [...]}, instead of a comma-separated list.
    """
    words = ", ".join(name.lower() for name in dataset.class_names)
    vocabulary = f" Where one of the following words fits exactly, use that very word: {words}." if words else ""
    form = 'as JSON, such as {"nouns": ["(person, clothes)", "grass"]}, and' if as_json else "with the list and"
    return (
        "List what this image shows, as nouns divided by commas. Name the foreground and the background: people, "
        "animals and objects, and also sky, ground, walls and the like. Use singular nouns, no verbs and no plurals, "
        f"none of them twice, and at most {most_words(dataset)} words in all. Nouns that are parts of one object go "
        f"into parentheses together, the object first, as in: (person, clothes), grass.{vocabulary} Answer {form} "
        "nothing else."
    )
