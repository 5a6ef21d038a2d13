"""Variations of the published recipe on several models: the gain of each over goca-balanced, and its cost.

    python benchmarks/beyond.py [--models bundled,bundled-dit,DIR] [--scenes shipped|tuning] [--tries NAME ...]
        [--out FOLDER] [--limit N]

Every name is right and every pixel has a class. Gains are paired over scenes, with 95 % intervals; p is a two-sided
bootstrap's, corrected by Holm's method for all tries of a model that the table shows. CPU seconds are per image. What
was counted is kept in the folder, and not measured again.
Tuning scenes are drawn by `training.tune`, whose art has to be there.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tables import markdown

from goca import GOCA, GOCA_BALANCED, GOCA_REFINED, VANILLA, GocaError, Recipe, Segmenter
from goca.diffusion.backbone import Backbone
from goca.diffusion.fingerprint import fingerprint
from goca.evaluation.ablate import scenes_benchmark
from goca.evaluation.datasets.base import Dataset
from goca.evaluation.evaluator import evaluate_dataset
from goca.evaluation.metrics import Tally, gain, interval, miou, percentage, resampled_miou
from goca.evaluation.oracle import OracleTagger
from goca.evaluation.protocol import honest
from goca.plan import Options

sys.path.append(str(Path(__file__).parent.parent))

BASE = "goca-balanced"


@dataclass(frozen=True)
class Try:
    """A recipe, and the user's settings beside it."""

    recipe: Recipe
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passes(self) -> int:
        """Denoiser passes per image."""
        seeds = self.options.get("seeds", self.recipe.seeds)
        return seeds * (1 + bool(self.options.get("flip", self.recipe.flip)))


TRIES: Mapping[str, Try] = {
    BASE: Try(GOCA_BALANCED),
    "vanilla": Try(VANILLA),
    "goca": Try(GOCA),
    "class keys on the side (1)": Try(replace(GOCA_BALANCED, keys="side")),
    "common part of affinity off (2)": Try(replace(GOCA_BALANCED, affinity="distinct")),
    "the same, twice (3)": Try(replace(GOCA_BALANCED, affinity="distinct", order=2)),
    "equal layers": Try(replace(GOCA_BALANCED, layers="mean")),
    "edges": Try(replace(GOCA_BALANCED, edges=True)),
    "refit": Try(replace(GOCA_BALANCED, refit="gaussians")),
    "refit and edges: goca-refined": Try(GOCA_REFINED),
    "goca-refined, equal layers": Try(replace(GOCA_REFINED, layers="mean")),
    "goca-refined, common part off": Try(replace(GOCA_REFINED, affinity="distinct")),
    "mirrored too (6)": Try(GOCA_BALANCED, {"flip": True}),
    "two seeds (6)": Try(GOCA_BALANCED, {"seeds": 2}),
    "goca-refined, mirrored too": Try(GOCA_REFINED, {"flip": True}),
    "goca-refined, mirrored, two seeds": Try(GOCA_REFINED, {"flip": True, "seeds": 2}),
    "goca-refined, mirrored, four seeds": Try(GOCA_REFINED, {"flip": True, "seeds": 4}),
    "goca-refined, eight seeds": Try(GOCA_REFINED, {"seeds": 8}),
}


@dataclass(frozen=True)
class Counted:
    """Pixels of each scene by label, and CPU seconds per image."""

    tally: Tally
    seconds: float


def counted(backbone: Backbone, chosen: Try, dataset: Dataset, path: Path) -> Counted:
    """The result of a try, from its file, or measured and written there."""
    if path.exists():
        content = torch.load(path, weights_only=True)
        return Counted(Tally(*content["counts"]), content["seconds"])
    segmenter = Segmenter(backbone, chosen.recipe, Options(**chosen.options), 8)
    started = time.process_time()
    report = evaluate_dataset(segmenter, dataset, OracleTagger(), honest(dataset, OracleTagger().name))
    seconds = (time.process_time() - started) / len(dataset.samples)
    for image in report.left_out:
        raise GocaError(image.left_out)
    tally = report.tally()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"counts": [tally.hit, tally.truth, tally.predicted], "seconds": seconds}, path)
    return Counted(tally, seconds)


