"""What a tagger is to the bench: who says which nouns a picture shows."""

from typing import Protocol, runtime_checkable

from goca.bench.datasets.facts import Dataset, Sample


@runtime_checkable
class Tagger(Protocol):
    """Says what is in a picture, as a list of nouns: "person, clothes, grass".

    name: what a score says of it, such as "oracle" or "vlm gpt-4o".
    """

    @property
    def name(self) -> str: ...

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        """The caption of one picture; parts of one object may stand in parentheses: "(person, clothes), grass".

        Raises GocaError where the picture cannot be tagged.
        """
        ...
