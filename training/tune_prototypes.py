"""Stage tune_prototypes: how the bundled model's prototypes are learned, on the scenes that `training.tune` chooses on.

Timestep, shrinkage, channels and images for each noun, one after the other; by mIoU of the prototypes alone, without
attention, every pixel a class: among all 32 nouns, and among those that are there. The result goes into
`goca.prototype_learning.LearningOptions` by hand; the benchmark's scenes are never looked at here.

    python -m training.tune_prototypes [--work FOLDER] [--model bundled] [--count 100] [--images 15]

Images are painted once, into WORK/prototypes. What the run that chose them printed is in README.md.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from goca import GOCA, bundled
from goca.bundled import Scene
from goca.maths.resize import resize
from goca.prototype_learning import LearningOptions, PrototypeLearner, paint, palette
from goca.prototypes import ImageLogits, Prototypes
from goca.request import SegmentationRequest
from goca.segmentation import Segmentation
from goca.segmenter import Segmenter

from .commands import command
from .nouns import NAMES
from .tune import tuning_scenes

BATCH = 8
OPTIONS = LearningOptions(steps=20, scale=3.0)
TIMESTEPS = (50, 100, 200, 300)
SHRINKAGES = (0.03, 0.1, 0.3)
CHANNELS = (32, 64)
SHARES = (1 / 3, 2 / 3, 1)


def painted(segmenter: Segmenter, options: LearningOptions, folder: Path) -> Iterator[list[Segmentation]]:
    """The images that `goca.prototype_learning.learn` paints, with their labels, a batch at a time."""
    nouns = palette(segmenter, bundled.vocabulary())
    learner = PrototypeLearner(segmenter, nouns, options)
    folder.mkdir(parents=True, exist_ok=True)
    captions = list(nouns.captions(options.images * len(nouns.nouns), options.seed))
    for start in range(0, len(captions), BATCH):
        part = captions[start : start + BATCH]
        paths = [folder / f"{seed}.png" for seed in range(options.seed + start, options.seed + start + len(part))]
        for path, caption in zip(paths, part, strict=True):
            if not path.exists():
                paint(segmenter, caption, int(path.stem), options).save(path)
        yield learner.label([Image.open(path).convert("RGB") for path in paths], part)


def miou(labels: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    """Mean IoU over the nouns, of label maps that hold indices of `NAMES`."""
    pairs = np.stack([np.concatenate([each.ravel() for each in maps]) for maps in (truth, labels)])
    confusion = np.bincount(pairs[0] * len(NAMES) + pairs[1], minlength=len(NAMES) ** 2).reshape(2 * [len(NAMES)])
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return float((confusion.diagonal()[union > 0] / union[union > 0]).mean())


class Tuner:
    """Scores of prototypes on the scenes, each told on a line as it is measured."""

    def __init__(self, segmenter: Segmenter, scenes: Sequence[Scene]) -> None:
        self.segmenter, self.scenes = segmenter, scenes
        index = {name: number for number, name in enumerate(NAMES)}
        self.truth = [
            np.array([index[name] for name in scene.classes])[scene.labels.astype(int) - 1] for scene in scenes
        ]

    def logits(self, prototypes: Prototypes) -> Iterator[torch.Tensor]:
        """Those of every scene in `NAMES`' order, in its size."""
        prototypes = prototypes.among(NAMES)
        session, backbone = self.segmenter.backbone.session(), self.segmenter.backbone
        for start in range(0, len(self.scenes), BATCH):
            requests = [SegmentationRequest(scene.image, NAMES) for scene in self.scenes[start : start + BATCH]]
            images = [self.segmenter.prepare(request, session) for request in requests]
            maps = [ImageLogits.of(prototypes, image.windows) for image in images]
            items = (
                part.items(backbone.latents(image.tiles, image.size), image.size)
                for image, part in zip(images, maps, strict=True)
            )
            session.run(chain.from_iterable(items), BATCH)
            yield from (
                resize(part.logits(), (image.image.height, image.image.width))
                for image, part in zip(images, maps, strict=True)
            )

    def score(self, prototypes: Prototypes, **facts: object) -> float:
        """mIoU among all nouns."""
        every, right = [], []
        for logits, truth in zip(self.logits(prototypes), self.truth, strict=True):
            there = np.unique(truth)
            every.append(logits.argmax(0).numpy())
            right.append(there[logits[there.tolist()].argmax(0).numpy()])
        scores = [miou(labels, self.truth) for labels in (every, right)]
        row = {**facts, "all": round(100 * scores[0], 1), "right names": round(100 * scores[1], 1)}
        print(json.dumps(row), flush=True)
        return scores[0]


def tune(tuner: Tuner, labelled: Sequence[Sequence[Segmentation]], options: LearningOptions) -> LearningOptions:
    """The best settings, one thing after the other."""
    nouns = palette(tuner.segmenter, bundled.vocabulary())
    shares = {round(share * len(labelled)) for share in SHARES}

    def learned(chosen: LearningOptions, by_share: bool = False) -> PrototypeLearner:
        learner = PrototypeLearner(tuner.segmenter, nouns, chosen)
        for number, batch in enumerate(labelled):
            learner.add(batch, chosen.seed + number * BATCH)
            if by_share and number + 1 in shares:
                tuner.score(learner.prototypes(), channels=chosen.max_channels, images=BATCH * (number + 1))
        return learner

    whole = replace(options, max_channels=10_000)
    learners = {timestep: learned(replace(whole, timestep=timestep)) for timestep in TIMESTEPS}
    timestep = max(TIMESTEPS, key=lambda t: tuner.score(learners[t].prototypes(), timestep=t, channels="all"))

    def shrunk(shrinkage: float) -> float:
        learners[timestep].options = replace(whole, timestep=timestep, shrinkage=shrinkage)
        return tuner.score(learners[timestep].prototypes(), timestep=timestep, shrinkage=shrinkage)

    options = replace(options, timestep=timestep, shrinkage=max(SHRINKAGES, key=shrunk))
    for channels in CHANNELS:
        learned(replace(options, max_channels=channels), by_share=True)
    return options


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--model", default="bundled", help="pipeline folder (%(default)s)")
    parser.add_argument("--count", type=int, default=100, help="scenes (%(default)s)")
    parser.add_argument("--images", type=int, default=OPTIONS.images, help="painted for each noun (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = Segmenter.from_pretrained(arguments.model, GOCA, device="cpu", batch=BATCH)
    options = replace(OPTIONS, images=arguments.images)
    labelled = list(painted(segmenter, options, arguments.work / "prototypes"))
    scenes = list(tuning_scenes(arguments.count, arguments.work / "art"))
    print(json.dumps({"chosen": repr(tune(Tuner(segmenter, scenes), labelled, options))}))


if __name__ == "__main__":
    main()
