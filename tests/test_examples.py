"""Every example runs as it stands, in an empty folder, and writes what it says."""

import runpy
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"
WRITES = {
    "attention_over_time": ["cat.gif"],
    "compare_models": ["runs/bundled-vanilla/run.json", "runs/bundled-dit-goca-refined/run.json"],
    "cutouts": ["cat-0.png", "water-1.png", "sky-2.png"],
    "folder": ["masks/0.labels.png", "masks/2.json"],
    "guided": ["guided.png"],
    "heatmap": ["cat.png", "cat.heatmap.png"],
    "how_sure": ["how_sure.png"],
    "look_inside": ["look_inside.png", "where_it_looks.png"],
    "own_layout": ["own_layout.png"],
    "own_rule": ["own_rule.png"],
    "recipes": ["recipes.png"],
    "strip": ["strip.png"],
    "which_are_there": ["found/cat.labels.png"],
}
LONGER = {"demo", "render_tour", "training_set"}
"""Those that have tests of their own."""


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*WRITES} | LONGER


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.slow
def test_an_example_writes_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text().splitlines()) <= 25
    monkeypatch.setattr("sys.argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    for path in map(Path, WRITES[name]):
        assert path.stat().st_size
        if path.suffix in (".png", ".gif"):
            with Image.open(path) as image:
                image.load()
