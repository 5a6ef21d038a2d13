"""The notebook of the tour: it runs, shows rich forms, and the documentation has the same text and code."""

import re

import nbformat
import pytest

from examples.render_tour import DOCS, INLINE, NOTEBOOK, PAGE, RESULT, executed, markdown

KINDS = [
    *(None, "text/html", "text/html", "text/html", "text/html", "text/html", "text/html", "text/html"),
    *("image/png", "text/html", "text/html", "text/html", "text/html", None, "text/html"),
]
"""What the last result of each code cell is, beside text; None where there is text alone, or nothing."""


def test_the_page_of_the_tour_is_that_of_the_notebook() -> None:
    page = PAGE.read_text()
    without_results = re.sub(rf"\n{RESULT.format('.*?')}", "", page, flags=re.DOTALL)
    assert without_results == markdown(nbformat.read(NOTEBOOK, 4)), "run python examples/render_tour.py"
    assert page.count("<!-- result -->") > len(KINDS) - 2
    assert not INLINE.search(page)
    images = [*DOCS.glob("images/tour-*")]
    assert {f"images/{path.name}" for path in images} == {part.split('"')[0] for part in page.split('src="')[1:]}
    assert sum(path.stat().st_size for path in images) < 1_000_000


def test_the_notebook_lies_in_the_repository_without_results() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert len(cells) == len(KINDS)
    assert all((cell.outputs, cell.execution_count) == ([], None) for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_rich_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two threads that wait for each other beside another test took four times as long.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for cell, kind in zip((cell for cell in executed().cells if cell.cell_type == "code"), KINDS, strict=True):
        # Errors raise; warnings are on stderr.
        assert [output.text for output in cell.outputs if output.get("name") == "stderr"] == []
        if kind is not None:
            assert kind in cell.outputs[-1].data
            assert "text/plain" in cell.outputs[-1].data
