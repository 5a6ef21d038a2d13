"""Runs as bars with their intervals. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

from goca.errors import GocaError
from goca.evaluation.compare import ComparedRun


def plot(rows: Sequence[ComparedRun], title: str, path: Path) -> None:
    """Write an image of the rows' mIoU; the file's suffix decides the format.

    Raises:
        GocaError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise GocaError("a plot needs matplotlib: pip install matplotlib", "plot") from None
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(max(4.0, 1.1 * len(rows) + 1), 3.6), dpi=150, layout="constrained")
        axes = figure.subplots()
        heights = [100 * row.miou for row in rows]
        # An interval of resampled images need not hold the score of all.
        errors = [
            [max(0.0, 100 * (row.miou - row.ci95[0])) for row in rows],
            [max(0.0, 100 * (row.ci95[1] - row.miou)) for row in rows],
        ]
        axes.bar(range(len(rows)), heights, yerr=errors, capsize=4, color="#4d7cfe", width=0.6)
        axes.set_xticks(range(len(rows)), [row.name.replace(", ", "\n") for row in rows])
        axes.set_ylabel("mIoU, % (bars: 95 % interval)")
        axes.set_title(title, fontsize=9)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise GocaError(f"cannot write the plot {path}: {reason}; name a .png, .svg or .pdf file") from None
