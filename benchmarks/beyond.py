"""Changes of the published recipe, side by side on several models: what each gains over goca-balanced, and costs.

    python benchmarks/beyond.py [--models bundled,DIR] [--scenes shipped|tuning] [--tries NAME ...] [--costly]
        [--strengths] [--over NAME] [--sizes] [--out FOLDER] [--limit N]

Recipes of the library, and ideas that are not in it (`ideas.py`). Every name is right and every pixel a class. Gains
are paired over scenes, with 95 % intervals; p is a two-sided bootstrap's, corrected by Holm's method for all tries of a
model that the table shows. CPU seconds are of an image: a pass that several tries need is computed once, and counted
for each. What was counted stays in the folder, and is not measured again. A table for each model, and with --sizes a
second one of gains by the size of regions.
Tuning scenes are drawn by `training.tune`, whose art has to be there; the strengths of ideas are chosen on them.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from ideas import BATCH, COSTLY, IDEAS, STRENGTHS, IdeaSegmenter, Variation
from shared_passes import SharedBackbone
from tables import markdown

from goca import GOCA, GOCA_BALANCED, GOCA_QUALITY, GOCA_REFINED, VANILLA, GocaError, Recipe, bundled
from goca.diffusion.backbone import Backbone
from goca.diffusion.fingerprint import fingerprint
from goca.evaluation.ablate import scenes_benchmark
from goca.evaluation.datasets.base import Dataset
from goca.evaluation.evaluator import Evaluator, batches
from goca.evaluation.metrics import (
    Tally,
    band,
    gain,
    interval,
    miou,
    parts_by_size,
    percentage,
    resampled_miou,
)
from goca.evaluation.oracle import OracleTagger
from goca.evaluation.protocol import honest
from goca.evaluation.records import ImageRecord
from goca.evaluation.report import Report

sys.path.append(str(Path(__file__).parent.parent))

BASE = "goca-balanced"

RECIPES: Mapping[str, Recipe] = {
    BASE: GOCA_BALANCED,
    "vanilla": VANILLA,
    "goca": GOCA,
    "class keys on the side": replace(GOCA_BALANCED, keys="side"),
    "common part of affinity off": replace(GOCA_BALANCED, affinity="distinct"),
    "the same, twice": replace(GOCA_BALANCED, affinity="distinct", order=2),
    "heads by what varies": replace(GOCA_BALANCED, heads="varying-share"),
    "equal layers": replace(GOCA_BALANCED, layers="mean"),
    "a cell for each token": replace(GOCA_BALANCED, grid="tokens"),
    "refit and edges": replace(GOCA_BALANCED, refit="gaussians", edges=True),
    "the same, a cell for each token": replace(GOCA_REFINED, heads=GOCA_BALANCED.heads),
    "and heads by what varies: goca-refined": GOCA_REFINED,
    "goca-refined, equal layers": replace(GOCA_REFINED, layers="mean"),
    "mirrored too": replace(GOCA_BALANCED, flip=True),
    "goca-refined, mirrored too: goca-quality": GOCA_QUALITY,
}
OF_RECIPES = {name: Variation(recipe) for name, recipe in RECIPES.items()}
TRIES: Mapping[str, Variation] = {**OF_RECIPES, **IDEAS, **COSTLY}


@dataclass(frozen=True)
class Counted:
    """Pixels of each scene by label, and CPU seconds of an image."""

    tally: Tally
    seconds: float


def counted(
    backbone: SharedBackbone, tries: Mapping[str, Variation], dataset: Dataset, folder: Path
) -> dict[str, Counted]:
    """What each try comes to, as its file in the folder has it, or measured and written there."""
    paths = {name: folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.pt" for name in tries}
    missing = [name for name, path in paths.items() if not path.exists()]
    protocol = honest(dataset, OracleTagger().name)
    evaluators = {
        name: Evaluator(IdeaSegmenter(backbone, tries[name]), dataset, OracleTagger(), protocol) for name in missing
    }
    records: dict[str, list[ImageRecord]] = {name: [] for name in missing}
    seconds = dict.fromkeys(missing, 0.0)
    for number, batch in enumerate(batches(dataset, BATCH) if missing else ()):
        for name, evaluator in evaluators.items():
            started, spared = time.process_time(), backbone.spared
            records[name] += evaluator(batch)
            seconds[name] += time.process_time() - started + backbone.spared - spared
        backbone.forget()
        print(f"{backbone.name}: {number * BATCH + len(batch.indices)} scenes", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        report = Report(dataset.class_names, protocol, tuple(records[name]))
        for image in report.left_out:
            raise GocaError(image.left_out)
        tally, each = report.tally(), seconds[name] / len(dataset.samples)
        torch.save({"counts": [tally.hit, tally.truth, tally.predicted], "seconds": each}, paths[name])
    contents = {name: torch.load(path, weights_only=True) for name, path in paths.items()}
    return {name: Counted(Tally(*content["counts"]), content["seconds"]) for name, content in contents.items()}


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


def columns(results: Mapping[str, Counted], over: str = BASE) -> dict[str, list[str]]:
    """{try: cells of a model}, gains over the try of some name."""
    base = results[over].tally
    others = [title for title in results if title != over]
    corrected = dict(zip(others, holm([bootstrap_p(results[title].tally, base) for title in others]), strict=True))
    cells = {}
    for title, result in results.items():
        score = percentage(miou(result.tally), interval(resampled_miou(result.tally)))
        change = percentage(*gain(result.tally, base), "+") if title != over else ""
        chance = f"{corrected[title]:.3f}" if title != over else ""
        cells[title] = [score, change, chance, f"{result.seconds:.2f}"]
    return cells


def size_table(results: Mapping[str, Counted], over: str = BASE) -> str:
    """The gains of each try in each band of the size of regions, as a table."""
    bands = {title: parts_by_size(result.tally) for title, result in results.items()}
    header = ["gain [95 %] in regions of", *(band(shares) for shares, _ in bands[over])]
    rows = []
    for title, parts in bands.items():
        pairs = zip(parts, bands[over], strict=True)
        rows.append([title, *(percentage(*gain(part, base), "+") for (_, part), (_, base) in pairs)])
    return markdown(header, [row for row in rows if row[0] != over])


def dataset_of(kind: str, backbone: Backbone, limit: int | None, images: Path) -> Dataset:
    """The scenes that ship, or those that settings are chosen on at the model's size."""
    if kind == "shipped":
        return scenes_benchmark(limit=limit)[0]
    from training import scenes, tune
    from training.commands import DEFAULT_WORK

    size = scenes.SIZE if backbone.settings.size <= scenes.SIZE else scenes.CANVAS
    return tune.dataset_of(tune.tuning_scenes(limit or 100, DEFAULT_WORK / "art", size), images)


