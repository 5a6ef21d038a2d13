"""What a vision-language model is asked for, in our words, and what of its answer is the caption."""

import re

from goca.evaluation.datasets.base import Dataset

MOST_WORDS = {"context": 35}
USUAL_WORDS = 20


def instruction(dataset: Dataset) -> str:
    """The request for one image's nouns, with the words of the data set's classes."""
    most = MOST_WORDS.get(dataset.name, USUAL_WORDS)
    known = ", ".join(one.name.lower() for one in dataset.categories)
    return (
        "List what this image shows, as nouns divided by commas. Name the foreground and the background: people, "
        "animals and objects, and also sky, ground, walls and the like. Use singular nouns, no verbs and no plurals, "
        f"none of them twice, and at most {most} words in all. Nouns that are parts of one object go into parentheses "
        "together, the object first, as in: (person, clothes), grass. Where one of the following words fits exactly, "
        f"use that very word: {known}. Answer with the list and nothing else."
    )


def caption_in(answer: str) -> str:
    """An answer without what a model thought aloud before it."""
    return re.sub(r"^.*</think>", "", answer, flags=re.DOTALL).strip()
