"""Which classes does an image show? A tagger says it, and is chosen by a short text, see `tagger_named`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from goca.errors import GocaError
from goca.tagging.base import BatchTagger, ImageCollection, PaidTagger, Prices, TaggableImage, Tagger

if TYPE_CHECKING:
    from goca.segmenter import Segmenter

__all__ = ["BatchTagger", "PaidTagger", "Tagger", "TaggerOptions", "prepare", "tagger_named"]


@dataclass(frozen=True, kw_only=True)
class TaggerOptions:
    """What some taggers need beside their name.

    Attributes:
        captions: the .jsonl file in which vlm and local save their captions.
        prices: of vlm, see `goca.tagging.base.Prices`.
        concurrency: requests of vlm at a time, 1 or more.
        batch: images that local handles at a time, 1 or more.
        segmenter: whose model self uses.
    """

    captions: Path | None = None
    prices: Prices | None = None
    concurrency: int = 4
    batch: int = 8
    segmenter: "Segmenter | None" = None

    def captions_file(self) -> Path:
        """The file for captions.

        Raises:
            GocaError: none is given.
        """
        if self.captions is None:
            raise GocaError("this tagger saves its captions as it makes them: say where", "out")
        return self.captions


def tagger_named(spec: str, options: TaggerOptions = TaggerOptions()) -> Tagger:
    """A tagger by its name.

    Args:
        spec: "given:cat, grass"; "captions:FILE"; "vlm:MODEL"; "local:FOLDER_OR_ID"; "self:error" or "self:map", which
            may end in candidates, "self:map:cat, dog, grass".
        options: what the tagger needs beside.

    Raises:
        GocaError: there is no such tagger, or it cannot start.
    """
    kind, _, rest = spec.partition(":")
    if kind not in _MAKERS:
        raise GocaError(
            f'no tagger "{spec}": there are given:NOUNS, captions:FILE, vlm:MODEL, local:FOLDER_OR_ID, self:error, '
            "self:map and, where there is ground truth, oracle"
        )
    return _MAKERS[kind](rest.strip(), options)


def prepare(
    tagger: Tagger,
    samples: Sequence[TaggableImage],
    dataset: ImageCollection,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Let a `BatchTagger` tag many images at once; any other tags each image when it is asked for its caption."""
    if isinstance(tagger, BatchTagger):
        tagger.prepare(samples, dataset, progress)


def _given(rest: str, options: TaggerOptions) -> Tagger:
    from goca.tagging.fixed import FixedTagger

    return FixedTagger(rest)


def _captions(rest: str, options: TaggerOptions) -> Tagger:
    from goca.tagging.captions import CaptionsTagger

    return CaptionsTagger(Path(rest))


def _vlm(rest: str, options: TaggerOptions) -> Tagger:
    from goca.tagging.endpoint import ChatEndpoint
    from goca.tagging.vlm import VLMTagger

    endpoint = ChatEndpoint.from_environment()
    return VLMTagger(rest, endpoint, options.captions_file(), options.concurrency, options.prices)


def _local(rest: str, options: TaggerOptions) -> Tagger:
    from goca.tagging.local import LocalTagger

    return LocalTagger(rest, options.captions_file(), options.batch)


def _self(rest: str, options: TaggerOptions) -> Tagger:
    from goca.tagging.answers import parse
    from goca.tagging.self_pruning import SCORERS, SelfPruningTagger

    scorer, colon, candidates = rest.partition(":")
    nouns = tuple(noun for group in parse(candidates) for noun in group)
    if scorer not in SCORERS or (colon and not nouns):
        raise GocaError(f'no tagger "self:{rest}": there are {", ".join(f"self:{name}" for name in SCORERS)}')
    if options.segmenter is None:
        raise GocaError("to be its own tagger a segmenter has to be given: load one")
    return SelfPruningTagger(options.segmenter, SCORERS[scorer], nouns)


_MAKERS: Mapping[str, Callable[[str, TaggerOptions], Tagger]] = {
    "given": _given,
    "captions": _captions,
    "vlm": _vlm,
    "local": _local,
    "self": _self,
}
