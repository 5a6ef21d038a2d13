"""Runs side by side, and what may not be ranked."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from commands import Outcome
from PIL import Image
from rich.console import Console

from goca import GocaError
from goca.cli.ablate import ablation_table
from goca.cli.compare import comparison_table
from goca.evaluation.ablate import AblationRow
from goca.evaluation.compare import ComparedRun, load_run
from goca.evaluation.config import EvaluationConfig
from goca.evaluation.metrics import gain
from goca.evaluation.runner import evaluate

CONFIG = EvaluationConfig(dataset="scenes", limit=5, batch=3)
Goca = Callable[..., Outcome]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes on the same scenes."""
    folder = tmp_path_factory.mktemp("compared")
    for recipe in ("vanilla", "goca"):
        evaluate(replace(CONFIG, recipe=recipe), folder / recipe)
    return folder


def edited(runs: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run of which something else is told."""
    folder = Path(shutil.copytree(runs / "goca", runs / name))
    told = json.loads((folder / "run.json").read_text())
    change(told)
    (folder / "run.json").write_text(json.dumps(told))
    return folder


@pytest.mark.slow
def test_a_table_of_paired_differences(goca: Goca, runs: Path, tmp_path: Path) -> None:
    plot = tmp_path / "new" / "runs.png"
    told = goca("compare", runs / "vanilla", runs / "goca", "--json", "--plot", plot)
    assert (told.code, told.err) == (0, "")
    first, second = json.loads(told.out)["rows"]
    assert (first["gain"], first["gain_ci95"]) == (0, [0, 0])
    assert second["gain"] == pytest.approx(second["miou"] - first["miou"])
    for row, name in ((first, "vanilla"), (second, "goca")):
        metrics = json.loads((runs / name / "run.json").read_text())["metrics"]
        assert (row["miou"], row["ci95"]) == (metrics["miou"], metrics["ci95"])
        assert row["name"] == f"{name}, bundled"
    tallies = [evaluate(replace(CONFIG, recipe=name)).report.tally() for name in ("goca", "vanilla")]
    assert (second["gain"], tuple(second["gain_ci95"])) == gain(*tallies)
    with Image.open(plot) as drawn:
        assert drawn.width > 300
    shown = goca("compare", runs / "vanilla", runs / "goca")
    assert shown.code == 0
    assert f"{second['gain']:+.3f}" in shown.out
    assert f"run 2: {runs / 'goca'} (goca, bundled)\n" in shown.out
    assert "tags: oracle" in shown.out


def test_the_order_in_which_images_were_done_is_nothing(goca: Goca, runs: Path) -> None:
    other = edited(runs, "shuffled", lambda told: None)
    lines = (other / "images.jsonl").read_text().splitlines(keepends=True)
    (other / "images.jsonl").write_text("".join(reversed(lines)))
    rows = json.loads(goca("compare", runs / "goca", other, "--json").out)["rows"]
    assert rows[1]["gain_ci95"] == [0, 0]
    assert rows[1]["ci95"] == rows[0]["ci95"]


@pytest.mark.parametrize("width", [80, 100])
def test_no_figure_is_broken_over_lines(width: int) -> None:
    name = "a name " * 30
    compared = [
        ComparedRun(name, name, 0.512, (0.487, 0.534), 0.731, "-0.4", change, interval)
        for change, interval in ((0.0, (0.0, 0.0)), (-0.125, (-0.25, 0.0625)))
    ]
    ablated = [
        AblationRow("all, compound rescaling (goca-compound)", 0.512, (0.487, 0.534), 0.731, change, interval, paper)
        for change, interval, paper in ((0.0, (0.0, 0.0), (60.7, 65.6)), (-0.125, (-0.25, 0.0625), None))
    ]
    expected = {
        comparison_table: ["0.512 [0.487, 0.534]", "0.731", "-0.4", "-0.125 [-0.250, +0.062]"],
        ablation_table: ["51.2 [48.7, 53.4]", "73.1", "-12.5 [-25.0, +6.2]", "60.7/65.6"],
    }
    for draw, rows in ((comparison_table, compared), (ablation_table, ablated)):
        page = Console(width=width, file=StringIO())
        page.print(draw(rows))
        text = page.file.getvalue()
        assert all(figure in text for figure in expected[draw])
        assert max(map(len, text.splitlines())) <= width


def _void(told: dict[str, Any]) -> None:
    told["settings"]["protocol"]["void"] = "background"


def _policy(told: dict[str, Any]) -> None:
    told["settings"]["protocol"]["nouns"]["complete"] = True


def _tags(told: dict[str, Any]) -> None:
    told["settings"]["protocol"]["tags"] = "self map"


def _listing(told: dict[str, Any]) -> None:
    told["settings"]["dataset"]["listing"] = "0"


def _unfinished(told: dict[str, Any]) -> None:
    told["state"] = "running"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_void, "protocol.void (background, there ignored)"),
        (_policy, "protocol.nouns.complete (True, there False)"),
        (_tags, "protocol.tags (self map, there oracle)"),
        (_listing, "dataset.listing"),
        (_unfinished, "is not finished"),
    ],
)
def test_other_runs_are_not_ranked(
    goca: Goca, runs: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    other = edited(runs, change.__name__, change)
    assert named in goca("compare", runs / "goca", other).mistake()


def test_images_that_one_run_left_out(goca: Goca, runs: Path) -> None:
    other = edited(runs, "less", lambda told: None)
    lines = (other / "images.jsonl").read_text().splitlines()
    lines[2] = json.dumps({"id": json.loads(lines[2])["id"], "left_out": "it is broken"})
    (other / "images.jsonl").write_text("\n".join(lines) + "\n")
    assert "only one of them left out 002" in goca("compare", runs / "goca", other).mistake()


@pytest.mark.parametrize("first", [True, False])
def test_a_run_that_lacks_an_image_is_completed_first(goca: Goca, runs: Path, first: bool) -> None:
    other = edited(runs, f"lacks {first}", lambda told: None)
    lines = (other / "images.jsonl").read_text().splitlines(keepends=True)
    (other / "images.jsonl").write_text("".join(lines[:1] + lines[2:]))
    pair = (other, runs / "vanilla") if first else (runs / "vanilla", other)
    mistake = goca("compare", *pair).mistake()
    assert f"{other} has only 4 of its 5 images: run the same goca evaluate again to complete it" in mistake
    # As it says, that completes it.
    evaluate(CONFIG, other)
    assert goca("compare", *pair).code == 0
    assert sorted({*(other / "images.jsonl").read_text().splitlines(keepends=True)}) == sorted(lines)


def _renamed(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [image | {"id": "another"}]


def _doubled(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [image, image | {"id": "another"}]


def _counted_otherwise(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [image | {"counts": {"fixed": []}}]


def _of_a_label_that_there_is_not(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [image | {"counts": {key: [[999, 1, 5]] for key in image["counts"]}}]


def _of_a_label_below_all(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [image | {"counts": {key: [[-1, 1, 5]] for key in image["counts"]}}]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_renamed, "only one of them has 003, so the images.jsonl of one is from another run: restore it"),
        (_doubled, "images.jsonl has lines of another run: restore it"),
        (_counted_otherwise, "images.jsonl has lines of another run: restore it"),
        (_of_a_label_that_there_is_not, "images.jsonl has lines of another run: restore it"),
        (_of_a_label_below_all, "images.jsonl, line 4 is not an image of a run (-1 is not a whole number"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_lines_of_another_run(
    goca: Goca, runs: Path, change: Callable[[dict[str, Any]], list[dict[str, Any]]], named: str, first: bool
) -> None:
    other = edited(runs, f"{change.__name__} {first}", lambda told: None)
    lines = [json.loads(line) for line in (other / "images.jsonl").read_text().splitlines()]
    lines[3:4] = change(lines[3])
    (other / "images.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert named in goca("compare", *((other, runs / "vanilla") if first else (runs / "vanilla", other))).mistake()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        *((part, None) for part in ("dataset", "protocol", "plan")),
        *(("dataset", name) for name in ("categories", "images", "listing")),
        *(("plan", name) for name in ("recipe", "model")),
        *(("protocol", name) for name in ("nouns", "merged", "tags")),
    ],
)
def test_settings_that_say_too_little(runs: Path, part: str, name: str | None) -> None:
    def forget(told: dict[str, Any]) -> None:
        del (told["settings"] if name is None else told["settings"][part])[name or part]

    other = edited(runs, f"without {part} {name}", forget)
    with pytest.raises(GocaError, match=rf"'{name or part}'\): name a folder that goca evaluate has written$"):
        load_run(other)


def test_settings_that_are_of_something_else(goca: Goca, runs: Path) -> None:
    other = edited(runs, "else", lambda told: told.update(settings={}))
    assert "name a folder that goca evaluate has written" in goca("compare", runs / "goca", other).mistake()
    odd = edited(runs, "odd", lambda told: told["settings"].update(protocol=[]))
    with pytest.raises(GocaError, match=r"name a folder that goca evaluate has written$"):
        load_run(odd)


def test_what_is_no_run(goca: Goca, runs: Path, tmp_path: Path) -> None:
    assert "name two or more" in goca("compare", runs / "goca").mistake()
    mistake = goca("compare", runs / "goca", tmp_path, tmp_path / "no").mistake()
    assert f"{tmp_path}, {tmp_path / 'no'} are not folders of runs" in mistake
    plot = tmp_path / "runs.txt"
    assert "name a .png" in goca("compare", runs / "goca", runs / "vanilla", "--plot", plot).mistake()
