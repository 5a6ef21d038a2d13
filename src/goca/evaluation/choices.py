"""The choices that an evaluation has by name. Without torch, so that a mistyped name is reported at once."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from goca.errors import GocaError
from goca.text.nouns import Category

PRESET_NAMES = ("honest", "paper")
"""The keys of `goca.evaluation.protocol.PRESETS`."""
DENOISING = "denoising"
"""Subfolder of a model's folder in a scaling study that has its denoising loss."""
CaptionStyle = Literal["nouns", "sentences"]


def caption_style(name: str) -> CaptionStyle:
    """A style of captions by its name. Raises GocaError for an unknown one."""
    styles: Mapping[str, CaptionStyle] = {"nouns": "nouns", "sentences": "sentences"}
    if name not in styles:
        raise GocaError(f'no caption style "{name}": choose from {", ".join(styles)}', "captions")
    return styles[name]


PAPER_SPLITS = {"voc": "train", "context": "train"}
"""Splits on which the released code evaluates, where these are not the validation splits."""


def split_of(preset: str, dataset: str, split: str | None) -> str | None:
    """The split that a preset evaluates unless one is named; None for the data set's default."""
    if preset not in PRESET_NAMES:
        raise GocaError(f'no protocol "{preset}": choose from {", ".join(PRESET_NAMES)}')
    return PAPER_SPLITS.get(dataset) if split is None and preset == "paper" else split


ODD_SYNONYMS = (Category("aeroplane", ("skyline",)), Category("person", ("woodpecker",)))
"""The odd synonyms of the released code that are known; a switch of the protocol adds them."""
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
    """(switch, name of its value), as in `SWITCHES`. Raises GocaError for unknown ones."""
    name, _, value = (part.strip() for part in text.lower().partition("="))
    if name not in SWITCHES:
        raise GocaError(f'no switch "{name}": choose from {", ".join(SWITCHES)}', "switches")
    if value not in SWITCHES[name]:
        raise GocaError(f'no value "{value}" for {name}: choose from {", ".join(SWITCHES[name])}', "switches")
    return name, value


def check_choices(preset: str, switches: Sequence[str], captions: str) -> None:
    """Raise GocaError for an unknown preset, switch or style of captions; the data set is not needed."""
    caption_style(captions)
    split_of(preset, "", None)
    for switch in switches:
        switch_named(switch)


def check_labels(labels: Sequence[str]) -> None:
    """Raise GocaError if two models have the same label, or a label cannot be a folder's name."""
    seen = set[str]()
    for label in labels:
        if not label or label.startswith(".") or {"/", "\\"} & set(label):
            raise GocaError(f'"{label}" cannot be a folder name: label the model otherwise, label=MODEL')
        if label.lower() in seen:
            raise GocaError(f'two models have the label "{label}": label them, such as "first={label}"')
        seen.add(label.lower())


def is_measured(model: str) -> bool:
    """Whether a model is given as its folder in a scaling study."""
    # os.path returns False for a name that the system refuses.
    return os.path.isdir(os.path.join(model, DENOISING))  # noqa: PTH112, PTH118


def refuse_study(model: str) -> None:
    """Raise GocaError for the folder of a whole scaling study, whose models are in folders inside it."""
    if not os.path.isdir(model) or is_measured(model):  # noqa: PTH112
        return
    inside = sorted(name for name in os.listdir(model) if is_measured(os.path.join(model, name)))  # noqa: PTH118, PTH208
    if inside:
        raise GocaError(f"{model} is a whole study: name a model's folder in it, {', '.join(inside)}")
