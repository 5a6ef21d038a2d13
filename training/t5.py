"""Stage t5: a small T5 encoder for the transformers, pretrained against the namer's tower as CLIP's text half is.

PixArt masks the padding, Flux lets it attend, up to 512 tokens of it, so the encoder learns both: one batch is
masked, another is not. Padding is never computed at length. Positions further apart than `REACH` are all the same
to this encoder, so all padding further behind a text is nearly alike, and one token stands for it: the logarithm of
how many it stands for is added to its attention logits. What a caption means is the mean of its tokens' states;
no single token is made to collect it.

    python -m training.t5 [--work FOLDER] [--steps N] [--resume]
"""

import functools
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BatchEncoding, T5Config, T5EncoderModel, T5Tokenizer

from .clip import WEIGHTS, WIDTH, ContrastiveTask, Projections
from .commands import make_plan, training_command
from .loop import DEVICE, snapshot, train
from .tokenizer import T5_FOLDER, T5_POSITIONS

LAYERS, HEADS, FEED_FORWARD = 2, 4, 256
REACH = 16  # tokens; T5's own is 128
MASKED = 0.5  # share of batches


class T5(Projections):
    """T5's encoder with the projections."""

    def __init__(self, tokenizer: T5Tokenizer):
        super().__init__()
        self.text = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer),
                d_model=WIDTH,
                d_kv=WIDTH // HEADS,
                d_ff=FEED_FORWARD,
                num_layers=LAYERS,
                num_heads=HEADS,
                relative_attention_num_buckets=16,
                relative_attention_max_distance=REACH,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                is_encoder_decoder=False,
                use_cache=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )

    def embed_states(self, states: Tensor, real: Tensor) -> Tensor:
        """The encoder's states [n, tokens, width], and 1 where a token is not padding, to unit vectors [n, width]."""
        return self.project((states * real[..., None]).sum(1) / real.sum(1, keepdim=True))

    def embed_texts(self, tokens: BatchEncoding) -> Tensor:
        """Tokens of texts, masked, to unit vectors [n, width]."""
        states = self.text(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return self.embed_states(states, tokens.attention_mask)


def load(work: Path) -> tuple[T5, T5Tokenizer]:
    """The T5 that the work folder has, with its projections, and its tokenizer."""
    tokenizer = T5Tokenizer.from_pretrained(work / T5_FOLDER)
    t5 = T5(tokenizer)
    t5.load_state_dict(load_file(snapshot(work / "t5") / WEIGHTS))
    return t5.to(DEVICE).eval().requires_grad_(False), tokenizer


def encode_masked(encoder: T5EncoderModel, tokenizer: T5Tokenizer, texts: list[str]) -> tuple[Tensor, Tensor]:
    """As PixArt reads texts: states [n, tokens, width], and 1 where a token is not padding [n, tokens]."""
    tokens = tokenizer(texts, padding="longest", return_tensors="pt").to(DEVICE)
    return encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state, tokens.attention_mask


def encode_padded(
    encoder: T5EncoderModel, tokenizer: T5Tokenizer, texts: list[str], length: int = T5_POSITIONS
) -> tuple[Tensor, Tensor, Tensor]:
    """As Flux reads texts that it pads to `length` tokens.

    Returns:
        States [n, tokens, width], of which the last stands for all further ones; 1 where a token is not padding
        [n, tokens]; what to add to the attention logits of each token [tokens].
    """
    longest = max(map(len, tokenizer(texts).input_ids))
    kept = min(longest + REACH + 1, length)
    tokens = tokenizer(texts, padding="max_length", max_length=kept, return_tensors="pt").to(DEVICE)
    bias = torch.zeros(kept, device=DEVICE)
    bias[-1] = math.log(length - kept + 1)
    states = encoder(tokens.input_ids, attention_mask=bias.expand(len(texts), 1, kept, kept)).last_hidden_state
    return states, tokens.attention_mask, bias


def draw_length(rng: np.random.Generator, shortest: int = 48) -> int:
    """The number of tokens to which texts are padded: half of the time a stock pipeline's, else fewer."""
    return round(shortest * (T5_POSITIONS / shortest) ** min(1.0, 2 * rng.random()))


class T5Task(ContrastiveTask):
    """Captions and images find each other, the captions read by T5."""

    def __init__(self, work: Path, batch: int):
        super().__init__(work, batch)
        self.tokenizer = T5Tokenizer.from_pretrained(work / T5_FOLDER)
        self.model = T5(self.tokenizer)

    def embed(self, model: nn.Module, texts: list[str], rng: np.random.Generator) -> Tensor:
        if rng.random() < MASKED:
            states, real = encode_masked(model.text, self.tokenizer, texts)
        else:
            states, real, _ = encode_padded(model.text, self.tokenizer, texts, draw_length(rng))
        return model.embed_states(states, real)


def main() -> None:
    arguments = training_command(__doc__, steps=1500, batch=128).parse_args()
    plan = make_plan(arguments, "t5", rate=1e-3, average=0.995)
    train(plan, functools.partial(T5Task, arguments.work, arguments.batch))


if __name__ == "__main__":
    main()
