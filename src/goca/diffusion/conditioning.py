"""A caption, encoded by the pipeline itself, with what its tokenizers made of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from goca.errors import GocaError
from goca.text.tokens import Tokens, tokens_by_decoding, tokens_of


@dataclass(frozen=True)
class EncodedPrompt:
    """An encoded caption.

    encoded: what the pipeline's `encode_prompt` returned, call after call. texts: what each of its tokenizers, by its
    name in the pipeline, made of the caption.
    """

    encoded: tuple[Any, ...]
    texts: Mapping[str, Tokens]

    @property
    def shape(self) -> Any:
        """The shapes of everything encoded: prompts of one shape can share a batch."""
        return _shape(self.encoded)

    @property
    def length(self) -> int:
        """How many tokens were encoded."""
        first = self.encoded[0]
        while not isinstance(first, Tensor):
            first = first[0]
        return first.shape[-2]


EncodedPrompts = dict[str, EncodedPrompt]
"""Captions encoded so far in one run, the last `MAX_PROMPTS` of them."""
MAX_PROMPTS = 64


def tokenizers(pipeline: Any) -> tuple[str, ...]:
    """The names of a pipeline's tokenizers."""
    names = (name for name in pipeline.components if name.startswith("tokenizer"))
    return tuple(name for name in names if getattr(pipeline, name) is not None)


@torch.no_grad()
def listen(pipeline: Any, caption: str, ask: Callable[[], object]) -> EncodedPrompt:
    """Have a restoring pipeline encode a caption while its tokenizers and its `encode_prompt` are listened to.

    ask: makes the pipeline encode it. Raises GocaError where no tokenizer tells character offsets.
    """
    names = tokenizers(pipeline)
    recorders = {name: Recorder(getattr(pipeline, name), [caption]) for name in names}
    encode, encoded = pipeline.encode_prompt, []

    def recording(*args: Any, **kwargs: Any) -> Any:
        encoded.append(encode(*args, **kwargs))
        return encoded[-1]

    for name, value in {**recorders, "encode_prompt": recording}.items():
        # DiffusionPipeline.__setattr__ would write the pipeline's configuration as well.
        object.__setattr__(pipeline, name, value)
    try:
        ask()
    finally:
        for recorder in recorders.values():
            recorder.give_back()
    texts = {name: recorder.rows[0] for name, recorder in recorders.items() if recorder.rows}
    if not texts:
        raise GocaError("the tokenizer tells no character offsets: load the pipeline with its fast tokenizer")
    return EncodedPrompt(tuple(encoded), texts)


def replay(prompts: Sequence[EncodedPrompt]) -> Callable[..., Any]:
    """An `encode_prompt` that answers, call after call, with what was encoded for these captions, as one batch."""
    answers = iter([_join(parts) for parts in zip(*(prompt.encoded for prompt in prompts), strict=True)])
    return lambda *args, **kwargs: next(answers)


def _join(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        # Positions of tokens are told once for a whole batch, and have no entry for an image; layers of a language
        # model may come before the images.
        batch = next((axis for axis in ((0, 1) if first.ndim == 4 else (0,)) if first.shape[axis] == 1), None)
        return first if batch is None else torch.cat(list(parts), batch)
    if isinstance(first, tuple):
        return tuple(_join(some) for some in zip(*parts, strict=True))
    # A list has an entry for every image already.
    return [entry for part in parts for entry in part] if isinstance(first, list) else first


def _shape(encoded: Any) -> Any:
    if isinstance(encoded, Tensor):
        return tuple(encoded.shape[1:])
    return tuple(map(_shape, encoded)) if isinstance(encoded, tuple) else None


class Recorder:
    """Stands in for a tokenizer and remembers what it first makes of each caption; all else is the tokenizer's.

    captions: those to come, in their order; the pipeline may give them in a template, in one call or one by one. rows:
    the tokens of each, as far as they came. tokens: {text: its tokens}, of the captions and of the negative prompts
    that came behind them.
    """

    _OWN = ("_tokenizer", "_before", "_awaited", "_texts", "captions", "rows", "tokens")

    def __init__(self, tokenizer: Any, captions: Sequence[str] = ()) -> None:
        self._tokenizer, self._before = tokenizer, {}  # type: ignore[var-annotated]
        self.expect(captions)

    def expect(self, captions: Sequence[str], negative: Sequence[str] = ()) -> None:
        """Begin anew, with other captions, and the negative prompts that may come behind them."""
        self.captions, self.rows, self.tokens = tuple(captions), list[Tokens](), dict[str, Tokens]()
        self._awaited = [text for text in dict.fromkeys(negative) if text not in self.captions]
        self._texts = set[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Some pipelines set their tokenizer's padding side, for good.
        if name in self._OWN:
            object.__setattr__(self, name, value)
        else:
            self._before.setdefault(name, getattr(self._tokenizer, name))
            setattr(self._tokenizer, name, value)

    def give_back(self) -> None:
        """Put back what the pipeline set on its tokenizer."""
        for name, value in self._before.items():
            setattr(self._tokenizer, name, value)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        # Pipelines tokenise twice, the second time only to see what was cut off: there the warning is noise.
        encoding = self._tokenizer(text, *args, **{"verbose": False, **kwargs})
        if len(self.rows) < len(self.captions) or self._awaited:
            self._record([text] if isinstance(text, str) else list(text), encoding)
        return encoding

    def _record(self, texts: Sequence[str], encoding: Any) -> None:
        for index, text in enumerate(texts):
            if len(self.rows) < len(self.captions):
                caption = self.captions[len(self.rows)]
                self.rows.append(self._tokens_at(index, text, encoding, caption))
                self.tokens[caption] = self.rows[-1]
            elif self._awaited and text not in self._texts:
                caption = self._awaited.pop(0)
                self.tokens[caption] = self._tokens_at(index, text, encoding, caption)
            self._texts.add(text)

    def _tokens_at(self, index: int, text: str, encoding: Any, caption: str) -> Tokens:
        if getattr(encoding, "encodings", None):
            return tokens_of(text, encoding.encodings[index], caption)
        return tokens_by_decoding(self._tokenizer, [int(token) for token in encoding["input_ids"][index]], caption)

    def apply_chat_template(self, messages: Any, *args: Any, tokenize: bool = True, **kwargs: Any) -> Any:
        """In two steps, so that the tokens of the template's text are seen."""
        if not tokenize:
            return self._tokenizer.apply_chat_template(messages, *args, tokenize=False, **kwargs)
        counting = {"return_dict", "return_tensors", "padding", "truncation", "max_length"}
        options = {name: kwargs.pop(name) for name in counting & kwargs.keys()}
        options.pop("return_dict", None)
        text = self._tokenizer.apply_chat_template(messages, *args, tokenize=False, **kwargs)
        return self(text, add_special_tokens=False, **options)
