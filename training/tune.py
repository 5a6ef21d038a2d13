"""Stage tune: choose a pipeline's settings, on scenes in training art that nothing else uses.

Decided before any score was looked at: noise, refinement layers and order are those with the best mean mIoU
of the recipes vanilla, goca and goca-balanced, so that no recipe is favoured; the reference layer, which
vanilla does not have, by the mean of the other two. One thing is chosen after the other, in that order. The
candidates follow from the kind of model. The object that is printed last is what the pipeline's goca.json has
under "settings"; it goes into SETTINGS of the model's stage by hand, which `training.export` writes. A reference
block that `goca models --check` finds wanting gives way to the next best. The benchmark's scenes are never
looked at here.

    python -m training.tune [--work FOLDER] [--model FOLDER] [--count 100]
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from goca.bundled import Scene
from goca.diffusion.backbone import Backbone
from goca.diffusion.loading import load
from goca.diffusion.model_facts import read_facts
from goca.evaluation.datasets.base import Dataset, Sample
from goca.evaluation.evaluator import evaluate_dataset
from goca.evaluation.oracle import OracleTagger
from goca.evaluation.protocol import honest
from goca.imaging.palette import palette
from goca.plan import Options
from goca.recipe import GOCA, GOCA_BALANCED, VANILLA, Recipe
from goca.segmenter import Segmenter
from goca.text.nouns import Category

from . import art, scenes
from .benchmark import task
from .commands import command

SEED = 4  # of the tuning scenes and their textures
NOISE = (50, 100, 200, 300)
FLOW_NOISE = (100, 200, 300, 400)  # thousandths of sigma
ORDERS = (1, 2)


def tuning_scenes(count: int, art_folder: Path, size: int = scenes.SIZE) -> Iterator[Scene]:
    """Scenes in training art of `size` px a side, drawn as the benchmark's are."""
    packs = [art.load(name, art_folder) for name in art.TRAINING_PACKS]
    textures = scenes.make_textures(SEED)
    for index in range(count):
        yield task(scenes.render(SEED, index, packs, textures, size), np.random.default_rng((SEED, index, 1)))


def dataset_of(scenes: Iterable[Scene], folder: Path) -> Dataset:
    """The scenes as a data set whose images lie in a folder."""
    drawn = list(scenes)
    names = sorted({name for scene in drawn for name in scene.classes})
    samples = []
    for index, scene in enumerate(drawn):
        image = folder / f"{index}.png"
        scene.image.save(image)
        table = np.array([0, *(names.index(name) + 1 for name in scene.classes)], np.uint16)
        samples.append(Sample(image.stem, image, partial(table.__getitem__, scene.labels), scene.captions))
    return Dataset("scenes", "tuning", tuple(map(Category, names)), tuple(samples), False, palette(len(names)))


class Tuner:
    """Scores of one pipeline on the tuning scenes, each told on a line as it is measured."""

    def __init__(self, backbone: Backbone, dataset: Dataset) -> None:
        self.backbone, self.dataset = backbone, dataset

    def score(self, recipes: Sequence[Recipe], **settings: object) -> float:
        """Mean mIoU of the recipes under some settings."""
        changed = [replace(recipe, **settings) for recipe in recipes]  # type: ignore[arg-type]
        protocol = honest(self.dataset, "oracle")
        scores = []
        for recipe in changed:
            segmenter = Segmenter(self.backbone, recipe, Options(), 8)
            report = evaluate_dataset(segmenter, self.dataset, OracleTagger(), protocol)
            scores.append(report.score().miou)
        print(json.dumps({**settings, "miou": [round(score, 4) for score in scores]}), flush=True)
        return sum(scores) / len(scores)


@dataclass(frozen=True)
class Candidates:
    """What is tried: noise levels, refinements with the one for the choice of the noise first, orders, references."""

    noise: Sequence[int]
    refine: Sequence[tuple[str, ...]]
    orders: Sequence[int]
    reference: Sequence[str]


def candidates(backbone: Backbone) -> Candidates:
    """What a model's kind says should be tried.

    Of a UNet, the finest level of the up path: all of its blocks and each alone; the reference is behind the down path.
    Of a transformer, the family's own blocks, the middle half, the later half, both together, and at most four single
    blocks of the middle half; the reference is behind the first quarter.
    """
    family, blocks = backbone.family, backbone.blocks
    if family.component == "unet":
        up = [block for block in blocks if block.startswith("up_blocks")]
        last = up[-1].split(".attentions.")[0]
        finest = tuple(block for block in up if block.startswith(last))
        refine = dict.fromkeys([finest, *((block,) for block in finest)])
        return Candidates(NOISE, tuple(refine), ORDERS, [name for name in blocks if not name.startswith("down_blocks")])
    count = len(blocks)
    middle, late, both = blocks[count // 4 : -(-3 * count // 4)], blocks[count // 2 :], blocks[count // 4 :]
    _, ruled = family.block_rule.choose(backbone.denoiser, blocks)
    singles = middle[:: -(-len(middle) // 4)]
    refine = dict.fromkeys([ruled, middle, late, both, *((block,) for block in singles)])
    noise, orders = FLOW_NOISE if family.flow else NOISE, sorted({*ORDERS, family.order})
    return Candidates(noise, tuple(refine), orders, both)


def tune(tuner: Tuner) -> dict[str, object]:
    """The best settings, one thing after the other."""
    everyone, weighers = (VANILLA, GOCA, GOCA_BALANCED), (GOCA, GOCA_BALANCED)
    tried = candidates(tuner.backbone)
    first, least = tried.refine[0], tried.orders[0]
    noise = max(tried.noise, key=lambda timestep: tuner.score(everyone, timestep=timestep, refine=first, order=least))
    refine, order = max(
        product(tried.refine, tried.orders),
        key=lambda pair: tuner.score(everyone, timestep=noise, refine=pair[0], order=pair[1]),
    )
    chosen = {"timestep": noise, "refine": refine, "order": order}
    reference = max(tried.reference, key=lambda block: tuner.score(weighers, **chosen, reference=block))
    return {**chosen, "reference": reference}


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--model", type=Path, help="pipeline folder (default: WORK/pipelines/unet)")
    parser.add_argument("--count", type=int, default=100, help="scenes (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = arguments.model or arguments.work / "pipelines/unet"
    backbone = Backbone(load(folder, "cpu"), str(folder))
    size = scenes.SIZE if backbone.settings.size <= scenes.SIZE else scenes.CANVAS
    with TemporaryDirectory() as images:
        dataset = dataset_of(tuning_scenes(arguments.count, arguments.work / "art", size), Path(images))
        chosen = tune(Tuner(backbone, dataset))
    origin = f"chosen on {arguments.count} scenes in training art (python -m training.tune)"
    stated = read_facts(folder).settings
    kept = {name: stated[name] for name in ("size", "grid", "evidence_blocks", "options") if name in stated}
    print(json.dumps({"settings": {**kept, **chosen, "origin": origin}}, indent=2))


if __name__ == "__main__":
    main()
