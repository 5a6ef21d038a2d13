"""The frozen text encoders of the denoisers: a stage's own, or where the work folder has none the one that ships."""

import json
from pathlib import Path

import torch
from transformers import (
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    T5Tokenizer,
)

from goca import bundled

from . import clip, t5
from .loop import DEVICE, snapshot

STAGES = {"clip": (clip.load, CLIPTextModel, CLIPTokenizer), "t5": (t5.load, T5EncoderModel, T5Tokenizer)}
"""{stage: how its result is loaded, the classes of its encoder and tokenizer}."""
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def text_encoder(work: Path, stage: str) -> Loaded:
    """The encoder of a stage, one of `STAGES`, with its tokenizer: the work folder's, or else the one that ships."""
    if not snapshot(work / stage).exists():
        return shipped(stage)
    load, *_ = STAGES[stage]
    trained, tokenizer = load(work)
    return trained.text, tokenizer


def shipped(stage: str) -> Loaded:
    """The encoder that ships, in float32, with its tokenizer: that of the first bundled pipeline with its class."""
    _, encoder, tokenizer = STAGES[stage]
    parts = (
        (folder / part, folder / part.replace("text_encoder", "tokenizer"))
        for folder in map(bundled.pipeline, bundled.names())
        for part, (_, name) in _parts(folder).items()
        if name == encoder.__name__
    )
    weights, words = next(parts)
    model = encoder.from_pretrained(weights, dtype=torch.float32)
    return model.to(DEVICE).eval().requires_grad_(False), tokenizer.from_pretrained(words)


def _parts(folder: Path) -> dict[str, list[str]]:
    """{component: [library, class]} of a pipeline."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return {part: value for part, value in index.items() if isinstance(value, list)}
