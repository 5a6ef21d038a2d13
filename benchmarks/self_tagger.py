"""Accuracy of the bundled model as its own tagger: present classes among the 32 nouns.

python benchmarks/self_tagger.py [--limit 40] [--json]
"""

import argparse
import json
import time
from collections.abc import Sequence
from itertools import islice

import torch

from goca import GOCA, Segmenter, bundled
from goca.bundled import Scene
from goca.self_tagging import SelfTagger
from goca.tagging.multilabel import MultilabelScores


def measure(tagger: SelfTagger, scenes: Sequence[Scene]) -> tuple[MultilabelScores, float]:
    """What the tagger, choosing among all nouns of its model, agrees on with the scenes; CPU seconds a scene."""
    start = time.process_time()
    known = tagger.model.backbone.settings.nouns
    agreed = MultilabelScores.of((tagger.shown(scene.image, known), scene.classes) for scene in scenes)
    return agreed, (time.process_time() - start) / len(scenes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=40, help="number of scenes (%(default)s)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = Segmenter.from_pretrained("bundled", GOCA, device="cpu", batch=8)
    agreed, seconds = measure(SelfTagger(segmenter), list(islice(bundled.scenes(), arguments.limit)))
    if arguments.json:
        scores = {"precision": agreed.precision, "recall": agreed.recall, "f1": agreed.f1}
        print(json.dumps({**scores, "cpu_seconds": seconds}))
    else:
        print(f"{agreed}; {seconds:.2f} CPU-s")


if __name__ == "__main__":
    main()
