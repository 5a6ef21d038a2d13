"""Stage clip: a small CLIP on scenes and captions in many wordings. Its text half becomes the pipeline's
text encoder.

The text half is transformers' CLIPTextModel as Stable Diffusion 2 uses it: causal, 77 positions, padded with
a token of its own and without an attention mask. The image half is the namer's tower, locked: its features
are computed once, so that a step costs the text half alone ("LiT", Zhai et al. 2022, section 3).

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

from . import namer, scenes
from .captions import caption
from .commands import make_plan, training_command
from .loop import snapshot, train
from .scenes import Content
from .vae import to_tensor

WIDTH, LAYERS, HEADS = 128, 3, 4  # of the text half
# Standard deviations of the first embeddings: a word outweighs its position and, at first, its context.
TOKEN, POSITION = 1.0, 0.15
SYNONYMS = 0.4  # share of nouns said by another word
EVALUATED = 250  # held-out images among which a caption has to find its own
WEIGHTS, FEATURES = "clip.safetensors", "features.npy"


class Clip(nn.Module):
    """The text half, both halves' projections to one space, and the temperature; images come as features."""

    def __init__(self, tokenizer: CLIPTokenizer):
        super().__init__()
        self.text = CLIPTextModel(text_config(tokenizer))
        embeddings = self.text.embeddings
        nn.init.normal_(embeddings.token_embedding.weight, std=TOKEN)
        nn.init.normal_(embeddings.position_embedding.weight, std=POSITION)
        self.text_projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.image_projection = nn.Linear(namer.CHANNELS[-1], WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Token ids [n, tokens] to unit vectors [n, width]."""
        return F.normalize(self.text_projection(self.text(ids).pooler_output).float(), dim=-1)

    def embed_features(self, features: Tensor) -> Tensor:
        """The tower's features of images [n, channels] to unit vectors [n, width]."""
        return F.normalize(self.image_projection(features).float(), dim=-1)


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


class ClipTask:
    """Captions and images find each other within the batch."""

    def __init__(self, work: Path, batch: int):
        self.tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
        self.model = Clip(self.tokenizer)
        self.batch = batch
        _, self.contents = scenes.read(work / "scenes/train")
        self.features = torch.from_numpy(np.load(work / "clip" / FEATURES))
        images, self.held_out_contents = scenes.read(work / "scenes/held-out")
        self.held_out = features(namer.load(work), images[:EVALUATED])

    def tokens(self, contents: Sequence[Content], rng: np.random.Generator) -> Tensor:
        """One wording of each. Padded to the longest only: behind its end a causal text changes nothing."""
        texts = [caption(content, rng, synonyms=SYNONYMS) for content in contents]
        return self.tokenizer(texts, padding="longest", return_tensors="pt").input_ids

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = rng.integers(len(self.features), size=self.batch)
        contents = [self.contents[i] for i in chosen]
        with torch.autocast("cpu", torch.bfloat16):
            texts = self.model.embed_texts(self.tokens(contents, rng))
        images = self.model.embed_features(self.features[chosen])
        similarity = self.model.log_scale.clamp(max=math.log(100)).exp() * texts @ images.T
        own = torch.arange(self.batch)
        return {"loss": (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        contents = self.held_out_contents[:EVALUATED]
        texts = model.embed_texts(self.tokens(contents, np.random.default_rng(0)))
        similarity = texts @ model.embed_features(self.held_out).T
        own = torch.arange(len(contents))
        return {
            "text_finds_image": (similarity.argmax(1) == own).float().mean().item(),
            "image_finds_text": (similarity.argmax(0) == own).float().mean().item(),
        }

    def save(self, model: nn.Module, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / WEIGHTS)


@torch.no_grad()
def features(names: namer.Namer, images: np.ndarray, batch: int = 200) -> Tensor:
    """What the namer's tower says of images [n, h, w, 3] uint8: [n, channels] float32."""
    parts = [images[first : first + batch] for first in range(0, len(images), batch)]
    with torch.autocast("cpu", torch.bfloat16):
        return torch.cat([names.image(to_tensor(part)).float() for part in parts])


def write_features(work: Path) -> None:
    """The features of every training image: [image, channels] float32."""
    images, _ = scenes.read(work / "scenes/train")
    (work / "clip").mkdir(exist_ok=True)
    np.save(work / "clip" / FEATURES, features(namer.load(work), images).numpy())


def main() -> None:
    arguments = training_command(__doc__, steps=1200, batch=128).parse_args()
    plan = make_plan(arguments, "clip", rate=1e-3, average=0.995)
    if not (arguments.resume and (plan.folder / FEATURES).exists()):
        write_features(arguments.work)
    train(plan, functools.partial(ClipTask, arguments.work, arguments.batch))


if __name__ == "__main__":
    main()
