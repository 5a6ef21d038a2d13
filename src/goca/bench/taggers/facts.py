"""What a tagger is to the bench: who says which nouns a picture shows."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from goca.bench.datasets.facts import Dataset, Sample

Done = Callable[[], None]
"""Called once for every picture that is done with."""


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


@runtime_checkable
class Preparing(Tagger, Protocol):
    """A tagger that does many pictures faster than one after the other."""

    def prepare(self, samples: Sequence[Sample], dataset: Dataset, done: Done) -> None:
        """Tag pictures ahead, so that `tag` knows their captions.

        Raises GocaError where it cannot go on; what is done is kept. A picture that alone is at fault is left to `tag`.
        """
        ...
