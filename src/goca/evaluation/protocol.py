"""Evaluation protocols: every choice that affects a score, with the two presets `honest` and `paper`.

Every figure is printed with its complete protocol. `paper` is what the authors' released code does; most of
its choices raise scores, so it is never the default.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt16

from goca.errors import GocaError
from goca.evaluation.choices import SWITCHES, CaptionStyle, switch_named
from goca.evaluation.datasets.base import VOID, Dataset, LabelMap
from goca.evaluation.metrics import Counting
from goca.maths.background import Background, offset
from goca.tagging.caption_nouns import HONEST, Policy
from goca.text.nouns import Category

SWEEP = tuple(step / 10 for step in range(-4, 5))
"""The thresholds of the oracle sweep."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The choices that define a score.

    Attributes:
        name: The preset, and which of its switches were changed.
        dataset: Name of the data set.
        split: The split that was evaluated.
        images: Number of images, including those left out.
        tags: Who says which classes an image shows.
        nouns: What becomes of the nouns of a caption.
        void: Whether pixels without ground truth are "ignored", or count as "background".
        merged: (label, the label that it counts as).
        as_background: Categories that count as background.
        absent: Whether labels that occur in no image are "left out" of the mean, or "count 0" in it.
        counted: Whether the mean is over the "classes", or over "classes and background".
        threshold: "none": every pixel gets a class. "fixed": the recipe's background rule. "oracle": the `offset`
            background at the threshold from -0.4 to 0.4 that scores best on the evaluated images themselves.
        captions: The style in which prompts name the classes.
    """

    name: str
    dataset: str
    split: str
    images: int
    tags: str
    nouns: Policy
    void: Literal["ignored", "background"] = "ignored"
    merged: tuple[tuple[int, int], ...] = ()
    as_background: tuple[str, ...] = ()
    absent: Literal["left out", "count 0"] = "left out"
    counted: Literal["classes", "classes and background"] = "classes"
    threshold: Literal["none", "fixed", "oracle"] = "none"
    captions: CaptionStyle = "nouns"

    @property
    def counting(self) -> Counting:
        """Which labels the mean is over."""
        return Counting(background=self.counted == "classes and background", absent=self.absent == "count 0")

    @property
    def labellings(self) -> tuple[str, ...]:
        """The names of the label maps that are counted for each image."""
        return ("none",) if self.threshold == "none" else ("fixed", *map(str, SWEEP))

    @property
    def backgrounds(self) -> tuple[Background, ...]:
        """The backgrounds of the sweep, in the order of `labellings` without the first."""
        return () if self.threshold == "none" else tuple(Background(offset, threshold) for threshold in SWEEP)

    def truth(self, labels: LabelMap) -> LabelMap:
        """Ground truth as it is counted: void becomes background or stays `VOID`, and labels are merged."""
        out = self.merge(labels)
        if self.void == "background":
            out[out == VOID] = 0
        return out

    def merge(self, labels: UInt16[np.ndarray, "*pixels"]) -> UInt16[np.ndarray, "*pixels"]:
        """A copy of labels in which merged ones are replaced."""
        out = labels.copy()
        for label, other in self.merged:
            out[labels == label] = other
        return out

    def categories(self, categories: Sequence[Category]) -> tuple[Category, ...]:
        """The categories that a caption can name: words for a merged category name the one that it counts as."""
        words = {label: list(category.synonyms) for label, category in enumerate(categories, start=1)}
        for label, other in self.merged:
            words[other] += [categories[label - 1].name, *words.pop(label)]
        return tuple(Category(categories[label - 1].name, tuple(words[label])) for label in sorted(words))

    def to_json(self) -> dict[str, Any]:
        """The protocol as plain numbers, strings, lists and dicts."""
        return {**asdict(self), "merged": [list(pair) for pair in self.merged]}

    def with_rows(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Rows of scores, which are dataclasses, and their protocol, as JSON."""
        return {"rows": [asdict(row) for row in rows], "protocol": self.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Protocol":
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for what is not a protocol."""
        policy = dict(value["nouns"])
        policy["synonyms"] = tuple(Category(word["name"], tuple(word["synonyms"])) for word in policy["synonyms"])
        policy["suffix"] = tuple(policy["suffix"])
        lists = {"as_background": tuple(value["as_background"]), "merged": tuple((a, b) for a, b in value["merged"])}
        return cls(**{**value, **lists, "nouns": Policy(**policy)})

    def lines(self) -> list[str]:
        """One line per switch, in words."""
        switches = {"protocol": self.name, **self.to_json()}
        del switches["name"]
        policy = switches.pop("nouns")
        switches["nouns"] = ", ".join(f"{name} {_plain(value)}" for name, value in policy.items())
        return [f"{name.replace('_', ' ')}: {_plain(value)}" for name, value in switches.items()]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return f"{_plain(value['name'])} ({_plain(value['synonyms'])})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)


def honest(dataset: Dataset, tags: str) -> Protocol:
    """Void is ignored, classes that never occur are left out, the threshold is fixed, and only the named tagger
    may use the ground truth. The background is a label if the data set has it.
    """
    return Protocol(
        name="honest",
        dataset=dataset.name,
        split=dataset.split,
        images=len(dataset.samples),
        tags=tags,
        nouns=HONEST,
        counted="classes and background" if dataset.background else "classes",
        threshold="fixed" if dataset.background else "none",
    )


def paper_policy(dataset: str) -> Policy:
    """The policy of the released code for a data set, which raises scores: classes come from the ground truth."""
    if dataset not in _PAPER:
        raise GocaError(
            f'no "paper" protocol for "{dataset}": there are protocols for {", ".join(_PAPER)}; use "honest"'
        )
    suffix, complete = _PAPER[dataset]
    return Policy(name="paper", suffix=suffix, complete=complete, true_only=True, keep_parts=False)


# Data set: (what is appended to every caption, whether missed classes are added).
_PAPER: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "voc": (("background",), True),
    "context": ((), True),
    "coco-object": (("background",), False),
    "coco-stuff-27": ((), True),
    "coco-stuff-171": ((), True),  # not evaluated by the authors: treated like the 27
    "cityscapes": ((), False),
    "ade20k": (("background",), False),
}


def paper(dataset: Dataset, tags: str) -> Protocol:
    """The protocol of the authors' released code for a data set. Raises GocaError for one that it does not cover."""
    return replace(
        honest(dataset, tags),
        name="paper",
        nouns=paper_policy(dataset.name),
        void="background",
        merged=dataset.merges,
        absent="count 0",
        counted="classes and background",
        threshold="oracle",
    )


PRESETS: Mapping[str, Callable[[Dataset, str], Protocol]] = {"honest": honest, "paper": paper}


def changed(protocol: Protocol, switches: Sequence[str]) -> Protocol:
    """The protocol with some switches changed, each as "name=value"; its name lists them.

    Raises:
        GocaError: A switch or value is unknown; the message lists the known ones.
    """
    changes = []
    for name, value in map(switch_named, switches):
        field = name.replace("-", "_").removeprefix("odd_")  # odd synonyms are a field of the policy
        change: dict[str, Any] = {field: SWITCHES[name][value]}
        if field in Policy.__dataclass_fields__:
            change = {"nouns": replace(protocol.nouns, **change)}
        protocol = replace(protocol, **change)
        changes.append(f"{name}={value}")
    return replace(protocol, name=f"{protocol.name}, but {', '.join(changes)}") if changes else protocol
