"""Stage namer: which of our nouns a picture shows, for judging what the pipeline paints.

It starts from the CLIP's picture half and naming head and goes on with the naming loss alone: the
contrastive stage names stuff well but things hardly. It learns from real scenes only, half of them
softened, since generated pictures are softer than scenes. A noun is said to be shown above a threshold of
its own, set on held-out scenes where precision and recall meet.

    python -m training.namer [--work FOLDER] [--steps N] [--resume]
"""

import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import clip, scenes
from .commands import make_plan, training_command
from .loop import snapshot, train
from .nouns import NAMES, THINGS
from .vae import to_tensor

WEIGHTS = "namer.safetensors"


class Namer(nn.Module):
    """Pictures to one logit per noun, from which the noun's threshold is already taken."""

    def __init__(self):
        super().__init__()
        self.picture = clip.PictureTower()
        self.nouns = nn.Linear(clip.CHANNELS[-1], len(NAMES))
        self.register_buffer("threshold", torch.zeros(len(NAMES)))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.nouns(self.picture(pictures)).float() - self.threshold


def load(work: Path) -> Namer:
    """The trained namer."""
    namer = Namer()
    namer.load_state_dict(load_file(snapshot(work / "namer") / WEIGHTS))
    return namer.eval().requires_grad_(False)


@torch.no_grad()
def shown(namer: Namer, pictures: Tensor) -> Tensor:
    """Which nouns each picture shows [n, noun] bool."""
    return torch.cat([namer(part) > 0 for part in pictures.split(50)])


def meeting_point(logits: Tensor, present: Tensor) -> Tensor:
    """Per noun the logit that as many pictures exceed as show the noun: there precision equals recall."""
    ordered = logits.sort(dim=0, descending=True).values
    counts = present.sum(0).long().clamp(1, len(ordered) - 1)
    above, below = (ordered.gather(0, (counts - shift)[None])[0] for shift in (1, 0))
    return (above + below) / 2


class NamerTask:
    """Binary cross-entropy per noun; a noun that is there weighs as much as several that are not."""

    def __init__(self, work: Path, batch: int):
        trained, _ = clip.load(work)
        self.model = Namer()
        self.model.picture.load_state_dict(trained.picture.state_dict())
        self.model.nouns.load_state_dict(trained.nouns.state_dict())
        self.batch = batch
        self.pictures, contents = scenes.read(work / "scenes/train")
        self.present = clip.presence(contents)
        pictures, contents = scenes.read(work / "scenes/held-out")
        half = len(contents) // 2  # the judge asks for the first scenes; thresholds are set on others
        self.held_out, self.held_out_present = to_tensor(pictures[half:]), clip.presence(contents[half:])

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = np.sort(rng.integers(len(self.pictures), size=self.batch))
        pictures = to_tensor(self.pictures[chosen])
        soft = torch.rand((self.batch, 1, 1, 1), generator=generator) < 0.5
        pictures = torch.where(soft, F.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False), pictures)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(pictures)
        weight = torch.tensor(4.0)
        return {"loss": F.binary_cross_entropy_with_logits(logits, self.present[chosen], pos_weight=weight)}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Precision (which is recall) over things and over stuff, at the meeting points."""
        logits, present = self._logits(model), self.held_out_present > 0
        hits = (logits > meeting_point(logits, present)) & present
        parts = {"things": slice(0, len(THINGS)), "stuff": slice(len(THINGS), None)}
        return {name: (hits[:, part].sum() / present[:, part].sum()).item() for name, part in parts.items()}

    @torch.no_grad()
    def save(self, model: nn.Module, folder: Path) -> None:
        threshold = meeting_point(self._logits(model), self.held_out_present > 0)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({**model.state_dict(), "threshold": threshold}, folder / WEIGHTS)

    def _logits(self, model: nn.Module) -> Tensor:
        return torch.cat([model(part) for part in self.held_out.split(100)])


def main() -> None:
    arguments = training_command(__doc__, steps=800, batch=48).parse_args()
    plan = make_plan(arguments, "namer", rate=1e-3, average=0.99)
    train(plan, functools.partial(NamerTask, arguments.work, arguments.batch))


if __name__ == "__main__":
    main()
