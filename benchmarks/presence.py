"""The effect of missing, superfluous and wrong names: the bundled pipeline on scenes, recipes side by side.

    python benchmarks/presence.py [--recipe goca-balanced,goca-open] [--rows a,b,c,e,f] [--tagger self]
        [--scenes shipped|tuning] [--every N] [--json FILE] [--curve FILE.png] [--draw FILE.png] [--fill DOCUMENT ...]
        [--evidence attention|prototypes] [--half H]

Prints the table in Markdown, below the command that made it. mIoU is over all scenes, as in `goca evaluate scenes`,
which row f agrees with; intervals are bootstraps over scenes. CPU seconds and rows through the denoiser are of one
request; what a recipe keeps on disk is measured anew. Tuning scenes are drawn by `training.tune`, whose art has to be
there.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Float
from overhead import counted_rows
from PIL import Image
from tables import fill, markdown

from goca import Segmentation, Segmenter, bundled
from goca.bundled import Scene
from goca.errors import GocaError
from goca.evaluation.metrics import RESAMPLES, Counting, Interval, interval, score
from goca.evaluation.records import ImageRecord, count, tally
from goca.evidence import RULES
from goca.imaging import draw
from goca.imaging.sheet import Cell, contact_sheet
from goca.recipe import AUTO, recipe_named
from goca.request import SegmentationRequest
from goca.tagging.multilabel import MultilabelScores

NOUNS = bundled.vocabulary()
THINGS = tuple(noun for noun in NOUNS if noun not in bundled.stuff())
ABSENT = 3
"""Number of absent things that are requested for each scene."""
LEVELS = tuple(level / 10 for level in range(1, 10))
"""Levels of evidence in the table of the curve."""
DRAWN = 2
"""Number of scenes that are drawn: the first ones, whatever they show."""
COLOURS = 48
"""Colours of the drawing, which decide the size of its file."""
ENLARGED = 4
LISTED = 4
"""Most classes that a drawing names."""
BATCH = 8


@dataclass(frozen=True)
class Row:
    """What of a scene is named, once or in several requests, and what counts.

    Attributes:
        named: The classes of each request.
        labels: The names that have a label; pixels of others are background.
        background: As in `SegmentationRequest`.
        tagged: Whether the tagger chooses among the classes.
    """

    title: str
    named: Callable[[Scene], Sequence[Sequence[str]]]
    labels: Sequence[str]
    background: str | None = AUTO
    tagged: bool = False


def absent(scene: Scene) -> list[tuple[str]]:
    """Some things that are not there, each alone; the same for a scene wherever it stands in a list."""
    missing = [thing for thing in THINGS if thing not in scene.classes]
    chosen = np.random.default_rng(crc32(scene.image.tobytes())).permutation(missing)[:ABSENT]
    return [(str(thing),) for thing in chosen]


ALL_NOUNS = Row("all 32 nouns, every pixel a class", lambda scene: [NOUNS], NOUNS, None)
ROWS: Mapping[str, Row] = {
    "a": Row(
        "things that are there, stuff is background",
        lambda scene: [[name for name in scene.classes if name in THINGS]],
        THINGS,
    ),
    "b": Row("all 24 things, of which one to three are there", lambda scene: [THINGS], THINGS),
    "c": ALL_NOUNS,
    "d": replace(ALL_NOUNS, title="the same, a tagger chooses among them", tagged=True),
    "e": Row("one thing that is not there, alone: share of the image that it gets; how often any", absent, ()),
    "f": Row("every name right, every pixel a class", lambda scene: [scene.classes], NOUNS, None),
}


@dataclass(frozen=True)
class Measured:
    """A figure of the table, 0 to 1: mIoU, or the mean share that an absent thing gets.

    Attributes:
        any_pixels: In how many requests an absent thing gets any pixel, 0 to 1, with its interval; None for mIoU.
        seconds, rows: CPU seconds and rows through the denoiser, a request.
    """

    row: str
    recipe: str
    figure: float
    ci95: Interval
    any_pixels: tuple[float, Interval] | None
    seconds: float
    rows: float


def measure(
    segmenter: Segmenter, key: str, scenes: Sequence[Scene], tagger: str
) -> tuple[Measured, list[list[Segmentation]]]:
    """A figure, and the results of each scene that it is of."""
    row = ROWS[key]
    requests = [
        SegmentationRequest(scene.image, classes, background=row.background)
        for scene in scenes
        for classes in row.named(scene)
    ]
    start = time.process_time()
    with counted_rows(segmenter.backbone.denoiser) as passes:
        outcomes = [outcome for _, outcome in segmenter.stream(requests, tagger=tagger if row.tagged else None)]
    seconds = (time.process_time() - start) / len(requests)
    for outcome in outcomes:
        if isinstance(outcome, GocaError):
            raise outcome
    results = iter(outcomes)
    grouped = [[next(results) for _ in row.named(scene)] for scene in scenes]
    figure, ci95, any_pixels = _shares(grouped) if key == "e" else (*_miou(row, scenes, grouped), None)
    return Measured(key, segmenter.plan.recipe, figure, ci95, any_pixels, seconds, sum(passes) / len(requests)), grouped


def _miou(row: Row, scenes: Sequence[Scene], results: Sequence[Sequence[Segmentation]]) -> tuple[float, Interval]:
    records = [
        ImageRecord(
            str(number),
            counts={
                "fixed": count(
                    relabelled(scene.labels, scene.classes, row.labels),
                    relabelled(result.labels, result.classes, row.labels),
                    len(row.labels) + 1,
                )
            },
        )
        for number, (scene, (result,)) in enumerate(zip(scenes, results, strict=True))
    ]
    counts = tally(records, "fixed", len(row.labels) + 1)
    found = score(counts, row.labels, Counting(background=row.background is not None))
    return found.miou, found.ci95


def _shares(results: Sequence[Sequence[Segmentation]]) -> tuple[float, Interval, tuple[float, Interval]]:
    shares = torch.tensor([[(each.labels > 0).mean() for each in scene] for scene in results], dtype=torch.float64)
    return *_mean(shares.mean(1)), _mean((shares > 0).double().mean(1))


def _mean(values: Float[torch.Tensor, " scene"]) -> tuple[float, Interval]:
    """The mean and its bootstrap interval."""
    drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=torch.Generator().manual_seed(0))
    return float(values.mean()), interval(values[drawn].mean(1))


def relabelled(labels: np.ndarray, classes: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """From the labels of some classes to those of `names`; what is none of these is 0."""
    table = [0, *(names.index(name) + 1 if name in names else 0 for name in classes)]
    return np.array(table, np.uint16)[labels]


def table(measured: Sequence[Measured]) -> str:
    """A line for each row, and three columns for each recipe."""
    recipes = list(dict.fromkeys(each.recipe for each in measured))
    header = ["what is named", *(cell for recipe in recipes for cell in (f"{recipe}, % [95 %]", "CPU-s", "rows"))]
    by_row = {key: [each for each in measured if each.row == key] for key in ROWS}
    lines = (
        [f"({key}) {ROWS[key].title}", *(cell for each in group for cell in _cells(each))]
        for key, group in by_row.items()
        if group
    )
    return markdown(header, lines)


def _cells(measured: Measured) -> list[str]:
    figure = _percent(measured.figure, measured.ci95)
    if measured.any_pixels:
        figure += f"; {_percent(*measured.any_pixels)}"
    return [figure, f"{measured.seconds:.2f}", f"{measured.rows:.1f}"]


def _percent(value: float, ends: Interval) -> str:
    return f"{100 * value:.1f} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


Curve = tuple[Float[np.ndarray, "scene noun"], Bool[np.ndarray, "scene noun"]]
"""The evidence of every noun in every scene, and whether it is there."""


def curve_of(scenes: Sequence[Scene], results: Sequence[Sequence[Segmentation]]) -> Curve:
    """From results for which all nouns were named."""
    evidence = np.array([result.evidence for (result,) in results])
    return evidence, np.array([[noun in scene.classes for noun in NOUNS] for scene in scenes])


def agreement(curve: Curve, level: float) -> MultilabelScores:
    """Of the pairs of scene and noun whose evidence is at least the level."""
    predicted, shown = curve[0] >= level, curve[1]
    return MultilabelScores(
        correct=int((predicted & shown).sum()), predicted=int(predicted.sum()), actual=int(shown.sum())
    )


def precision_recall(curve: Curve) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """Both at every level of evidence that occurs, the highest first."""
    evidence, shown = (part.ravel() for part in curve)
    order = np.argsort(-evidence, kind="stable")
    last = np.flatnonzero(np.diff(evidence[order], append=-1))  # pairs of the same evidence come together
    correct = np.cumsum(shown[order])[last]
    return correct / (last + 1), correct / shown.sum()


def curve_table(curves: Mapping[str, Curve]) -> str:
    """Precision, recall and F1 at some levels of evidence; the area under each curve."""
    header = ["evidence at least", *(f"{recipe}: precision, recall, F1" for recipe in curves)]
    lines = [[f"{level:.1f}", *(_agreement(curve, level) for curve in curves.values())] for level in LEVELS]
    parts = [precision_recall(curve) for curve in curves.values()]
    areas = [f"{(precision * np.diff(recall, prepend=0)).sum():.2f}" for precision, recall in parts]
    return markdown(header, [*lines, ["area under the curve", *areas]])


def _agreement(curve: Curve, level: float) -> str:
    scores = agreement(curve, level)
    return f"{scores.precision:.2f}, {scores.recall:.2f}, {scores.f1:.2f}" if scores.predicted else "none"


def plot(curves: Mapping[str, Curve], path: Path) -> None:
    """Precision against recall, and where evidence is 0.5. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for recipe, curve in curves.items():
        precision, recall = precision_recall(curve)
        (line,) = axes.plot(recall, precision, label=recipe)
        half = agreement(curve, 0.5)
        if half.predicted:
            axes.plot(half.recall, half.precision, "o", color=line.get_color())
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, title="dots: evidence 0.5")
    figure.savefig(path)


