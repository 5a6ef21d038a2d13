"""Protocols: what a score is a score of, as switches, with the two presets `honest` and `paper`.

Every figure is printed with the protocol that made it, whole. `paper` is what the authors' released code does; most of
it flatters, so it is never the default.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import UInt16

from goca.errors import GocaError
from goca.evaluation import caption_nouns
from goca.evaluation.caption_nouns import Policy
from goca.evaluation.datasets.base import VOID, Category, Dataset
from goca.evaluation.metrics import Counting
from goca.maths.background import Background, offset

SWEEP = tuple(step / 10 for step in range(-4, 5))
"""The thresholds of the oracle sweep."""
IGNORED, AS_BACKGROUND = "ignored", "background"
LEFT_OUT, ZERO = "left out", "count 0"
CLASSES, AND_BACKGROUND = "classes", "classes and background"
NONE, FIXED, ORACLE = "none", "fixed", "oracle"
NOUNS, SENTENCES = "nouns", "sentences"

Labels = UInt16[np.ndarray, "height width"]


@dataclass(frozen=True)
class Protocol:
    """What a score is a score of.

    - name: the preset, and which of its switches were changed.
    - dataset, split, images: what was segmented; images: how many, those left out included.
    - tags: who said which classes an image shows. nouns: what becomes of the nouns of a caption. captions: "nouns" or
      "sentences", how the classes are said to the model.
    - void: pixels without ground truth are "ignored", or taken for "background".
    - merged: (label, the label it counts as). as_background: categories that were made background.
    - absent: labels that no image has are "left out" of the mean or "count 0" in it.
    - counted: the mean is over the "classes", or over "classes and background".
    - threshold: "none": every pixel gets a class. "fixed": the recipe's background rule. "oracle": the `offset`
      background at the threshold from -0.4 to 0.4 that scores best on the evaluated images themselves.
    """

    name: str
    dataset: str
    split: str
    images: int
    tags: str
    nouns: Policy
    void: str = IGNORED
    merged: tuple[tuple[int, int], ...] = ()
    as_background: tuple[str, ...] = ()
    absent: str = LEFT_OUT
    counted: str = CLASSES
    threshold: str = NONE
    captions: str = NOUNS

    @property
    def counting(self) -> Counting:
        return Counting(background=self.counted == AND_BACKGROUND, absent=self.absent == ZERO)

    @property
    def labellings(self) -> tuple[str, ...]:
        """The names of the label maps that are counted for each image."""
        return (NONE,) if self.threshold == NONE else (FIXED, *map(str, SWEEP))

    @property
    def backgrounds(self) -> tuple[Background, ...]:
        """Those of the sweep, in the order of `labellings` without the first."""
        return () if self.threshold == NONE else tuple(Background(offset, threshold) for threshold in SWEEP)

    def truth(self, labels: Labels) -> Labels:
        """Ground truth as it is counted: void is background or stays `VOID`, merged labels are one."""
        out = self.found(labels)
        if self.void == AS_BACKGROUND:
            out[out == VOID] = 0
        return out

    def found(self, labels: UInt16[np.ndarray, "*pixels"]) -> UInt16[np.ndarray, "*pixels"]:
        """Labels with the merged ones as one; a copy."""
        out = labels.copy()
        for label, other in self.merged:
            out[labels == label] = other
        return out

    def categories(self, categories: Sequence[Category]) -> tuple[Category, ...]:
        """Those that a caption can name: the words for a merged category stand for the one it counts as."""
        words = {label: list(one.synonyms) for label, one in enumerate(categories, start=1)}
        for label, other in self.merged:
            words[other] += [categories[label - 1].name, *words.pop(label)]
        return tuple(
            Category(one.name, tuple(words[label])) for label, one in enumerate(categories, start=1) if label in words
        )

    def to_json(self) -> dict[str, Any]:
        """Every switch, as plain numbers, strings, lists and dicts."""
        return {**asdict(self), "merged": [list(pair) for pair in self.merged]}

    def lines(self) -> list[str]:
        """One line a switch, for people."""
        said = self.to_json()
        policy = said.pop("nouns")
        said["nouns"] = ", ".join(f"{name} {_plain(value)}" for name, value in policy.items())
        return [f"{name.replace('_', ' ')}: {_plain(value)}" for name, value in said.items()]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return f"{_plain(value['name'])} ({_plain(value['synonyms'])})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)


def honest(dataset: Dataset, tags: str) -> Protocol:
    """Void ignored, classes that never occur left out, a fixed threshold, nothing from the ground truth but by the
    tagger, which is named. The background is one of the labels where the data set has it.
    """
    counted, threshold = (AND_BACKGROUND, FIXED) if dataset.background else (CLASSES, NONE)
    images = len(dataset.samples)
    return Protocol(
        "honest",
        dataset.name,
        dataset.split,
        images,
        tags,
        caption_nouns.HONEST,
        counted=counted,
        threshold=threshold,
    )


def paper(dataset: Dataset, tags: str) -> Protocol:
    """As the authors' released code scores a data set; GocaError for one that it does not know."""
    policy = caption_nouns.paper(dataset.name)
    return replace(
        honest(dataset, tags),
        name="paper",
        nouns=policy,
        void=AS_BACKGROUND,
        merged=dataset.merges,
        absent=ZERO,
        counted=AND_BACKGROUND,
        threshold=ORACLE,
    )


