"""Stage namer: an image tower that says which of our nouns an image shows.

It judges the pipelines' images, and its tower is the target of text encoders (see clip.py, t5.py)
and transformers align with (see transformer.py); at the end the stage writes down what the tower says of
every training scene. It learns from real scenes only, half of them softened, since generated images are
softer than scenes. A noun is said to be shown above a threshold of its own, set on held-out scenes where
precision and recall meet.

    python -m training.namer [--work FOLDER] [--steps N] [--resume]
"""

import functools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import scenes
from .commands import make_plan, training_command
from .loop import DEVICE, autocast, snapshot, train
from .nouns import NAMES, THINGS
from .scenes import Content
from .vae import to_tensor

CHANNELS = (32, 64, 128, 192)  # of the tower, at 32, 16, 8 and 4 cells a side
WEIGHTS = "namer.safetensors"
FINE, COARSE = "fine.npy", "coarse.npy"  # the tower's features of the training scenes, at 8 and 4 cells a side


class Residual(nn.Module):
    """Two normalised convolutions around a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        norm = functools.partial(nn.GroupNorm, 8, channels)
        conv = functools.partial(nn.Conv2d, channels, channels, 3, padding=1)
        self.branch = nn.Sequential(norm(), nn.SiLU(), conv(), norm(), nn.SiLU(), conv())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class ImageTower(nn.Module):
    """Images [n, 3, 64, 64] to features [n, channels]."""

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

    def grids(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features by place: [n, channels, 8, 8] of the third stage, [n, channels, 4, 4] of the last."""
        third = 3 * len(CHANNELS[:3])  # a stage is three modules
        fine = self.stages[:third](images)
        return fine, self.stages[third:](fine)

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(images).mean((2, 3))


class Namer(nn.Module):
    """Images to one logit per noun, from which the noun's threshold is already taken."""

    def __init__(self):
        super().__init__()
        self.image = ImageTower()
        self.nouns = nn.Linear(CHANNELS[-1], len(NAMES))
        self.register_buffer("threshold", torch.zeros(len(NAMES)))

    def forward(self, images: Tensor) -> Tensor:
        return self.nouns(self.image(images)).float() - self.threshold


def load(work: Path) -> Namer:
    """The trained namer: the work folder's, or else the one beside this file."""
    weights = snapshot(work / "namer") / WEIGHTS
    namer = Namer()
    namer.load_state_dict(load_file(weights if weights.exists() else Path(__file__).with_name(WEIGHTS)))
    return namer.to(DEVICE).eval().requires_grad_(False)


@torch.no_grad()
def grids(namer: Namer, images: np.ndarray, batch: int = 200) -> tuple[Tensor, Tensor]:
    """The tower's `grids` of images [n, h, w, 3] uint8, batch by batch, on the CPU."""
    parts = [images[first : first + batch] for first in range(0, len(images), batch)]
    with autocast():
        pairs = [namer.image.grids(to_tensor(part)) for part in parts]
    fine, coarse = (torch.cat([grid.float().cpu() for grid in level]) for level in zip(*pairs, strict=True))
    return fine, coarse


def features(coarse: Tensor) -> Tensor:
    """The tower's features of whole images [n, channels], from its last grids."""
    return coarse.float().mean((2, 3))


def write_grids(work: Path, processes: int = 2, chunk: int = 2000) -> None:
    """The grids of every training scene, float16; the second file says by its presence that both are whole."""
    images, _ = scenes.read(work / "scenes/train")
    ranges = [range(first, min(first + chunk, len(images))) for first in range(0, len(images), chunk)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        fine, coarse = zip(*pool.map(functools.partial(_grids_of_range, work), ranges), strict=True)
    (work / "namer").mkdir(exist_ok=True)
    np.save(work / "namer" / FINE, np.concatenate(fine))
    np.save(work / "namer" / COARSE, np.concatenate(coarse))


def _grids_of_range(work: Path, indices: range) -> list[np.ndarray]:
    torch.set_num_threads(1)
    images, _ = scenes.read(work / "scenes/train")
    return [grid.half().numpy() for grid in grids(load(work), images[indices.start : indices.stop])]


def presence(contents: Sequence[Content]) -> Tensor:
    """Which nouns each scene shows, as ones and zeros [n, noun]."""
    shown = [[float(name in content.nouns) for name in NAMES] for content in contents]
    return torch.tensor(shown, device=DEVICE)


@torch.no_grad()
def shown(namer: Namer, images: Tensor) -> Tensor:
    """Which nouns each image shows [n, noun] bool."""
    return torch.cat([namer(part) > 0 for part in images.split(50)])


def meeting_point(logits: Tensor, present: Tensor) -> Tensor:
    """Per noun the logit that as many images exceed as show the noun: there precision equals recall."""
    ordered = logits.sort(dim=0, descending=True).values
    counts = present.sum(0).long().clamp(1, len(ordered) - 1)
    above, below = (ordered.gather(0, (counts - shift)[None])[0] for shift in (1, 0))
    return (above + below) / 2


class NamerTask:
    """Binary cross-entropy per noun; a present noun weighs as much as several absent ones."""

    def __init__(self, work: Path, batch: int):
        self.model = Namer()
        self.batch = batch
        self.images, contents = scenes.read(work / "scenes/train")
        self.present = presence(contents)
        images, contents = scenes.read(work / "scenes/held-out")
        half = len(contents) // 2  # the judge asks for the first scenes; thresholds are set on others
        self.held_out, self.held_out_present = to_tensor(images[half:]), presence(contents[half:])

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> dict[str, Tensor]:
        chosen = np.sort(rng.integers(len(self.images), size=self.batch))
        images = to_tensor(self.images[chosen])
        soft = (torch.rand((self.batch, 1, 1, 1), generator=generator) < 0.5).to(DEVICE)
        images = torch.where(soft, F.avg_pool2d(images, 3, 1, 1, count_include_pad=False), images)
        with autocast():
            logits = self.model(images)
        weight = torch.tensor(4.0, device=DEVICE)
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
        save_file({**model.state_dict(), "threshold": threshold}, folder / WEIGHTS)

    def _logits(self, model: nn.Module) -> Tensor:
        return torch.cat([model(part) for part in self.held_out.split(100)])


def main() -> None:
    arguments = training_command(__doc__, steps=1800, batch=48).parse_args()
    plan = make_plan(arguments, "namer", rate=1e-3, average=0.99)
    train(plan, functools.partial(NamerTask, arguments.work, arguments.batch))
    if snapshot(plan.folder).exists():  # not interrupted
        write_grids(arguments.work)


if __name__ == "__main__":
    main()
