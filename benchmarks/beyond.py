"""Changes of the published recipe, side by side on several models: what each gains over goca-balanced, and costs.

    python benchmarks/beyond.py [--models bundled,DIR] [--scenes shipped|tuning] [--tries NAME ...]
        [--out FOLDER] [--limit N]

Every name is right and every pixel a class. Gains are paired over scenes, with 95 % intervals; p is a two-sided
bootstrap's, corrected by Holm's method for all tries of a model that the table shows. CPU seconds are of an image: a
pass that several tries need is computed once, and counted for each. What was counted stays in the folder, and is not
measured again. A table for each model.
Tuning scenes are drawn by `training.tune`, whose art has to be there.
"""

import argparse
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from PIL import Image
from tables import markdown
from torch import Tensor

from goca import GOCA, GOCA_BALANCED, GOCA_QUALITY, GOCA_REFINED, VANILLA, GocaError, Recipe, Segmenter, bundled
from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.backbone import Backbone, BackboneSession, BatchItem
from goca.diffusion.fingerprint import fingerprint
from goca.diffusion.loading import load
from goca.evaluation.ablate import scenes_benchmark
from goca.evaluation.datasets.base import Dataset
from goca.evaluation.evaluator import Evaluator, batches
from goca.evaluation.metrics import Tally, gain, interval, miou, percentage, resampled_miou
from goca.evaluation.oracle import OracleTagger
from goca.evaluation.protocol import honest
from goca.evaluation.records import ImageRecord
from goca.evaluation.report import Report
from goca.maths import Grid

sys.path.append(str(Path(__file__).parent.parent))

BASE = "goca-balanced"
BATCH = 8


TRIES: Mapping[str, Recipe] = {
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


@dataclass(frozen=True)
class Counted:
    """Pixels of each scene by label, and CPU seconds of an image."""

    tally: Tally
    seconds: float


def passes(recipe: Recipe) -> int:
    """Of the denoiser, for an image."""
    return recipe.seeds * (1 + recipe.flip)


Result = TypeVar("Result")


class SharedBackbone(Backbone):
    """A backbone that encodes an image, and sends it through the denoiser, once for all who ask, until it forgets.

    Attributes:
        spared: CPU seconds that what was asked for again would have taken.
    """

    def __init__(self, model: str) -> None:
        super().__init__(load(model, "cpu"), model)
        self.spared = 0.0
        self.known: dict[Hashable, tuple[Any, float]] = {}

    def forget(self) -> None:
        """Let go of everything: attention is large."""
        self.known.clear()

    def once(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        """What `compute` gives for a key, computed the first time."""
        if key in self.known:
            result, seconds = self.known[key]
            self.spared += seconds
            return result
        started = time.process_time()
        result = compute()
        self.known[key] = (result, time.process_time() - started)
        return result

    def latents(self, images: Sequence[Image.Image], size: Grid, batch: int | None = None) -> Tensor:
        key = (tuple(image.tobytes() for image in images), size)
        return self.once(key, lambda: super(SharedBackbone, self).latents(images, size, batch))

    def session(self) -> "SharedSession":
        return SharedSession(self)


class SharedSession(BackboneSession):
    """Passes of a `SharedBackbone`."""

    backbone: SharedBackbone

    def run(self, items: Iterable[BatchItem], batch: int) -> None:
        together = list(items)
        key = tuple((i.latent.numpy().tobytes(), i.caption, i.timestep, i.seed) for i in together)
        for item, calls in zip(together, self.backbone.once(key, lambda: self._calls_of(together, batch)), strict=True):
            for call in calls:
                item.sink(call)

    def _calls_of(self, items: Sequence[BatchItem], batch: int) -> list[list[AttentionCall]]:
        calls: list[list[AttentionCall]] = [[] for _ in items]
        super().run([replace(item, sink=own.append) for item, own in zip(items, calls, strict=True)], batch)
        return calls


def counted(
    backbone: SharedBackbone, tries: Mapping[str, Recipe], dataset: Dataset, folder: Path
) -> dict[str, Counted]:
    """What each try comes to, as its file in the folder has it, or measured and written there."""
    paths = {name: folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.pt" for name in tries}
    missing = [name for name, path in paths.items() if not path.exists()]
    protocol = honest(dataset, OracleTagger().name)
    evaluators = {
        name: Evaluator(
            Segmenter(backbone, tries[name], batch=BATCH),
            dataset,
            OracleTagger(),
            protocol,
        )
        for name in missing
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
        "--models", default=",".join(bundled.names()), help="names or folders, between commas (%(default)s)"
    )
    parser.add_argument("--scenes", choices=("shipped", "tuning"), default="shipped")
    parser.add_argument("--tries", nargs="*", choices=TRIES, metavar="NAME", help=f"some of: {', '.join(TRIES)}")
    parser.add_argument(
        "--out", type=Path, default=Path("goca-beyond"), help="folder of what was counted (%(default)s)"
    )
    parser.add_argument("--limit", type=int, help="only the first N scenes")
    options = parser.parse_args()
    chosen = {name: TRIES[name] for name in (BASE, *(options.tries or TRIES))}
    torch.set_num_threads(1)
    for model in options.models.split(","):
        backbone = SharedBackbone(model)
        with TemporaryDirectory() as images:
            dataset = dataset_of(options.scenes, backbone, options.limit, Path(images))
            weights, count = fingerprint(backbone.pipeline)[:8], len(dataset.samples)
            folder = options.out / f"{options.scenes}-{count}" / f"{Path(model).name}-{weights}"
            cells = columns(counted(backbone, chosen, dataset, folder))
        rows = [[name, str(passes(each)), *cells[name]] for name, each in chosen.items()]
        print(f"\n{Path(model).name}, {count} scenes:\n")
        print(markdown(["changed", "passes", "mIoU [95 %]", "gain [95 %]", "p", "CPU-s"], rows), flush=True)


if __name__ == "__main__":
    main()