PRESETS: Mapping[str, Callable[[Dataset, str], Protocol]] = {"honest": honest, "paper": paper}
PAPER_SPLITS = {"voc": "train", "context": "train"}
"""Where the released code evaluates on another split than the one for validation."""


def split_of(preset: str, dataset: str, asked: str | None) -> str | None:
    """The split that a preset evaluates, unless another is asked for; None for the data set's own choice."""
    if preset not in PRESETS:
        raise GocaError(f'no protocol "{preset}": there are {", ".join(PRESETS)}')
    return asked if asked is not None or preset != "paper" else PAPER_SPLITS.get(dataset)


def changed(protocol: Protocol, switches: Sequence[str]) -> Protocol:
    """The protocol with some switches set, each as "name=value"; its name says which.

    Raises GocaError for a switch or value that there is not, naming those that there are.
    """
    names = []
    for switch in switches:
        name, _, value = switch.partition("=")
        name, value = name.strip().lower(), value.strip().lower()
        if name not in SWITCHES:
            raise GocaError(f'no switch "{name}": there are {", ".join(SWITCHES)}')
        if value not in SWITCHES[name]:
            raise GocaError(f'no value "{value}" for the switch {name}: there are {", ".join(SWITCHES[name])}')
        protocol = SWITCHES[name][value](protocol)
        names.append(f"{name}={value}")
    return replace(protocol, name=f"{protocol.name}, but {', '.join(names)}") if names else protocol


def _field(name: str, value: Any) -> Callable[[Protocol], Protocol]:
    return lambda protocol: replace(protocol, **{name: value})


def _noun(name: str, value: Any) -> Callable[[Protocol], Protocol]:
    return lambda protocol: replace(protocol, nouns=replace(protocol.nouns, **{name: value}))


SWITCHES: Mapping[str, Mapping[str, Callable[[Protocol], Protocol]]] = {
    "void": {"ignored": _field("void", IGNORED), "background": _field("void", AS_BACKGROUND)},
    "absent": {"left-out": _field("absent", LEFT_OUT), "zero": _field("absent", ZERO)},
    "counted": {"classes": _field("counted", CLASSES), "and-background": _field("counted", AND_BACKGROUND)},
    "threshold": {
        "none": _field("threshold", NONE),
        "fixed": _field("threshold", FIXED),
        "oracle": _field("threshold", ORACLE),
    },
    "suffix": {"none": _noun("suffix", ()), "background": _noun("suffix", ("background",))},
    "complete": {"no": _noun("complete", False), "yes": _noun("complete", True)},
    "true-only": {"no": _noun("true_only", False), "yes": _noun("true_only", True)},
    "keep-parts": {"no": _noun("keep_parts", False), "yes": _noun("keep_parts", True)},
    "odd-synonyms": {"no": _noun("synonyms", ()), "yes": _noun("synonyms", caption_nouns.ODD_SYNONYMS)},
}
"""{switch: {value: what it does to a protocol}}, as the command line names them."""
