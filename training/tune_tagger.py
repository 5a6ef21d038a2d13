"""Stage tune_tagger: the numbers of the model as its own tagger, on the scenes that `training.tune` chooses on.

Those with the best F1 of present classes among the 32 nouns, at each timestep: the weight of the errors' evidence, and
the share at which it is 0.5. Then mIoU, where GOCA_BALANCED is asked for the kept nouns and every pixel gets a class,
of the look's evidence alone and with the errors. The result goes into `goca/self_tagging.py` by hand; the benchmark's
scenes are never looked at here, but by `benchmarks/self_tagger.py`.

    python -m training.tune_tagger [--work FOLDER] [--model bundled] [--count 100]

The run that chose them, with the evidence of prototypes, on 100 scenes: at 400, weight 2 and half 1.25 (precision
0.852, recall 0.764, F1 0.806); at 500, 3 and 1.5 (0.885, 0.743, 0.808); at 600, 3 and 1.25 (0.835, 0.782, 0.808); 0.36
CPU-s a scene. Evidence alone 0.699, 0.743, 0.720, and 38.7 % mIoU; with errors at 600, 44.1 %. With the evidence of
attention, and nine rows of errors, before: evidence alone F1 0.601 and 23.6 %; at 500, weight 2 and half 2, 0.723 and
31.2 %; windows of 0.2 to 0.4 and sharpness 20 to 60 were within 0.01, four candidates at two timesteps 0.714, twelve
0.728. When the log odds of the look were halved later (`trust` of `goca.evidence.RULES`), so was the weight, and
`clear` became 0.85, the evidence of about the share that it stood for.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from goca.bundled import Scene
from goca.evaluation.evaluator import evaluate_dataset
from goca.evaluation.protocol import honest
from goca.maths.presence import present
from goca.recipe import GOCA_BALANCED
from goca.segmenter import Segmenter
from goca.self_tagging import Seen, SelfRule, SelfTagger
from goca.tagging.multilabel import MultilabelScores

from .commands import command
from .nouns import NAMES
from .tune import dataset_of, tuning_scenes

TIMESTEPS = (400, 500, 600)
WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # 0: the look's evidence alone
HALVES = (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0)


def kept(seen: Seen, rule: SelfRule) -> set[str]:
    """The nouns that are shown, where every pixel is of one."""
    there = present(rule.combined(seen), rule.floor, background=False).tolist()
    return {name for name, is_there in zip(NAMES, there, strict=True) if is_there}


def best(measured: Sequence[Seen], truth: Sequence[set[str]], rule: SelfRule) -> tuple[SelfRule, MultilabelScores]:
    """The rule with the best weight and half, and what it agrees on."""
    rules = [
        replace(rule, weight=weight, errors=replace(rule.errors, half=half))
        for weight, half in product(WEIGHTS, HALVES)
    ]
    pairs = [
        (each, MultilabelScores.of(zip((kept(seen, each) for seen in measured), truth, strict=True))) for each in rules
    ]
    return max(pairs, key=lambda pair: pair[1].f1)


@dataclass
class Known:
    """A tagger that has been asked."""

    captions: dict[str, str]
    name: str = "known"

    def tag(self, sample: Any, dataset: Any) -> str:
        return self.captions[sample.id]


def miou(segmenter: Segmenter, scenes: Sequence[Scene], names: Sequence[set[str]]) -> float:
    """Of GOCA_BALANCED, asked for these nouns."""
    with TemporaryDirectory() as folder:
        dataset = dataset_of(scenes, Path(folder))
        tagger = Known({str(index): ", ".join(sorted(each)) for index, each in enumerate(names)})
        return evaluate_dataset(segmenter, dataset, tagger, honest(dataset, tagger.name)).score().miou


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--model", default="bundled", help="pipeline folder (%(default)s)")
    parser.add_argument("--count", type=int, default=100, help="scenes (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = Segmenter.from_pretrained(arguments.model, GOCA_BALANCED, device="cpu", batch=8)
    scenes = list(tuning_scenes(arguments.count, arguments.work / "art"))
    truth = [set(scene.classes) for scene in scenes]
    chosen: list[tuple[MultilabelScores, SelfRule, list[Seen]]] = []
    for timestep in TIMESTEPS:
        tagger = SelfTagger(segmenter, rule=SelfRule(timestep=timestep))
        start = time.process_time()
        measured = [tagger.seen(scene.image, NAMES, background=False) for scene in scenes]
        seconds = (time.process_time() - start) / len(scenes)
        rule, agreement = best(measured, truth, tagger.rule)
        row = {"timestep": timestep, "weight": rule.weight, "half": rule.errors.half, "agreement": str(agreement)}
        print(json.dumps({**row, "cpu_seconds": round(seconds, 2)}), flush=True)
        chosen.append((agreement, rule, measured))
    _, rule, measured = max(chosen, key=lambda each: each[0].f1)
    for name, each in {
        "evidence alone": replace(rule, weight=0.0),
        "with errors": rule,
        "as it is": SelfRule(),
    }.items():
        names = [kept(seen, each) for seen in measured]
        agreement = MultilabelScores.of(zip(names, truth, strict=True))
        row = {"rule": name, "agreement": str(agreement), "miou": round(miou(segmenter, scenes, names), 4)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
