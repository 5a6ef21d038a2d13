"""The scenes benchmark: what a segmenter scores on the scenes that ship with the package, or on others like them.

Every class of a scene is named (tags from the ground truth), every pixel has a class and gets one, nothing is void.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from goca import bundled
from goca.bundled import Scene
from goca.errors import GocaError
from goca.evaluation import caption_nouns
from goca.evaluation.datasets.base import Dataset, Sample
from goca.evaluation.metrics import Score, Tally, score
from goca.evaluation.oracle import true_classes
from goca.evaluation.protocol import NOUNS, SENTENCES, Protocol
from goca.maths.confusion import confusion
from goca.request import SegmentationRequest
from goca.segmenter import Segmenter
from goca.tagging.answers import write

CAPTIONS = (NOUNS, SENTENCES)


@dataclass(frozen=True)
class SceneOracle:
    """The oracle of the scenes: the classes of the ground truth, in the order in which each scene lists them."""

    name: str = "oracle"

    def tag(self, sample: Sample, dataset: Dataset) -> str:
        listed = self._scenes[sample.id]["classes"]
        return write((one,) for one in sorted(true_classes(sample, dataset), key=listed.index))

    def sentence(self, sample: Sample) -> str:
        """The sentence that names a scene's classes."""
        return self._scenes[sample.id]["captions"][SENTENCES]

    @cached_property
    def _scenes(self) -> dict[str, Any]:
        path = Path(bundled.__file__).parent / "scenes" / "scenes.json"
        return {Path(entry["image"]).stem: entry for entry in json.loads(path.read_text(encoding="utf-8"))}


@dataclass(frozen=True)
class Evaluation:
    """A segmenter's counts on scenes; label i is names[i - 1], 0 never occurs."""

    names: tuple[str, ...]
    tally: Tally
    protocol: Protocol

    @property
    def score(self) -> Score:
        return score(self.tally, self.names)

    def to_json(self) -> dict[str, Any]:
        """The scores, from 0 to 1, and the protocol."""
        return {**asdict(self.score), "protocol": self.protocol.to_json()}


def evaluate_scenes(
    segmenter: Segmenter,
    captions: str = NOUNS,
    scenes: Iterable[Scene] | None = None,
    done: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Segment scenes and count; `done` is called after each. scenes: those that ship, unless others are given.

    Raises GocaError for an unknown style of captions.
    """
    check_captions(captions)
    asked = list(bundled.scenes() if scenes is None else scenes)
    names = tuple(sorted({name for scene in asked for name in scene.classes}))
    questions = [_question(scene, captions) for scene in asked]
    matrices = []
    for scene, (_, result) in zip(asked, segmenter.stream(questions), strict=True):
        if isinstance(result, GocaError):
            raise result
        place = torch.tensor([0, *(names.index(name) + 1 for name in scene.classes)])
        truth, found = (place[torch.from_numpy(labels.astype("int64"))] for labels in (scene.labels, result.labels))
        matrices.append(confusion(truth, found, len(names) + 1))
        done()
    protocol = Protocol("honest", "scenes", "all", len(asked), "oracle", caption_nouns.HONEST, captions=captions)
    return Evaluation(names, Tally.of(torch.stack(matrices)), protocol)


def check_captions(captions: str) -> None:
    """GocaError for an unknown style of captions."""
    if captions not in CAPTIONS:
        raise GocaError(f'no captions "{captions}": there are {", ".join(CAPTIONS)}')


def _question(scene: Scene, captions: str) -> SegmentationRequest:
    caption = None if captions == NOUNS else scene.captions[captions]
    return SegmentationRequest(scene.image, scene.classes, background=None, caption=caption)
