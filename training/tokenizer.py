"""Stage tokenizer: a byte-level BPE for exactly the words of our captions, as a CLIPTokenizer; the same
words as a T5Tokenizer.

Any text can be tokenised (by CLIP's all 256 bytes, by T5's what ASCII can print), and every word that
captions use becomes one token, except the compounds of `SPLIT`: these stay two tokens each, so that a class
of several tokens, the normal case with a real vocabulary, occurs in training, in the tests and in the
benchmark.

    python -m training.tokenizer [--work FOLDER]
"""

import string
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, T5Tokenizer

from .captions import words
from .commands import command

SPLIT = {  # word: its two tokens
    word: (first, second)
    for first, seconds in {
        "air": ("plane", "planes", "craft"),
        "butter": ("fly", "flies"),
        "mush": ("room", "rooms"),
    }.items()
    for second in seconds
    for word in [first + second]
}
END = "</w>"
POSITIONS = 77  # as Stable Diffusion 1.5
T5_POSITIONS = 512  # as T5
BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
T5_FOLDER = "tokenizer-t5"
SPACE = "▁"  # how T5's pieces begin a word


def pieces(word: str) -> list[tuple[str, ...]]:
    """`word` as sequences of symbols that may be merged within, but not across."""
    first, second = SPLIT.get(word, ("", word))
    symbols = (*second[:-1], second[-1] + END)
    return [tuple(first), symbols] if first else [symbols]


def learn_merges(corpus: Counter[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Merge the most frequent pair again and again, until every sequence of `corpus` is one symbol."""
    corpus = Counter(corpus)
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in corpus.items():
            for pair in pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged: Counter[tuple[str, ...]] = Counter()
        for symbols, count in corpus.items():
            merged[_merge(symbols, best)] += count
        corpus = merged


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    result: list[str] = []
    for symbol in symbols:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return tuple(result)


def build() -> CLIPTokenizer:
    """256 bytes, the same as word ends, the merges, begin, end and padding."""
    corpus = Counter(symbols for word in sorted(set(words())) for symbols in pieces(word))
    merges = learn_merges(corpus)
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [
        *alphabet,
        *(symbol + END for symbol in alphabet),
        *dict.fromkeys(a + b for a, b in merges),
        BOS,
        EOS,
        PAD,
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=PAD, model_max_length=POSITIONS)


def build_t5() -> T5Tokenizer:
    """Padding, end, unknown, printable characters and whole words, which are far likelier than their letters."""
    vocabulary = sorted(set(words()))
    begins = [SPACE + SPLIT.get(word, (word, ""))[0] for word in vocabulary if word not in ",.-"]
    ends = [second for _, second in SPLIT.values()]
    characters = [SPACE, *string.printable.split()[0]]
    marks = [(mark, 0.0) for mark in ("<pad>", "</s>", "<unk>")]
    likely = [(piece, -1.0) for piece in dict.fromkeys(begins + sorted(ends))]
    unlikely = [(character, -10.0) for character in characters]
    return T5Tokenizer(vocab=marks + likely + unlikely, extra_ids=0, model_max_length=T5_POSITIONS)


def main() -> None:
    parser = command(__doc__)
    work: Path = parser.parse_args().work
    for tokenizer, folder in ((build_t5(), T5_FOLDER), (build(), "tokenizer")):
        tokenizer.save_pretrained(work / folder)
        print(f"{folder}: {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
