"""A caption, encoded by the pipeline itself, with what its tokenizer made of it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from goca.errors import GocaError
from goca.model.words import Tokens, tokens_of


@dataclass(frozen=True)
class Prompt:
    """An encoded caption: what the pipeline's `encode_prompt` returned for it, and the tokens it is made of."""

    encoded: tuple[Tensor | None, ...]
    tokens: Tokens


Prompts = dict[str, Prompt]
"""Captions encoded so far in one run, the last `MOST_PROMPTS` of them."""
MOST_PROMPTS = 64


@torch.no_grad()
def encode(pipeline: Any, caption: str) -> Prompt:
    """Encode one caption while recording what the tokenizers of a borrowed pipeline get to see.

    Raises GocaError where the tokenizers tell no character offsets, or do not agree on the tokens.
    """
    names = [
        name for name in pipeline.components if name.startswith("tokenizer") and getattr(pipeline, name) is not None
    ]
    recorders = [_Recorder(getattr(pipeline, name)) for name in names]
    for name, recorder in zip(names, recorders, strict=True):
        # DiffusionPipeline.__setattr__ would write the pipeline's configuration as well.
        object.__setattr__(pipeline, name, recorder)
    encoded = pipeline.encode_prompt(
        prompt=caption,
        device=pipeline._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )
    texts = [recorder.first for recorder in recorders if recorder.first is not None]
    if not texts:
        raise GocaError("the tokenizer tells no character offsets: load the pipeline with its fast tokenizer")
    if any(tokens.offsets != texts[0].offsets for tokens in texts[1:]):
        raise GocaError("the pipeline's tokenizers cut the caption differently: this pipeline is not supported")
    return Prompt(tuple(encoded), texts[0])


class _Recorder:
    """Stands in for a tokenizer during one encoding and remembers its first answer; all else is the tokenizer's."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.first: Tokens | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        # Pipelines tokenise twice, the second time only to see what was cut off: there the warning is noise.
        encoding = self._tokenizer(text, *args, **{"verbose": False, **kwargs})
        if self.first is None and getattr(encoding, "encodings", None):
            self.first = tokens_of(text if isinstance(text, str) else text[0], encoding.encodings[0])
        return encoding
