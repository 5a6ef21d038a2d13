"""Stage clip: a small CLIP on scenes and captions in many wordings. Its text half becomes the pipeline's
text encoder.

The text half is transformers' CLIPTextModel as Stable Diffusion uses it: causal, 77 positions, padded with
the end token and without an attention mask. The picture half is convolutional, and carries a second head
that says which of our nouns a picture shows; it makes the picture half learn faster and later judges
generated pictures (see judge.py).

    python -m training.clip [--work FOLDER] [--steps N] [--resume]
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from . import scenes
from .captions import caption
from .commands import make_plan, training_command
from .loop import snapshot, train
from .nouns import NAMES
from .scenes import Content
from .vae import to_tensor

WIDTH, LAYERS, HEADS = 128, 3, 4  # of the text half
CHANNELS = (32, 64, 128, 192)  # of the picture half, at 32, 16, 8 and 4 cells a side
SYNONYMS = 0.4  # share of nouns said by another word
EVALUATED = 250  # held-out pictures among which a caption has to find its own
WEIGHTS = "clip.safetensors"


class Residual(nn.Module):
    """Two normalised convolutions around a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        norm = functools.partial(nn.GroupNorm, 8, channels)
        conv = functools.partial(nn.Conv2d, channels, channels, 3, padding=1)
        self.branch = nn.Sequential(norm(), nn.SiLU(), conv(), norm(), nn.SiLU(), conv())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class PictureTower(nn.Module):
    """Pictures [n, 3, 64, 64] to features [n, channels]."""

    def __init__(self):
        super().__init__()
        stages: list[nn.Module] = []
        for before, channels in zip((3, *CHANNELS), CHANNELS, strict=False):
            stages += [
                nn.Conv2d(before, channels, 3, stride=2, padding=1),
                Residual(channels),
                Residual(channels),
            ]
        self.stages = nn.Sequential(*stages, nn.GroupNorm(8, CHANNELS[-1]), nn.SiLU())

    def forward(self, pictures: Tensor) -> Tensor:
        return self.stages(pictures).mean((2, 3))


class Clip(nn.Module):
    """Both halves, their projections to one space, the temperature, and the head that names nouns."""

    def __init__(self, tokenizer: CLIPTokenizer):
        super().__init__()
        self.text = CLIPTextModel(text_config(tokenizer))
        self.text_projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.picture = PictureTower()
        self.picture_projection = nn.Linear(CHANNELS[-1], WIDTH, bias=False)
        self.nouns = nn.Linear(CHANNELS[-1], len(NAMES))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Token ids [n, tokens] to unit vectors [n, width]."""
        return F.normalize(self.text_projection(self.text(ids).pooler_output).float(), dim=-1)

    def embed_pictures(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures to unit vectors [n, width] and noun logits [n, noun]."""
        features = self.picture(pictures)
        return F.normalize(self.picture_projection(features).float(), dim=-1), self.nouns(features).float()


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
    return clip.eval().requires_grad_(False), tokenizer


def presence(contents: Sequence[Content]) -> Tensor:
    """Which nouns each scene shows, as ones and zeros [n, noun]."""
    return torch.tensor([[float(name in content.nouns) for name in NAMES] for content in contents])


class ClipTask:
    """Captions and pictures find each other within the batch; the second head names the nouns."""

    def __init__(self, work: Path, batch: int):
        self.tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
        self.model = Clip(self.tokenizer)
        self.batch = batch
        self.pictures, self.contents = scenes.read(work / "scenes/train")
        pictures, self.held_out_contents = scenes.read(work / "scenes/held-out")
        self.held_out = to_tensor(pictures[:EVALUATED])

    def tokens(self, contents: Sequence[Content], rng: np.random.Generator) -> Tensor:
        """One wording of each. Padded to the longest only: behind its end a causal text changes nothing."""
        texts = [caption(content, rng, synonyms=SYNONYMS) for content in contents]
        return self.tokenizer(texts, padding="longest", return_tensors="pt").input_ids

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = np.sort(rng.integers(len(self.pictures), size=self.batch))
        contents = [self.contents[i] for i in chosen]
        with torch.autocast("cpu", torch.bfloat16):
            texts = self.model.embed_texts(self.tokens(contents, rng))
            pictures, logits = self.model.embed_pictures(to_tensor(self.pictures[chosen]))
        similarity = self.model.log_scale.clamp(max=math.log(100)).exp() * texts @ pictures.T
        own = torch.arange(self.batch)
        contrast = (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
        naming = F.binary_cross_entropy_with_logits(logits, presence(contents))
        return {"loss": contrast + 4 * naming, "contrast": contrast.detach(), "naming": naming.detach()}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        contents = self.held_out_contents[:EVALUATED]
        pictures, logits = model.embed_pictures(self.held_out)
        texts = model.embed_texts(self.tokens(contents, np.random.default_rng(0)))
        similarity = texts @ pictures.T
        own = torch.arange(len(contents))
        said, shown = logits > 0, presence(contents) > 0
        return {
            "text_finds_picture": (similarity.argmax(1) == own).float().mean().item(),
            "picture_finds_text": (similarity.argmax(0) == own).float().mean().item(),
            "noun_precision": ((said & shown).sum() / said.sum().clamp(min=1)).item(),
            "noun_recall": ((said & shown).sum() / shown.sum()).item(),
        }

    def save(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / WEIGHTS)


def main() -> None:
    arguments = training_command(__doc__, steps=440, batch=128).parse_args()
    plan = make_plan(arguments, "clip", rate=1e-3, average=0.995)
    train(plan, functools.partial(ClipTask, arguments.work, arguments.batch))


if __name__ == "__main__":
    main()