def bootstrap_p(ours: Tally, theirs: Tally) -> float:
    """Twice the share of resampled differences of mIoU on the other side of 0, at least that of one resample."""
    differences = resampled_miou(ours) - resampled_miou(theirs)
    beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(differences) + 1))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method (1979)."""
    out, largest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[index]))
        out[index] = largest
    return out


def columns(results: Mapping[str, Counted]) -> dict[str, list[str]]:
    """{try: cells of a model}."""
    base = results[BASE].tally
    others = [title for title in results if title != BASE]
    corrected = dict(zip(others, holm([bootstrap_p(results[title].tally, base) for title in others]), strict=True))
    cells = {}
    for title, result in results.items():
        score = percentage(miou(result.tally), interval(resampled_miou(result.tally)))
        change = percentage(*gain(result.tally, base), "+") if title != BASE else ""
        chance = f"{corrected[title]:.3f}" if title != BASE else ""
        cells[title] = [score, change, chance, f"{result.seconds:.2f}"]
    return cells


def dataset_of(kind: str, backbone: Backbone, limit: int | None, images: Path) -> Dataset:
    """The scenes that ship, or those that settings are chosen on at the model's size."""
    if kind == "shipped":
        return scenes_benchmark(limit=limit)[0]
    from training import scenes, tune
    from training.commands import DEFAULT_WORK

    size = scenes.SIZE if backbone.settings.size <= scenes.SIZE else scenes.CANVAS
    return tune.dataset_of(tune.tuning_scenes(limit or 100, DEFAULT_WORK / "art", size), images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", default="bundled,bundled-dit", help="names or folders, comma-separated (%(default)s)"
    )
    parser.add_argument("--scenes", choices=("shipped", "tuning"), default="shipped")
    parser.add_argument("--tries", nargs="*", choices=TRIES, metavar="NAME", help=f"some of: {', '.join(TRIES)}")
    parser.add_argument("--out", type=Path, default=Path("goca-beyond"), help="folder for the counts (%(default)s)")
    parser.add_argument("--limit", type=int, help="use only the first N scenes")
    options = parser.parse_args()
    chosen = {name: TRIES[name] for name in (BASE, *(options.tries or TRIES))}
    torch.set_num_threads(1)
    models = options.models.split(",")
    cells: list[dict[str, list[str]]] = []
    for model in models:
        backbone = Segmenter.from_pretrained(model, GOCA_BALANCED, device="cpu").backbone
        with TemporaryDirectory() as images:
            dataset = dataset_of(options.scenes, backbone, options.limit, Path(images))
            weights = fingerprint(backbone.pipeline)[:8]
            folder = options.out / options.scenes / f"{Path(model).name}-{weights}"
            results = {}
            for number, (name, each) in enumerate(chosen.items()):
                path = folder / f"{len(dataset.samples)}-{''.join(c if c.isalnum() else '-' for c in name)}.pt"
                results[name] = counted(backbone, each, dataset, path)
                told = f"{model}: {name}, {number + 1} of {len(chosen)}: {miou(results[name].tally):.4f}"
                print(told, file=sys.stderr, flush=True)
        cells.append(columns(results))
    header = ["changed", "passes"]
    rows = [[name, str(each.passes)] for name, each in chosen.items()]
    for model, of_model in zip(models, cells, strict=True):
        header += [f"{Path(model).name}: mIoU [95 %]", "gain [95 %]", "p", "CPU-s"]
        for row in rows:
            row += of_model[row[0]]
    table = markdown(header, rows)
    print(table)


if __name__ == "__main__":
    main()
