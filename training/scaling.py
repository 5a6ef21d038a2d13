"""Stage scaling: `goca scaling` on the bundled pipelines and every exported one, with the namer as the judge.

Losses and scores are of the scenes that ship. Models may be named, to draw some of them: what is measured stays in the
folder. Prints the study as Markdown tables.

    python -m training.scaling [--work FOLDER] [--models dit@5 dit@10 ...] [--limit N] [--name scaling]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from goca import bundled
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.datasets.base import Dataset
from goca.evaluation.plot import plot_scaling
from goca.evaluation.power import Captioned
from goca.evaluation.runner import Stage
from goca.evaluation.scaling import ScalingConfig, run
from goca.evaluation.scaling_study import ScalingStudy
from goca.imaging import images

from . import namer
from .commands import command
from .judge import GUIDANCE, STEPS, halved
from .nouns import NAMES
from .vae import to_tensor

RECIPES = ("vanilla", "goca", "goca-balanced", "goca-refined")
"""Not goca-open: without prototypes, and with every name right, it is goca-balanced."""


@dataclass(frozen=True)
class NamerTagger:
    """The namer as a goca tagger."""

    model: namer.Namer
    name: str = "namer"

    def tag(self, sample: Captioned, dataset: Dataset) -> str:
        """The nouns that it sees in an image."""
        pixels = to_tensor(halved(np.asarray(images.load(sample.image))[None]))
        return ", ".join(name for name, seen in zip(NAMES, namer.shown(self.model, pixels)[0], strict=True) if seen)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="labels, bundled or folders in pipelines/ (all)")
    parser.add_argument("--limit", type=int, help="only the first N scenes")
    parser.add_argument("--name", default="scaling", help="stem of the plots, %(default)s")
    arguments = parser.parse_args()
    work: Path = arguments.work
    exported = {folder.parent.name: str(folder.parent) for folder in sorted(work.glob("pipelines/*/model_index.json"))}
    models = {**{name: name for name in bundled.names()}, **exported}
    config = ScalingConfig(
        models={name: models[name] for name in arguments.models or models},
        evaluation=EvaluationConfig(dataset="scenes", limit=arguments.limit),
        recipes=RECIPES,
        steps=STEPS,
        scale=GUIDANCE,
    )
    torch.set_num_threads(1)
    out = work / "scaling"
    for event in run(config, out, judge=NamerTagger(namer.load(work))):
        if isinstance(event, Stage):
            print(event.name, flush=True)
        elif isinstance(event, ScalingStudy):
            for suffix in ("png", "svg"):
                plot_scaling(event, out / f"{arguments.name}.{suffix}")
            print(tables(event))


def tables(study: ScalingStudy) -> str:
    """The study as Markdown: every model, what each recipe gains from a better generator, and its gain over vanilla.

    mIoU in per cent.
    """
    recipes = list(next(iter(study.scores.values())))
    trends = [(trend.power, *trend.cells()) for trend in study.trends]
    gaps = [(gap.power, f"{recipe} over {gap.base}", *gains) for gap in study.gaps for recipe, *gains in (gap.cells(),)]
    return "\n\n".join(
        (
            _markdown(("model", *(power.name for power in study.powers), *recipes), study.rows(recipes)),
            _markdown(("power", "recipe", "rise of mIoU", "rank correlation"), trends),
            _markdown(("power", "gain", "weakest", "strongest", "change"), gaps),
        )
    )


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


if __name__ == "__main__":
    main()
