"""The scenes benchmark: what a segmenter scores on the scenes that ship with the package.

Every class of a scene is named (tags from the ground truth), every pixel has a class and gets one, nothing is void.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from goca import bundled
from goca.bench.scores import Score, score
from goca.bundled import Scene
from goca.errors import GocaError
from goca.maths.confusion import confusion
from goca.question import Question
from goca.segmenter import Segmenter

CAPTIONS = ("nouns", "sentences")


@dataclass(frozen=True)
class Protocol:
    """What a score is a score of; it stands beside every figure.

    pictures: how many. captions: "nouns" (a list of the classes) or "sentences" (one that names them).
    """

    dataset: str
    pictures: int
    captions: str
    split: str = "the whole benchmark; settings were chosen on other scenes, in training art"
    tags: str = "ground truth: the classes of each picture are given"
    threshold: str = "none: every pixel gets a class"
    void: str = "none"
    absent: str = "classes that never occur are left out of the mean"


@dataclass(frozen=True)
class Evaluation:
    """matrices: (picture, label, label) confusion counts, label i is names[i - 1], 0 never occurs."""

    names: tuple[str, ...]
    matrices: Int[Tensor, "picture label label"]
    protocol: Protocol

    @property
    def score(self) -> Score:
        return score(self.matrices, self.names)

    def to_json(self) -> dict[str, Any]:
        """miou, pixel_accuracy, per_class, ci95 and the protocol; scores from 0 to 1."""
        return {**asdict(self.score), "protocol": asdict(self.protocol)}


def evaluate_scenes(
    segmenter: Segmenter,
    captions: str = "nouns",
    scenes: Iterable[Scene] | None = None,
    done: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Segment the scenes and count; `done` is called after each. scenes: those that ship, unless others are given.

    Raises GocaError for an unknown style of captions.
    """
    if captions not in CAPTIONS:
        raise GocaError(f'no captions "{captions}": there are {", ".join(CAPTIONS)}')
    asked = list(bundled.scenes() if scenes is None else scenes)
    names = tuple(sorted({name for scene in asked for name in scene.classes}))
    questions = [_question(scene, captions) for scene in asked]
    matrices = []
    for scene, (_, result) in zip(asked, segmenter.stream(questions), strict=True):
        place = torch.tensor([0, *(names.index(name) + 1 for name in scene.classes)])
        truth, found = (place[torch.from_numpy(labels.astype("int64"))] for labels in (scene.labels, result.labels))
        matrices.append(confusion(truth, found, len(names) + 1))
        done()
    return Evaluation(names, torch.stack(matrices), Protocol("scenes", len(asked), captions))


def _question(scene: Scene, captions: str) -> Question:
    caption = None if captions == "nouns" else scene.captions[captions]
    return Question(scene.image, scene.classes, background=None, caption=caption)
