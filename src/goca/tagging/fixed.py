"""One list for every image."""

from dataclasses import dataclass

from goca.errors import GocaError
from goca.evaluation.caption_nouns import parse, write
from goca.evaluation.datasets.base import Dataset, Sample


@dataclass(frozen=True)
class Given:
    """The same caption for every image; GocaError for one without a noun."""

    caption: str

    def __post_init__(self) -> None:
        if not parse(self.caption):
            raise GocaError('no nouns are given: write them behind the colon, such as "given:cat, grass"')

    @property
    def name(self) -> str:
        return f"given: {write(parse(self.caption))}"

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        return self.caption
