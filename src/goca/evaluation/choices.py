"""What a user may choose by name in an evaluation. No torch, so that a mistyped name is answered at once."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from goca.errors import GocaError
from goca.text.nouns import Category

PRESET_NAMES = ("honest", "paper")
"""The keys of `goca.evaluation.protocol.PRESETS`."""
DENOISING = "denoising"
"""Where the folder that a scaling study has of a model keeps its denoising loss."""
CaptionStyle = Literal["nouns", "sentences"]


def caption_style(name: str) -> CaptionStyle:
    """A style of captions by its name. Raises GocaError for one that there is not."""
    styles: Mapping[str, CaptionStyle] = {"nouns": "nouns", "sentences": "sentences"}
    if name not in styles:
        raise GocaError(f'no captions "{name}": there are {", ".join(styles)}', "captions")
    return styles[name]


PAPER_SPLITS = {"voc": "train", "context": "train"}
"""Where the released code evaluates on another split than the one for validation."""


def split_of(preset: str, dataset: str, split: str | None) -> str | None:
    """The split that a preset evaluates, unless another is named; None for the data set's own choice."""
    if preset not in PRESET_NAMES:
        raise GocaError(f'no protocol "{preset}": there are {", ".join(PRESET_NAMES)}')
    return PAPER_SPLITS.get(dataset) if split is None and preset == "paper" else split


ODD_SYNONYMS = (Category("aeroplane", ("skyline",)), Category("person", ("woodpecker",)))
"""Odd synonyms of the released code, those that are known to us; a switch of the protocol adds them."""
SWITCHES: Mapping[str, Mapping[str, Any]] = {
    "void": {"ignored": "ignored", "background": "background"},
    "absent": {"left-out": "left out", "zero": "count 0"},
    "counted": {"classes": "classes", "and-background": "classes and background"},
    "threshold": {"none": "none", "fixed": "fixed", "oracle": "oracle"},
    "suffix": {"none": (), "background": ("background",)},
    "complete": {"no": False, "yes": True},
    "true-only": {"no": False, "yes": True},
    "keep-parts": {"no": False, "yes": True},
    "odd-synonyms": {"no": (), "yes": ODD_SYNONYMS},
}
"""{switch: {name of a value: the value}}, as the command line names them."""


def switch_named(text: str) -> tuple[str, str]:
    """(switch, name of its value), as the keys of `SWITCHES`."""
    name, _, value = (part.strip() for part in text.lower().partition("="))
    if name not in SWITCHES:
        raise GocaError(f'no switch "{name}": there are {", ".join(SWITCHES)}', "switches")
    if value not in SWITCHES[name]:
        raise GocaError(f'no value "{value}" for the switch {name}: there are {", ".join(SWITCHES[name])}', "switches")
    return name, value


def check_choices(preset: str, switches: Sequence[str], captions: str) -> None:
    """Raise GocaError for a preset, a switch or a style of captions that there is not; the data set is not needed."""
    caption_style(captions)
    split_of(preset, "", None)
    for switch in switches:
        switch_named(switch)


def check_labels(labels: Sequence[str]) -> None:
    """Raise GocaError where two models have one label, or a label cannot name a folder."""
    seen = set[str]()
    for label in labels:
        if not label or label.startswith(".") or {"/", "\\"} & set(label):
            raise GocaError(f'"{label}" cannot name a folder: label the model otherwise, label=MODEL')
        if label.lower() in seen:
            raise GocaError(f'two models are called "{label}": label them, such as "first={label}"')
        seen.add(label.lower())


def is_measured(model: str) -> bool:
    """Whether a model is named by the folder that a scaling study has of it."""
    # os.path answers False for a name that the system refuses.
    return os.path.isdir(os.path.join(model, DENOISING))  # noqa: PTH112, PTH118
