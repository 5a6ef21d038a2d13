"""Which classes does an image show? A tagger says it, and is chosen by a short text, see `tagger_named`."""

from pathlib import Path
from typing import TYPE_CHECKING

from goca.errors import GocaError
from goca.tagging.base import BatchTagger, PaidTagger, Prices, Tagger

if TYPE_CHECKING:
    from goca.segmenter import Segmenter

__all__ = ["BatchTagger", "PaidTagger", "Tagger", "check_tagger", "tagger_named"]

KINDS = ("given", "captions", "vlm", "local", "self")


def check_tagger(spec: str) -> None:
    """Raise GocaError where `tagger_named` knows no such tagger or cannot read its file; no library is loaded."""
    kind, _, rest = spec.partition(":")
    if kind in ("given", "captions"):
        tagger_named(spec)
    if kind not in KINDS:
        raise _unknown(spec)
    if kind == "self" and rest.strip().partition(":")[0] not in ("error", "map"):
        raise GocaError(f'no tagger "{spec}": there are self:error, self:map')


def tagger_named(
    spec: str,
    *,
    captions: Path | None = None,
    prices: Prices | None = None,
    concurrency: int = 4,
    batch: int = 8,
    segmenter: "Segmenter | None" = None,
) -> Tagger:
    """A tagger by its name.

    Args:
        spec: "given:cat, grass"; "captions:FILE"; "vlm:MODEL"; "local:FOLDER_OR_ID"; "self:error" or "self:map", which
            may end in candidates, "self:map:cat, dog, grass".
        captions: the .jsonl file in which vlm and local save their captions.
        prices: of vlm.
        concurrency: requests of vlm at a time, 1 or more.
        batch: images that local handles at a time, 1 or more.
        segmenter: whose model self uses.

    Raises:
        GocaError: there is no such tagger, or it cannot start.
    """
    # Each tagger is imported alone: most need torch or transformers.
    kind, _, rest = spec.partition(":")
    rest = rest.strip()
    match kind, captions:
        case "given", _:
            from goca.tagging.fixed import FixedTagger

            return FixedTagger(rest)
        case "captions", _:
            from goca.tagging.captions import CaptionsTagger

            return CaptionsTagger(Path(rest))
        case "vlm" | "local", None:
            raise GocaError("this tagger saves its captions as it makes them: say where", "out")
        case "vlm", Path():
            from goca.tagging.endpoint import ChatEndpoint
            from goca.tagging.vlm import VLMTagger

            return VLMTagger(rest, ChatEndpoint.from_environment(), captions, concurrency, prices)
        case "local", Path():
            from goca.tagging.local import LocalTagger

            return LocalTagger(rest, captions, batch)
        case "self", _:
            from goca.tagging.self_pruning import self_tagger

            return self_tagger(rest, segmenter)
    raise _unknown(spec)


def _unknown(spec: str) -> GocaError:
    return GocaError(
        f'no tagger "{spec}": there are given:NOUNS, captions:FILE, vlm:MODEL, local:FOLDER_OR_ID, self:error, '
        "self:map, and oracle where there is ground truth",
        "tagger",
    )
