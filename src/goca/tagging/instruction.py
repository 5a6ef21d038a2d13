"""What a vision-language model is asked for."""

from goca.tagging.base import ImageCollection

MOST_WORDS = {"context": 35}
"""Words that an answer may have, by data set; `USUAL_WORDS` for every other."""
USUAL_WORDS = 20


def most_words(dataset: ImageCollection) -> int:
    """How many words an answer may have."""
    return MOST_WORDS.get(dataset.name, USUAL_WORDS)


def instruction(dataset: ImageCollection, as_json: bool = False) -> str:
    """The request for one image's nouns.

    Args:
        dataset: the answer should use the names of its classes where they fit; without any the words are the model's.
        as_json: whether to ask for an object, {"nouns": [...]}, instead of a list between commas.
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
