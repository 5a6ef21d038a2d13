"""Taggers say which classes an image shows; a short text chooses one, see `tagger_named`."""

import os
import re
from pathlib import Path

from goca.errors import GocaError
from goca.tagging.base import BatchTagger, PaidTagger, Prices, Tagger

__all__ = ["BatchTagger", "PaidTagger", "Tagger", "check_tagger", "is_self", "self_candidates", "tagger_named"]

KINDS = ("given", "captions", "vlm", "local", "clip", "self")
GIVEN = "given"
"""With given classes: no tagger, the image is taken to show all of them."""
SELF = "self"
"""The tagger of `goca.self_tagging`, which may be followed by a colon and candidates."""


def check_tagger(spec: str) -> None:
    """Raise GocaError for an unknown tagger, or if its file cannot be read; no library is loaded."""
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
    """A tagger by its name; `goca.self_tagging.tagger_for` also creates those that use a segmenter's own model.

    Args:
        spec: "given:cat, grass"; "captions:FILE"; "vlm:MODEL"; "local:FOLDER_OR_ID"; "clip:FOLDER_OR_ID".
        captions: Path of the .jsonl file in which vlm and local save their captions.
        prices: Prices of vlm.
        concurrency: Concurrent requests of vlm, 1 or more.
        batch: Images per batch of local and clip, 1 or more.

    Raises:
        GocaError: The tagger is unknown, or cannot start.
    """
    # Each tagger is imported separately: most need torch or transformers.
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
            raise GocaError("this tagger saves its captions: give an output folder", "out")
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
    """Raise GocaError for a name that is neither a folder nor has the form of a Hub id."""
    if not model:
        raise GocaError("no model is named: write a folder or a Hub id after the colon", "tagger")
    if not os.path.isdir(model) and not re.fullmatch(r"[^./~][^/]*/[^/]+", model):  # noqa: PTH112 - as of any text
        raise GocaError(f'no model "{model}": give a folder, or a Hub id such as owner/name', "tagger")


def self_candidates(spec: str) -> tuple[str, ...]:
    """The candidates that "self:NOUNS" names, () for "self". Raises GocaError for a colon without candidates."""
    from goca.tagging.answers import parse

    _, colon, listed = spec.partition(":")
    nouns = tuple(noun for group in parse(listed) for noun in group)
    if colon and not nouns:
        raise GocaError('there are no candidates: name them after the colon, such as "self:cat, dog"', "tagger")
    return nouns


def is_self(spec: str) -> bool:
    """Whether a tagger's name stands for the segmenter's own model."""
    return spec.partition(":")[0] == SELF


def _unknown(spec: str) -> GocaError:
    return GocaError(
        f'no tagger "{spec}": choose from given:NOUNS, captions:FILE, clip:FOLDER_OR_ID, vlm:MODEL, '
        "local:FOLDER_OR_ID, self, self:NOUNS, or, only to evaluate, oracle (the ground truth)",
        "tagger",
    )
