"""Which classes does an image show? A tagger says it, and is chosen by a short text, see `tagger_named`."""

from collections.abc import Callable, Sequence
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
    # Each tagger is imported alone: most need torch or transformers.
    kind, _, rest = spec.partition(":")
    rest = rest.strip()
    match kind:
        case "given":
            from goca.tagging.fixed import FixedTagger

            return FixedTagger(rest)
        case "captions":
            from goca.tagging.captions import CaptionsTagger

            return CaptionsTagger(Path(rest))
        case "vlm":
            from goca.tagging.endpoint import ChatEndpoint
            from goca.tagging.vlm import VLMTagger

            endpoint = ChatEndpoint.from_environment()
            return VLMTagger(rest, endpoint, options.captions_file(), options.concurrency, options.prices)
        case "local":
            from goca.tagging.local import LocalTagger

            return LocalTagger(rest, options.captions_file(), options.batch)
        case "self":
            from goca.tagging.self_pruning import self_tagger

            return self_tagger(rest, options.segmenter)
    raise GocaError(
        f'no tagger "{spec}": there are given:NOUNS, captions:FILE, vlm:MODEL, local:FOLDER_OR_ID, self:error, '
        "self:map, and oracle where there is ground truth"
    )


def prepare(
    tagger: Tagger,
    samples: Sequence[TaggableImage],
    dataset: ImageCollection,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Let a `BatchTagger` tag many images at once; any other tags each image when it is asked for its caption."""
    if isinstance(tagger, BatchTagger):
        tagger.prepare(samples, dataset, progress)
