"""Who says which classes an image shows.

A tagger is named by a short text, `tagger_named`; whoever it is stands beside every score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from goca.errors import GocaError
from goca.tagging.base import Costing, Done, Preparing, Prices, Tagger

if TYPE_CHECKING:
    from goca.evaluation.datasets.base import Dataset, Sample
    from goca.segmenter import Segmenter

__all__ = ["Costing", "Means", "Preparing", "Tagger", "prepare", "tagger_named"]


@dataclass(frozen=True)
class Means:
    """What some taggers need.

    captions: the .jsonl file in which vlm and local save what they say. prices: of vlm, see `Prices`. together: how
    many questions vlm asks at a time. batch: images local shows at a time. segmenter: whose model is self.
    """

    captions: Path | None = None
    prices: Prices | None = None
    together: int = 4
    batch: int = 8
    segmenter: "Segmenter | None" = None

    def file(self) -> Path:
        if self.captions is None:
            raise GocaError(
                "what this tagger says is saved while it works: give the run a folder (--out RUN), or "
                "Means(captions=FILE) from Python"
            )
        return self.captions


def tagger_named(spec: str, means: Means | None = None) -> Tagger:
    """A tagger by its name.

    "given:cat, grass"; "captions:FILE"; "vlm:MODEL"; "local:FOLDER_OR_ID"; "self:error" or "self:map", which
    may end in candidates, "self:map:cat, dog, grass". Raises GocaError for any other, and where it cannot start.
    """
    kind, _, rest = spec.partition(":")
    if kind not in _MAKERS:
        raise GocaError(f'no tagger "{spec}": there are oracle, given:NOUNS, captions:FILE, {_FORMS}')
    return _MAKERS[kind](rest.strip(), means or Means())


_FORMS = "vlm:MODEL, local:FOLDER_OR_ID, self:error, self:map"


def prepare(tagger: Tagger, samples: "Sequence[Sample]", dataset: "Dataset", done: Done = lambda: None) -> None:
    """Let a tagger that can tag many images at once do so; the others tag each when they are asked."""
    if isinstance(tagger, Preparing):
        tagger.prepare(samples, dataset, done)


def _given(rest: str, means: Means) -> Tagger:
    from goca.tagging.fixed import Given

    return Given(rest)


def _captions(rest: str, means: Means) -> Tagger:
    from goca.tagging.captions import Captions

    return Captions(Path(rest))


def _vlm(rest: str, means: Means) -> Tagger:
    from goca.tagging.endpoint import Endpoint
    from goca.tagging.vlm import VLM

    return VLM(rest, Endpoint.from_environment(), means.file(), means.together, means.prices)


def _local(rest: str, means: Means) -> Tagger:
    from goca.tagging.local import Local

    return Local(rest, means.file(), means.batch)


def _self(rest: str, means: Means) -> Tagger:
    from goca.evaluation.caption_nouns import parse
    from goca.tagging.self_pruning import JUDGES, SelfPruning

    judge, colon, listed = rest.partition(":")
    candidates = tuple(noun for group in parse(listed) for noun in group)
    if judge not in JUDGES or (colon and not candidates):
        raise GocaError(f'no tagger "self:{rest}": there are {", ".join(f"self:{name}" for name in JUDGES)}')
    if means.segmenter is None:
        raise GocaError("to be its own tagger a segmenter has to be given: load one")
    return SelfPruning(means.segmenter, JUDGES[judge], candidates)


_MAKERS: Mapping[str, Callable[[str, Means], Tagger]] = {
    "given": _given,
    "captions": _captions,
    "vlm": _vlm,
    "local": _local,
    "self": _self,
}
