"""Plots with intervals: runs as bars, and scaling studies as lines. Needs matplotlib."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from goca.errors import GocaError
from goca.evaluation.compare import ComparedRun
from goca.evaluation.scaling_study import RecipeScore, ScalingStudy

COLOURS = ("#8a8f98", "#d1495b", "#2e6fdb", "#1b9e77", "#b8860b", "#7a4fb5")
MARKERS = "osD^vP"


def check_installed() -> None:
    """Raise GocaError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise GocaError("a plot needs matplotlib: pip install matplotlib", "plot") from None


def plot(rows: Sequence[ComparedRun], title: str, path: Path) -> None:
    """Plot the rows' mIoU to a file, whose suffix decides the format.

    Raises:
        GocaError: matplotlib is not installed, or the file cannot be written.
    """
    with _figure(max(4.0, 1.1 * len(rows) + 1), 3.6, path) as figure:
        axes = figure.subplots()
        heights = [100 * row.miou for row in rows]
        errors = [_below(rows), _above(rows)]
        axes.bar(range(len(rows)), heights, yerr=errors, capsize=4, color="#4d7cfe", width=0.6)
        axes.set_xticks(range(len(rows)), [row.name.replace(", ", "\n") for row in rows])
        axes.set_ylabel("mIoU, % (bars: 95 % interval)")
        axes.set_title(title, fontsize=9)


def plot_scaling(study: ScalingStudy, path: Path) -> None:
    """Plot mIoU over each measure of power to a file, a line for each recipe; the suffix decides the format.

    The better generator is on the right. Bars are 95 % intervals over images, small dots are noise seeds.

    Raises:
        GocaError: matplotlib is not installed, or the file cannot be written.
    """
    check_installed()
    from matplotlib.transforms import ScaledTranslation

    protocol = study.protocol
    with _figure(1.2 + 4.6 * len(study.powers), 4.6, path) as figure:
        panels = figure.subplots(1, len(study.powers), sharey=True, squeeze=False)[0]
        recipes = list(next(iter(study.scores.values())))
        for axes, power in zip(panels, study.powers, strict=True):
            labels = sorted(study.models, key=power.values.__getitem__)
            x = [power.values[label] for label in labels]
            for index, (recipe, colour, marker) in enumerate(zip(recipes, COLOURS, MARKERS, strict=False)):
                # Shifted, so that no interval hides another.
                shift = ScaledTranslation((index - (len(recipes) - 1) / 2) * 3 / 72, 0, figure.dpi_scale_trans)
                style = {"color": colour, "transform": axes.transData + shift}
                scores = [study.scores[label][recipe] for label in labels]
                middle = [100 * score.miou for score in scores]
                errors = [_below(scores), _above(scores)]
                axes.errorbar(x, middle, errors, fmt="none", elinewidth=1.0, alpha=0.45, ecolor=colour, **style)
                seeds = [(at, 100 * each) for at, score in zip(x, scores, strict=True) for each in score.seeds]
                axes.plot(*zip(*seeds, strict=True), ".", ms=3, alpha=0.7, **style)
                axes.plot(x, middle, marker=marker, ms=6, mec="white", mew=0.8, lw=1.8, label=recipe, **style)
            # The shifted points must not change the limits.
            ends = [100 * each for scores in study.scores.values() for score in scores.values() for each in score.ci95]
            axes.update_datalim([(at, end) for at in x for end in ends])
            axes.margins(x=0.06)
            axes.autoscale_view()
            if not power.higher:
                axes.invert_xaxis()
            axes.set_xlabel(f"{power.name}, {'higher' if power.higher else 'lower'} is better  \u2192")
            axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
            axes.set_axisbelow(True)
            _name_models(axes, labels, x)
        panels[0].set_ylabel("mIoU, %")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(recipes), frameon=False
        )
        figure.suptitle(
            f"{protocol.dataset} {protocol.split}, {protocol.images} images, protocol {protocol.name}", fontsize=9
        )


# A bootstrap interval may not contain the score over all images.
def _below(rows: Sequence[ComparedRun | RecipeScore]) -> list[float]:
    return [max(0.0, 100 * (row.miou - row.ci95[0])) for row in rows]


def _above(rows: Sequence[ComparedRun | RecipeScore]) -> list[float]:
    return [max(0.0, 100 * (row.ci95[1] - row.miou)) for row in rows]


def _name_models(axes: Any, labels: Sequence[str], x: Sequence[float]) -> None:
    """Draw the models' names above the axes, far enough apart to read, each with a line to its points."""
    left, right = axes.get_xlim()
    shares = [(value - left) / (right - left) for value in x]
    order = sorted(range(len(x)), key=shares.__getitem__)
    step = min(0.075, 1 / max(1, len(x) - 1))
    places = [shares[index] for index in order]
    for _ in range(100):  # neighbours that are too close push each other away
        for first in range(len(places) - 1):
            lack = step - (places[first + 1] - places[first])
            if lack > 1e-6:
                places[first] -= lack / 2
                places[first + 1] += lack / 2
    for index, label_at in zip(order, places, strict=True):
        line = {"arrowstyle": "-", "color": "#b5bac1", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            labels[index],
            (shares[index], 1.0),
            (label_at, 1.06),
            xycoords="axes fraction",
            rotation=40,
            ha="left",
            va="bottom",
            rotation_mode="anchor",
            fontsize=8,
            arrowprops=line,
        )
        axes.axvline(x[index], color="#eef0f2", linewidth=0.8, zorder=0)


@contextmanager
def _figure(width: float, height: float, path: Path) -> Iterator[Any]:
    """An empty figure, which is written when the `with` block ends."""
    check_installed()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "goca"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        yield figure
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise GocaError(f"cannot write the plot {path}: {reason}; name a .png, .svg or .pdf file") from None
