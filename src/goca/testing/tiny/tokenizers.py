"""Tokenizers of every kind that text-to-image pipelines have, learnt from a few sentences.

Each function returns a new one with every printable ASCII character in its vocabulary. `limit` is its
model_max_length; special tokens and the side of the padding follow the checkpoints, where these are known.
"""

import json
import string
from collections.abc import Callable, Iterable
from functools import cache, wraps
from io import BytesIO
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any
from weakref import finalize

CORPUS = (
    "a photo of a cat sitting on grass next to a traffic light and a dog under the sky",
    "dining table, potted plant, tv monitor, motorbike, aeroplane, background, wall, person, people",
    "the quick brown fox jumps over the lazy dog",
    # Every character at least once: a byte-pair tokenizer drops what it has never seen, and shifts all later offsets.
    " ".join(string.printable.split()[0]),
)
# Qwen-Image cuts its template off the text by the template's length in real tokens: here, too, a word of it is one.
_CHAT = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the"
    " objects and background:",
    "system",
    "user",
    "assistant",
)
_QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_MISTRAL_TEMPLATE = (
    "<s>{% for m in messages %}{% set mark = 'SYSTEM_PROMPT' if m['role'] == 'system' else 'INST' %}[{{ mark }}]"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}[/{{ mark }}]{% endfor %}"
)


def _copied(learn: Callable[[], Any]) -> Callable[..., Any]:
    """Learn a tokenizer once, and return a new copy of it on every call."""
    learnt = cache(learn)

    @wraps(learn)
    def copy(limit: int = 512) -> Any:
        # A deep copy of CLIP's says "</w>" when it decodes.
        with TemporaryDirectory() as folder:
            learnt().save_pretrained(folder)
            tokenizer = type(learnt()).from_pretrained(folder)
        tokenizer.model_max_length = limit
        return tokenizer

    return copy


def _train(untrained: Any, texts: Iterable[str], size: int) -> Any:
    return untrained.train_new_from_iterator(list(texts) * 20, vocab_size=size, show_progress=False)


def _words() -> list[str]:
    """What opens a word stays with it, and no piece spans a space."""
    return [*(f" {word}" for sentence in CORPUS for word in sentence.split()), "\n"]


@_copied
def gemma() -> Any:
    """Gemma's: <bos> before the text; pads on the left until a pipeline turns it."""
    from transformers import GemmaTokenizer

    return _train(GemmaTokenizer(add_bos_token=True), _words(), 400)


@_copied
def llama() -> Any:
    """The first Llama's as AuraFlow has it: no <s> before the text, </s> after, pads on the left."""
    from transformers import LlamaTokenizer

    return _train(LlamaTokenizer(add_bos_token=False, add_eos_token=True, pad_token="<pad>"), _words(), 400)


# Trainers that mark where a word ends or goes on break ties anew in every process, so these are put together.


@_copied
def clip() -> Any:
    """CLIP's: <|startoftext|> before, <|endoftext|> after and as the padding."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer, Qwen2Tokenizer

    learnt = _train(Qwen2Tokenizer(), (word for sentence in CORPUS for word in sentence.split()), 340)
    pairs = json.loads(learnt.backend_tokenizer.to_str())["model"]["merges"]
    # Each merge of two pieces, inside a word and at its end.
    merges = [(first, second + end) for first, second in pairs for end in ("", "</w>")]
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in merges)]
    return CLIPTokenizer(vocab=_numbered("<|startoftext|>", "<|endoftext|>", *pieces), merges=merges)


@_copied
def bert() -> Any:
    """BERT's: [CLS] before, [SEP] after, lower case."""
    from transformers import BertTokenizer

    pieces = [piece.removeprefix("▁") if piece.startswith("▁") else f"##{piece}" for piece in _pieces()]
    marks = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
    return BertTokenizer(vocab=_numbered(*marks, *string.punctuation, *string.digits, *string.ascii_lowercase, *pieces))


@_copied
def t5() -> Any:
    """T5's: </s> after the text, then <pad>.

    Every piece is as likely as another: there is too little text to learn how likely they are.
    """
    from transformers import T5Tokenizer

    marks = [(mark, 0.0) for mark in ("<pad>", "</s>", "<unk>")]
    return T5Tokenizer(vocab=[*marks, ("▁", -1.0), *((piece, -1.0) for piece in _pieces())])


def _pieces() -> list[str]:
    """Gemma's pieces of words; "▁" stands for the space before."""
    learnt = gemma()
    return sorted(learnt.get_vocab().keys() - {*learnt.all_special_tokens, "▁", "\n"})


def _numbered(*pieces: str) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


@_copied
def _byte_level() -> Any:
    from transformers import Qwen2Tokenizer

    return _train(Qwen2Tokenizer(), (*CORPUS, *_CHAT), 800)


def qwen(limit: int) -> Any:
    """Qwen's: bytes, nothing around the text but what the chat template says."""
    tokenizer = _byte_level(limit)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = _QWEN_TEMPLATE
    return tokenizer


def mistral(limit: int) -> Any:
    """Mistral's: as Qwen's with another template, whose messages have several parts."""
    tokenizer = _opened((), ("<s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), limit, "left")
    tokenizer.chat_template = _MISTRAL_TEMPLATE
    return tokenizer


def llama3(limit: int) -> Any:
    """Llama 3's: bytes, <|begin_of_text|> before the text."""
    return _opened(("<|begin_of_text|>",), (), limit, "right")


def glm(limit: int) -> Any:
    """GLM 4's: bytes, two tokens before the text, pads on the left."""
    return _opened(("[gMASK]", "<sop>"), (), limit, "left")


def chatglm(limit: int) -> Any:
    """The tokenizer of Kolors: slow, without offsets. Needs sentencepiece."""
    import sentencepiece
    from diffusers.pipelines.kolors import ChatGLMTokenizer

    learnt = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=learnt,
        model_type="bpe",
        vocab_size=250,
        character_coverage=1.0,
        minloglevel=2,
    )
    folder = Path(mkdtemp())
    (folder / "tokenizer.model").write_bytes(learnt.getvalue())
    tokenizer = ChatGLMTokenizer(str(folder / "tokenizer.model"), model_max_length=limit)
    # It copies its file when it is saved, so the folder may not go before the tokenizer does.
    finalize(tokenizer, rmtree, folder)
    return tokenizer


def _opened(opening: tuple[str, ...], others: tuple[str, ...], limit: int, side: str) -> Any:
    """A byte-level tokenizer that puts the special tokens `opening` before each text and knows `others`."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level().backend_tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[*opening, *others],
        model_max_length=limit,
        padding_side=side,
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*opening, "$A"],
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in opening],
    )
    return tokenizer
