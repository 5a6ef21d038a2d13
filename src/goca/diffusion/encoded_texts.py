"""The texts that a pipeline encodes while it generates, and the rows of a denoiser call that attend to them."""

import inspect
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from goca.diffusion.backbone import Backbone
from goca.diffusion.conditioning import EncodedPrompt, Recorder, tokenizers
from goca.diffusion.exclusive import patched
from goca.text.tokens import Tokens

Captions = Mapping[str, tuple[str, ...]]
"""{tokenizer's name in the pipeline: the texts that it gets}."""


@dataclass
class EncodedTexts:
    """Texts that a pipeline encoded as one batch.

    Attributes:
        texts: The texts; None if only their embeddings were given.
        captions: The inputs of each tokenizer for them.
        embeddings: The rows, (token, model) each, of every encoder, in the order of the calls.
        tokens: Each tokenizer's tokens of each text, if it was called.
        negative: The negative prompts that the same calls encoded.
    """

    texts: tuple[str, ...] | None
    captions: Captions
    negative: "EncodedTexts | None" = None
    embeddings: list[list[Tensor]] = field(default_factory=list)
    tokens: dict[str, dict[int, Tokens]] = field(default_factory=dict)

    def add(self, answer: Any, recorders: Mapping[str, Recorder]) -> None:
        """Add what `encode_prompt` returned: the prompts' embeddings, then perhaps those of the negative prompts."""
        first, *others = answer if isinstance(answer, tuple) else (answer,)
        rows = rows_of(first)
        self.embeddings.append(rows)
        self._take_tokens(recorders)
        if self.negative is None:
            return
        # Position ids of a text may have the shape of embeddings, but for their width.
        batches = [batch for batch in map(rows_of, others) if batch and rows]
        same_width = (batch for batch in batches if _width(batch[0]) == _width(rows[0]))
        self.negative.embeddings.append(next(same_width, []))
        self.negative._take_tokens(recorders)

    def _take_tokens(self, recorders: Mapping[str, Recorder]) -> None:
        for name, recorder in recorders.items():
            captions = enumerate(self.captions[name])
            tokens = {number: recorder.tokens[caption] for number, caption in captions if caption in recorder.tokens}
            if tokens:
                self.tokens[name] = tokens

    @contextmanager
    def recorded(self, pipeline: Any) -> Iterator[dict[str, Recorder]]:
        """Stand-ins for the pipeline's tokenizers, by name, while these texts are encoded."""
        recorders = {name: Recorder(getattr(pipeline, name)) for name in tokenizers(pipeline)}
        negative = self.negative.captions if self.negative else {}
        # A pipeline whose text encoder also gets an image has a processor for both, with its own tokenizer.
        processor = getattr(pipeline, "processor", None)
        inner = getattr(processor, "tokenizer", None) if "tokenizer" in recorders else None
        beside = {} if inner is None else {"tokenizer": Recorder(inner)}
        with ExitStack() as stack:
            for owner, stand_ins in ((pipeline, recorders), (processor, beside)):
                for name, recorder in stand_ins.items():
                    recorder.expect([*self.captions[name], *negative.get(name, ())])
                    stack.enter_context(patched(owner, name, recorder))
            yield recorders
        for name, recorder in beside.items():
            recorders[name].tokens |= recorder.tokens

    def attended(self, number: int, backbone: Backbone) -> tuple[Tokens, ...]:
        """The tokens of a text, by its number, that the denoiser attends to."""
        assert self.texts is not None
        tokens = {name: rows[number] for name, rows in self.tokens.items() if number in rows}
        if not self.texts[number].strip():
            # There are then only the words of a template.
            tokens = {name: replace(made, special=(True,) * len(made.special)) for name, made in tokens.items()}
        embeddings = next(filter(None, reversed(self.embeddings)))
        return backbone.texts(EncodedPrompt((embeddings[0],), tokens))

    def captions_at(self, number: int, tokenizers: Container[str]) -> dict[str, str]:
        """{argument of the pipeline: its text} for a text, by its number, that none of these tokenizers reads.

        Most encoders without a text of their own get the prompt.
        """
        texts = {name: captions[number] for name, captions in self.captions.items() if number < len(captions)}
        read = {text for name, text in texts.items() if name in tokenizers}
        others = {name: text for name, text in texts.items() if name not in tokenizers and text not in read}
        return {name.replace("tokenizer", "prompt"): text for name, text in others.items()}

    def blocks(self, inputs: Sequence[Any], images: int) -> list[range]:
        """The rows of a denoiser call that attend to these texts: block by block, one row for each image.

        In a block of consecutive rows the embeddings occur again in order. A single row is not enough: a
        negative prompt may be the prompt of another image. `images` is 0 for one of each text.
        """
        for batch in map(rows_of, inputs):
            for rows in filter(None, self.embeddings):
                count = images or len(rows)
                prompts = [rows[index * len(rows) // count] for index in range(count)]
                starts = range(len(batch) - count + 1)
                if blocks := [range(i, i + count) for i in starts if all(map(_equal, prompts, batch[i:]))]:
                    return blocks
        return []


def texts_to_encode(
    encode: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], names: Iterable[str]
) -> EncodedTexts:
    """The texts that a call of `encode_prompt` will encode. names: those of the pipeline's tokenizers."""
    signature = inspect.signature(encode)
    return texts_of(signature.bind(*args, **kwargs).arguments, tuple(names), "negative_prompt" in signature.parameters)


def texts_of(arguments: Mapping[str, Any], names: Sequence[str], has_negative: bool = True) -> EncodedTexts:
    """The same, from arguments by name. has_negative: whether negative prompts are encoded with the prompts."""
    # Tuples, because some pipelines write their template into the list of prompts.
    prompts = _listed(arguments.get("prompt"))
    negative: tuple[str, ...] | None = None
    if prompts is not None and has_negative:
        # Without one, pipelines guide away from the empty text.
        negative = _listed(arguments.get("negative_prompt") or "")

    def for_each(texts: tuple[str, ...]) -> tuple[str, ...]:
        return texts * len(prompts) if prompts is not None and len(texts) == 1 else texts

    negative = negative and for_each(negative)

    def captions(kind: str, default: tuple[str, ...] | None) -> Captions:
        parameters = {name: name.replace("tokenizer", kind) for name in names}
        return {name: for_each(_listed(arguments.get(key)) or default or ()) for name, key in parameters.items()}

    return EncodedTexts(
        prompts, captions("prompt", prompts), EncodedTexts(negative, captions("negative_prompt", negative))
    )


def rows_of(embedded: Any) -> list[Tensor]:
    """The embedding of each row, (token, model) or (token, layer, model); empty if it is not a batch of them."""
    if isinstance(embedded, Tensor):
        return list(embedded) if embedded.ndim in (3, 4) else []
    is_batch = isinstance(embedded, list) and all(isinstance(row, Tensor) and row.ndim == 2 for row in embedded)
    return embedded if is_batch else []


def _listed(prompt: str | Sequence[str] | None) -> tuple[str, ...] | None:
    return (prompt,) if isinstance(prompt, str) else None if prompt is None else tuple(prompt)


def _width(embedding: Tensor) -> tuple[int, int]:
    return embedding.ndim, embedding.shape[-1]


def _equal(embedding: Tensor, row: Tensor) -> bool:
    return embedding.shape == row.shape and torch.equal(embedding.to(row), row)
