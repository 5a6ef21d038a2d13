"""Stage tune_tagger: the thresholds of the model as its own tagger, on the scenes that `training.tune` chooses on.

Of each scorer, the threshold with the best F1 of present classes among the 32 nouns. The result goes into
`goca/self_tagging.py` by hand; the benchmark's scenes are never looked at here, but by
`benchmarks/self_tagger.py`.

    python -m training.tune_tagger [--work FOLDER] [--model bundled] [--count 60]

The run that chose them: error 0.1152 (precision 0.824, recall 0.686, F1 0.749; 3.8 CPU-s a scene), map 0.0715 (0.559,
0.597, 0.577; 0.6 CPU-s).
"""

import json
import time
from itertools import pairwise

import torch

from goca.segmenter import Segmenter
from goca.self_tagging import SCORERS, SelfPruningTagger
from goca.tagging.multilabel import MultilabelScores

from .commands import command
from .nouns import NAMES
from .tune import tuning_scenes

Scores = list[dict[str, float]]  # of each image: {candidate: score}


def best(scores: Scores, truth: list[set[str]]) -> tuple[float, MultilabelScores]:
    """The threshold with the best F1, in the middle between two scores, and what it agrees on."""
    levels = sorted({score for image in scores for score in image.values() if score > float("-inf")})
    middles = [(low + high) / 2 for low, high in pairwise(levels)]

    def found(threshold: float) -> MultilabelScores:
        kept = ({name for name, score in image.items() if score >= threshold} for image in scores)
        return MultilabelScores.of(zip(kept, truth, strict=True))

    return max(((threshold, found(threshold)) for threshold in middles), key=lambda pair: pair[1].f1)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--model", default="bundled", help="pipeline folder (%(default)s)")
    parser.add_argument("--count", type=int, default=60, help="scenes (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = Segmenter.from_pretrained(arguments.model, device="cpu", batch=8)
    scenes = list(tuning_scenes(arguments.count, arguments.work / "art"))
    truth = [set(scene.classes) for scene in scenes]
    for name, scorer in SCORERS.items():
        tagger = SelfPruningTagger(segmenter, scorer)
        start = time.process_time()
        scores = [dict(zip(NAMES, tagger.scores(scene.image, NAMES).tolist(), strict=True)) for scene in scenes]
        seconds = (time.process_time() - start) / len(scenes)
        threshold, agreement = best(scores, truth)
        row = {"scorer": name, "threshold": round(threshold, 4), "agreement": str(agreement), "cpu_seconds": seconds}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
