"""Conditioning as the pipeline itself makes it: encoded captions, their tokens, and the arguments of its denoiser."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from goca.diffusion.attention_modules import attention_modules
from goca.errors import GocaError
from goca.maths import Grid
from goca.text.tokens import Tokens, tokens_by_decoding, tokens_of


@dataclass(frozen=True)
class EncodedPrompt:
    """An encoded caption.

    Attributes:
        encoded: What the pipeline's `encode_prompt` returned, call by call.
        texts: {tokenizer: the caption's tokens}, by the tokenizers' names in the pipeline.
    """

    encoded: tuple[Any, ...]
    texts: Mapping[str, Tokens]

    @property
    def shape(self) -> Any:
        """The shapes of everything encoded; captions of one shape can share a batch."""
        return _shape(self.encoded)

    @property
    def length(self) -> int:
        """The number of encoded tokens, padding included."""
        return self.embeddings.shape[-2]

    @property
    def embeddings(self) -> Tensor:
        """The embeddings that were encoded first."""
        first = self.encoded[0]
        while not isinstance(first, Tensor):
            first = first[0]
        return first


class FirstCall(Exception):  # noqa: N818 - a signal, not an error
    """Carries the arguments of a pipeline's first denoiser call out of the pipeline."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.call = args, kwargs


def first_call(
    pipeline: Any, denoiser: nn.Module, captions: Sequence[str], size: Grid, options: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The (positional, named) arguments of a pipeline's first denoiser call; None if it makes none.

    Args:
        pipeline: From `restoring`, with a scheduler whose only timestep is the wanted one.
        denoiser: The module to stop at.
        captions: The prompts of the batch.
        size: (height, width) in pixels.
        options: Further arguments of the pipeline's call, as its family sets them.
    """

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise FirstCall(args, kwargs)

    wanted = {
        "height": size[0],
        "width": size[1],
        "num_inference_steps": 1,
        "guidance_scale": 1.0,
        "output_type": "latent",
        # Without one, the discarded latent would advance the global random state.
        "generator": torch.Generator().manual_seed(0),
        **options,
    }
    parameters = inspect.signature(pipeline.__call__).parameters
    before = [(attention.module, attention.module.processor) for attention in attention_modules(denoiser)]
    handle = denoiser.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        pipeline(prompt=list(captions), **{name: value for name, value in wanted.items() if name in parameters})
    except FirstCall as signal:
        # The exception is not kept: its traceback holds every tensor in the pipeline's frames.
        return signal.call
    finally:
        handle.remove()
        for module, processor in before:  # self-attention guidance sets its own in every call
            if module.processor is not processor:
                module.processor = processor
    return None


def tokenizers(pipeline: Any) -> tuple[str, ...]:
    """The names of a pipeline's tokenizers."""
    names = (name for name in pipeline.components if name.startswith("tokenizer"))
    return tuple(name for name in names if getattr(pipeline, name) is not None)


@torch.no_grad()
def record_prompt(pipeline: Any, caption: str, encode_it: Callable[[], object]) -> EncodedPrompt:
    """Record what the tokenizers and `encode_prompt` of a pipeline return while `encode_it` makes it encode a caption.

    Raises:
        GocaError: No tokenizer reports character offsets, or every token is encoded alike.
    """
    recorders = {name: Recorder(getattr(pipeline, name), [caption]) for name in tokenizers(pipeline)}
    encode, encoded = pipeline.encode_prompt, []

    def recording(*args: Any, **kwargs: Any) -> Any:
        encoded.append(encode(*args, **kwargs))
        return encoded[-1]

    for name, value in {**recorders, "encode_prompt": recording}.items():
        # DiffusionPipeline.__setattr__ would write the pipeline's configuration as well.
        object.__setattr__(pipeline, name, value)
    try:
        encode_it()
    finally:
        for recorder in recorders.values():
            recorder.restore()
    texts = {name: recorder.tokens[caption] for name, recorder in recorders.items() if recorder.tokens}
    if not texts:
        raise GocaError("the tokenizer reports no character offsets: load the pipeline with its fast tokenizer")
    prompt = EncodedPrompt(tuple(encoded), texts)
    tokens = prompt.embeddings.flatten(0, -2)
    if len(tokens) > 1 and torch.equal(tokens, tokens[:1].expand_as(tokens)):
        raise GocaError("the text encoder gives every word the same embedding: check that its weights are complete")
    return prompt


def replay(prompts: Sequence[EncodedPrompt]) -> Callable[..., Any]:
    """An `encode_prompt` that returns, call after call, what was encoded for these captions, as one batch."""
    results = iter([_join(parts) for parts in zip(*(prompt.encoded for prompt in prompts), strict=True)])
    return lambda *args, **kwargs: next(results)


def _join(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        # Token positions are one tensor for the whole batch; the layers of a language model may come before the batch
        # axis.
        batch = next((axis for axis in ((0, 1) if first.ndim == 4 else (0,)) if first.shape[axis] == 1), None)
        return first if batch is None else torch.cat(list(parts), batch)
    if isinstance(first, tuple):
        return tuple(_join(entries) for entries in zip(*parts, strict=True))
    # A list has an entry for each image.
    return [entry for part in parts for entry in part] if isinstance(first, list) else first


def _shape(encoded: Any) -> Any:
    if isinstance(encoded, Tensor):
        return tuple(encoded.shape[1:])
    return tuple(map(_shape, encoded)) if isinstance(encoded, tuple) else None


class Recorder:
    """A stand-in for a tokenizer that records the first tokens of each caption and delegates everything else.

    Attributes:
        tokens: {caption: its tokens}, for those that were tokenised.
    """

    _FIELDS = ("_tokenizer", "_before", "_awaited", "_texts", "tokens")

    def __init__(self, tokenizer: Any, captions: Sequence[str] = ()) -> None:
        self._tokenizer, self._before = tokenizer, {}  # type: ignore[var-annotated]
        self.expect(captions)

    def expect(self, captions: Sequence[str]) -> None:
        """Restart with captions that will come in this order, in one or more calls, perhaps inside a template."""
        self.tokens, self._texts = dict[str, Tokens](), set[str]()
        self._awaited = list(dict.fromkeys(captions))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Some pipelines set their tokenizer's padding side permanently.
        if name in self._FIELDS:
            object.__setattr__(self, name, value)
        else:
            self._before.setdefault(name, getattr(self._tokenizer, name))
            setattr(self._tokenizer, name, value)

    def restore(self) -> None:
        """Put back the attributes that the pipeline set on its tokenizer."""
        for name, value in self._before.items():
            setattr(self._tokenizer, name, value)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        # Pipelines tokenise twice, the second time only to find what was truncated; that warning is noise.
        encoding = self._tokenizer(text, *args, **{"verbose": False, **kwargs})
        if self._awaited:
            self._record([text] if isinstance(text, str) else list(text), encoding)
        return encoding

    def _record(self, texts: Sequence[str], encoding: Any) -> None:
        for index, text in enumerate(texts):
            # A pipeline may tokenise each prompt separately, and then all of them again.
            if self._awaited and (text not in self._texts or text == self._awaited[0]):
                caption = self._awaited.pop(0)
                self.tokens[caption] = self._tokens_at(index, text, encoding, caption)
            self._texts.add(text)

    def _tokens_at(self, index: int, text: str, encoding: Any, caption: str) -> Tokens:
        if getattr(encoding, "encodings", None):
            return tokens_of(text, encoding.encodings[index], caption)
        return tokens_by_decoding(self._tokenizer, [int(token) for token in encoding["input_ids"][index]], caption)

    def apply_chat_template(self, messages: Any, *args: Any, tokenize: bool = True, **kwargs: Any) -> Any:
        """Apply the template without tokenising, then tokenise its text, so that the tokens are recorded."""
        if not tokenize:
            return self._tokenizer.apply_chat_template(messages, *args, tokenize=False, **kwargs)
        counting = {"return_dict", "return_tensors", "padding", "truncation", "max_length"}
        options = {name: kwargs.pop(name) for name in counting & kwargs.keys()}
        options.pop("return_dict", None)
        text = self._tokenizer.apply_chat_template(messages, *args, tokenize=False, **kwargs)
        return self(text, add_special_tokens=False, **options)
