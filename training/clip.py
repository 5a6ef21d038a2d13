"""Stage clip: a small CLIP on scenes and captions in many wordings. Its text half becomes the text encoder
of the UNet's pipeline, and pools for the joint model.

The text half is transformers' CLIPTextModel as Stable Diffusion 2 uses it: causal, 77 positions, padded with
a token of its own and without an attention mask. The image half is the namer's tower, locked: its features
are computed once, so that a step costs the text half alone ("LiT", Zhai et al. 2022, section 3).

    python -m training.clip [--work FOLDER] [--steps N] [--resume]
"""

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BatchEncoding, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from . import namer, scenes
from .captions import caption
from .commands import make_plan, training_command
from .loop import DEVICE, autocast, snapshot, train
from .scenes import Content

WIDTH, LAYERS, HEADS = 128, 3, 4  # of the text half
# Standard deviations of the first embeddings: a word outweighs its position and, at first, its context.
TOKEN, POSITION = 1.0, 0.15
SYNONYMS = 0.4  # share of nouns said by another word
EVALUATED = 250  # held-out images among which a caption has to find its own
WEIGHTS = "clip.safetensors"


class Projections(nn.Module):
    """Both halves' projections to one space, and the temperature; images come as the tower's features."""

    def __init__(self) -> None:
        super().__init__()
        self.text_projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.image_projection = nn.Linear(namer.CHANNELS[-1], WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed_features(self, features: Tensor) -> Tensor:
        """The tower's features of images [n, channels] to unit vectors [n, width]."""
        return F.normalize(self.image_projection(features).float(), dim=-1)

    def project(self, pooled: Tensor) -> Tensor:
        """What the text half says of texts as wholes [n, width] to unit vectors [n, width]."""
        return F.normalize(self.text_projection(pooled).float(), dim=-1)


class Clip(Projections):
    """CLIP's text half with the projections."""

    def __init__(self, tokenizer: CLIPTokenizer):
        super().__init__()
        self.text = CLIPTextModel(text_config(tokenizer))
        embeddings = self.text.embeddings
        nn.init.normal_(embeddings.token_embedding.weight, std=TOKEN)
        nn.init.normal_(embeddings.position_embedding.weight, std=POSITION)

    def embed_texts(self, tokens: BatchEncoding) -> Tensor:
        """Tokens of texts to unit vectors [n, width]. Behind its end a causal text changes nothing: no mask."""
        return self.project(self.text(tokens.input_ids).pooler_output)


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The text half's configuration: CLIP's, small."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def load(work: Path) -> tuple[Clip, CLIPTokenizer]:
    """The trained CLIP and its tokenizer, from what the stages left in `work`."""
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    clip = Clip(tokenizer)
    clip.load_state_dict(load_file(snapshot(work / "clip") / WEIGHTS))
    return clip.to(DEVICE).eval().requires_grad_(False), tokenizer


class ContrastiveTask(ABC):
    """Captions and images find each other within the batch."""

    model: Projections

    def __init__(self, work: Path, batch: int):
        self.batch = batch
        _, self.contents = scenes.read(work / "scenes/train")
        self.features = namer.features(torch.from_numpy(np.load(work / "namer" / namer.COARSE))).to(DEVICE)
        images, self.held_out_contents = scenes.read(work / "scenes/held-out")
        self.held_out = namer.features(namer.grids(namer.load(work), images[:EVALUATED])[1]).to(DEVICE)

    @abstractmethod
    def embed(self, model: nn.Module, texts: list[str], rng: np.random.Generator) -> Tensor:
        """Texts to unit vectors [n, width]."""

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = rng.integers(len(self.features), size=self.batch)
        with autocast():
            texts = self.embed(self.model, wordings([self.contents[i] for i in chosen], rng), rng)
        images = self.model.embed_features(self.features[chosen])
        similarity = self.model.log_scale.clamp(max=math.log(100)).exp() * texts @ images.T
        own = torch.arange(self.batch, device=DEVICE)
        return {"loss": (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        rng = np.random.default_rng(0)
        texts = self.embed(model, wordings(self.held_out_contents[:EVALUATED], rng), rng)
        similarity = texts @ model.embed_features(self.held_out).T
        own = torch.arange(len(texts), device=DEVICE)
        return {
            "text_finds_image": (similarity.argmax(1) == own).float().mean().item(),
            "image_finds_text": (similarity.argmax(0) == own).float().mean().item(),
        }

    def save(self, model: nn.Module, folder: Path) -> None:
        # Copies: T5's embeddings have two names.
        save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / WEIGHTS)


def wordings(contents: Sequence[Content], rng: np.random.Generator) -> list[str]:
    """A caption of each, with synonyms."""
    return [caption(content, rng, synonyms=SYNONYMS) for content in contents]


class ClipTask(ContrastiveTask):
    """The same, with CLIP's text half."""

    def __init__(self, work: Path, batch: int):
        super().__init__(work, batch)
        self.tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
        self.model = Clip(self.tokenizer)

    def embed(self, model: nn.Module, texts: list[str], rng: np.random.Generator) -> Tensor:
        return model.embed_texts(self.tokenizer(texts, padding="longest", return_tensors="pt").to(DEVICE))


def main() -> None:
    arguments = training_command(__doc__, steps=1200, batch=128).parse_args()
    plan = make_plan(arguments, "clip", rate=1e-3, average=0.995)
    train(plan, functools.partial(ClipTask, arguments.work, arguments.batch))


if __name__ == "__main__":
    main()
