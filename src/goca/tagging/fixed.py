"""The same list for every image."""

from dataclasses import dataclass

from goca.errors import GocaError
from goca.tagging.answers import parse, write
from goca.tagging.base import ImageCollection, TaggableImage


@dataclass(frozen=True)
class FixedTagger:
    """Gives every image the same caption, such as "cat, (person, hat)". Raises GocaError for one without a noun."""

    caption: str

    def __post_init__(self) -> None:
        if not parse(self.caption):
            raise GocaError('there are no nouns: write them after the colon, such as "given:cat, grass"')

    @property
    def name(self) -> str:
        return f"given: {write(parse(self.caption))}"

    def tag(self, sample: TaggableImage, dataset: ImageCollection) -> str:
        return self.caption
