"""How well the bundled model says by itself what is in an image: present classes among the 32 nouns, per scorer.

python benchmarks/self_tagger.py [--limit 40] [--json]
"""

import argparse
import json
import time
from collections.abc import Sequence
from itertools import islice

import torch

from goca import Segmenter, bundled
from goca.bundled import Scene
from goca.self_tagging import SCORERS, SelfPruningTagger
from goca.tagging.multilabel import MultilabelScores


def measure(tagger: SelfPruningTagger, scenes: Sequence[Scene]) -> tuple[MultilabelScores, float]:
    """What the tagger, choosing among all nouns of its model, agrees on with the scenes; CPU seconds a scene."""
    start = time.process_time()
    known = tagger.segmenter.backbone.settings.nouns
    found = MultilabelScores.of((tagger.pruned(scene.image, known), scene.classes) for scene in scenes)
    return found, (time.process_time() - start) / len(scenes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=40, help="scenes (%(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = Segmenter.from_pretrained("bundled", device="cpu", batch=8)
    scenes = list(islice(bundled.scenes(), arguments.limit))
    for scorer in SCORERS.values():
        tagger = SelfPruningTagger(segmenter, scorer)
        found, seconds = measure(tagger, scenes)
        told = {"tagger": tagger.name, "precision": found.precision, "recall": found.recall, "f1": found.f1}
        print(
            json.dumps({**told, "cpu_seconds": seconds})
            if arguments.json
            else f"{tagger.name}: {found}; {seconds:.2f} CPU-s"
        )


if __name__ == "__main__":
    main()
