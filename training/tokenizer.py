"""Stage tokenizer: a byte-level BPE for exactly the words of our captions, as a CLIPTokenizer.

Any text can be tokenised (all 256 bytes are there), and every word that captions use becomes one token,
except the compounds of `SPLIT`: these stay two tokens each, so that a class of several tokens, the normal
case with a real vocabulary, occurs in training, in the tests and in the benchmark.

    python -m training.tokenizer [--work FOLDER]
"""

from collections import Counter
from itertools import pairwise
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

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
BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"


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


def main() -> None:
    parser = command(__doc__)
    folder: Path = parser.parse_args().work / "tokenizer"
    tokenizer = build()
    tokenizer.save_pretrained(folder)
    print(f"{len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
