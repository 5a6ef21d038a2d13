"""Which classes does an image show? A tagger says it, and is chosen by a short text, see `tagger_named`."""

import os
import re
from pathlib import Path

from goca.errors import GocaError
from goca.tagging.base import BatchTagger, PaidTagger, Prices, Tagger

__all__ = ["BatchTagger", "PaidTagger", "Tagger", "check_tagger", "is_self", "self_candidates", "tagger_named"]

KINDS = ("given", "captions", "vlm", "local", "clip", "self")
GIVEN = "given"
"""Where a segmenter is given classes: no tagger, all of them are there."""
SELF = "self"
"""The tagger of `goca.self_tagging`, which may end in a colon and candidates."""


def check_tagger(spec: str) -> None:
    """Raise GocaError where `tagger_named` knows no such tagger or cannot read its file; no library is loaded."""
    kind, _, rest = spec.partition(":")
    if kind in ("given", "captions"):
        tagger_named(spec)
    if kind not in KINDS:
        raise _unknown(spec)
    if kind in ("local", "clip"):
        check_model_name(rest.strip())
    if kind == SELF:
        self_candidates(spec)


def tagger_named(
    spec: str,
    *,
    captions: Path | None = None,
    prices: Prices | None = None,
    concurrency: int = 4,
    batch: int = 8,
) -> Tagger:
    """A tagger by its name; `goca.self_tagging.tagger_for` also makes those that are a segmenter's own model.

    Args:
        spec: "given:cat, grass"; "captions:FILE"; "vlm:MODEL"; "local:FOLDER_OR_ID"; "clip:FOLDER_OR_ID".
        captions: the .jsonl file in which vlm and local save their captions.
        prices: of vlm.
        concurrency: requests of vlm at a time, 1 or more.
        batch: images that local and clip handle at a time, 1 or more.

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
        case "clip", _:
            from goca.tagging.clip import CLIPTagger

            return CLIPTagger(rest, batch)
    raise _unknown(spec)


def check_model_name(model: str) -> None:
    """Raise GocaError for what is neither a folder nor the form of a Hub id."""
    if not model:
        raise GocaError("no model is named: write a folder or a Hub id behind the colon", "tagger")
    if not os.path.isdir(model) and not re.fullmatch(r"[^./~][^/]*/[^/]+", model):  # noqa: PTH112 - as of any text
        raise GocaError(f'no model "{model}": give a folder, or a Hub id such as owner/name', "tagger")


def self_candidates(spec: str) -> tuple[str, ...]:
    """The candidates that "self:NOUNS" names, none for "self"; GocaError for a colon with nothing behind it."""
    from goca.tagging.answers import parse

    _, colon, listed = spec.partition(":")
    nouns = tuple(noun for group in parse(listed) for noun in group)
    if colon and not nouns:
        raise GocaError('no candidates are named: write them behind the colon, such as "self:cat, dog"', "tagger")
    return nouns


def is_self(spec: str) -> bool:
    """Whether the name of a tagger is that of the segmenter's own model."""
    return spec.partition(":")[0] == SELF


def _unknown(spec: str) -> GocaError:
    return GocaError(
        f'no tagger "{spec}": there are given:NOUNS, captions:FILE, clip:FOLDER_OR_ID, vlm:MODEL, '
        "local:FOLDER_OR_ID, self, self:NOUNS, and oracle where there is ground truth",
        "tagger",
    )