def drawing(
    scenes: Sequence[Scene], results: Mapping[tuple[str, str], Sequence[Sequence[Segmentation]]]
) -> Image.Image:
    """The first scenes and their truth; below, a line for each row of the table: what two recipes make of them."""
    first, second = dict.fromkeys(recipe for recipe, _ in results)
    lines: list[list[Cell]] = [[]]
    for scene in scenes[:DRAWN]:
        truth = _overlay(scene.image, scene.labels, scene.classes)
        lines[0] += [Cell(_enlarged(scene.image), f"scene; below: {first}"), Cell(truth, f"truth; below: {second}")]
    for key in dict.fromkeys(key for _, key in results):
        lines.append([])
        for number in range(len(scenes[:DRAWN])):
            for recipe in (first, second):
                result = results[recipe, key][number][0]
                names = [name for name in result.classes if result.present[name].share]
                text = ", ".join(names) or "nothing" if len(names) <= LISTED else f"{len(names)} classes"
                asked = f"{result.classes[0]}? " if key == "e" else ""
                lines[-1].append(Cell(_overlay(result.image, result.labels, result.classes), f"({key}) {asked}{text}"))
    return contact_sheet(lines).quantize(COLOURS)


def _overlay(image: Image.Image, labels: np.ndarray, classes: Sequence[str]) -> Image.Image:
    """Every noun in a colour of its own, whatever else is named."""
    large = relabelled(labels, classes, NOUNS).repeat(ENLARGED, 0).repeat(ENLARGED, 1)
    return draw.overlay(_enlarged(image), large, NOUNS, legend=False)