def selected(options: argparse.Namespace, joint: bool) -> dict[str, Variation]:
    """What gains are over, then the tries that are asked for, without those that need joint attention if it lacks."""
    named = {name: TRIES[name] for name in options.tries or ()}
    named |= COSTLY if options.costly else {}
    named |= STRENGTHS if options.strengths else {}
    possible = {name: each for name, each in (named or {**OF_RECIPES, **IDEAS}).items() if joint or not each.joint}
    return {options.over: TRIES[options.over], **possible}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", default=",".join(bundled.names()), help="names or folders, between commas (%(default)s)"
    )
    parser.add_argument("--scenes", choices=("shipped", "tuning"), default="shipped")
    parser.add_argument("--tries", nargs="*", choices=TRIES, metavar="NAME", help=f"some of: {', '.join(TRIES)}")
    parser.add_argument(
        "--strengths", action="store_true", help="ideas with each strength from which theirs were chosen"
    )
    parser.add_argument("--costly", action="store_true", help="ideas that take several passes")
    parser.add_argument("--over", choices=TRIES, metavar="NAME", default=BASE, help="what gains are over (%(default)s)")
    parser.add_argument("--sizes", action="store_true", help="print gains by the size of regions too")
    parser.add_argument(
        "--out", type=Path, default=Path("goca-beyond"), help="folder of what was counted (%(default)s)"
    )
    parser.add_argument("--limit", type=int, help="only the first N scenes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for model in options.models.split(","):
        backbone = SharedBackbone(model)
        tries = selected(options, backbone.family.joint is not None)
        with TemporaryDirectory() as images:
            dataset = dataset_of(options.scenes, backbone, options.limit, Path(images))
            weights, count = fingerprint(backbone.pipeline)[:8], len(dataset.samples)
            folder = options.out / f"{options.scenes}-{count}" / f"{Path(model).name}-{weights}"
            results = counted(backbone, tries, dataset, folder)
        cells = columns(results, options.over)
        rows = [[name, each.passes, *cells[name]] for name, each in tries.items()]
        print(f"\n{Path(model).name}, {count} scenes:\n")
        print(markdown(["changed", "passes", "mIoU [95 %]", "gain [95 %]", "p", "CPU-s"], rows), flush=True)
        if options.sizes:
            print(f"\n{size_table(results, options.over)}", flush=True)


if __name__ == "__main__":
    main()