def _enlarged(image: Image.Image) -> Image.Image:
    return image.resize((ENLARGED * image.width, ENLARGED * image.height), Image.Resampling.BICUBIC)


def scenes_of(kind: str, every: int) -> list[Scene]:
    """Those that ship, or those that settings are chosen on; only one of `every`."""
    if kind == "shipped":
        return list(bundled.scenes())[::every]
    sys.path.append(str(Path(__file__).parent.parent))
    from training.commands import DEFAULT_WORK
    from training.tune import tuning_scenes

    return list(tuning_scenes(100, DEFAULT_WORK / "art"))[::every]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="goca-balanced,goca-open", help="recipes, between commas (%(default)s)")
    parser.add_argument("--rows", default=",".join(ROWS), help="rows of the table (%(default)s)")
    parser.add_argument("--tagger", default="self", help="tagger of row d (%(default)s)")
    parser.add_argument("--scenes", choices=("shipped", "tuning"), default="shipped")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th scene")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the figures and the curve's table to FILE"
    )
    parser.add_argument(
        "--curve", type=Path, metavar="FILE", help="print precision against recall, and plot it to FILE"
    )
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw the first scenes to FILE")
    parser.add_argument(
        "--fill", type=Path, nargs="*", default=(), metavar="DOCUMENT", help="insert the tables into these documents"
    )
    parser.add_argument("--evidence", choices=tuple(RULES), help="how recipes measure it (their own way)")
    parser.add_argument("--half", type=float, metavar="H", help="use another `half` for every PresenceRule")
    options = parser.parse_args()
    if options.half is not None:
        RULES.update({kind: replace(rule, half=options.half) for kind, rule in RULES.items()})
    torch.set_num_threads(1)
    scenes = scenes_of(options.scenes, options.every)
    measured: list[Measured] = []
    results: dict[tuple[str, str], list[list[Segmentation]]] = {}
    with TemporaryDirectory() as folder:
        for recipe in options.recipe.split(","):
            chosen = recipe_named(recipe)
            if options.evidence and chosen.evidence is not None:
                chosen = replace(chosen, evidence=options.evidence)
            segmenter = Segmenter.from_pretrained("bundled", chosen, device="cpu", batch=BATCH)
            segmenter.plan = replace(segmenter.plan, recipe=recipe)
            if segmenter.plan.evidence is not None:
                segmenter.evidence.content_free.folder = Path(folder) / recipe
            for key in options.rows.split(","):
                figure, results[recipe, key] = measure(segmenter, key, scenes, options.tagger)
                measured.append(figure)
                print(json.dumps(asdict(figure)), file=sys.stderr, flush=True)
    command = f"```console\n$ python benchmarks/presence.py {shlex.join(sys.argv[1:])}\n```"
    what = f"{len(scenes)} {options.scenes} scenes; {ABSENT} absent things a scene in row e."
    tables = {"table of presence": f"{command}\n\n{table(measured)}\n\n{what}"}
    if options.curve:
        curves = {recipe: curve_of(scenes, grouped) for (recipe, key), grouped in results.items() if key == "c"}
        tables["curve of evidence"] = curve_table(curves)
        plot(curves, options.curve)
    if options.draw:
        drawing(scenes, results).save(options.draw, optimize=True)
    if options.json:
        options.json.write_text(json.dumps({"figures": [asdict(each) for each in measured], **tables}, indent=2))
    for document in options.fill:
        for name, text in tables.items():
            fill(document, name, text)
    print("\n\n".join(tables.values()))


if __name__ == "__main__":
    main()
