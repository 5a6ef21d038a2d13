"""Run examples/tour.ipynb, and write docs/tour.md with its text, code and results, and docs/images/tour-*.

python examples/render_tour.py
"""

import re
from base64 import b64decode
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("tour.ipynb")
DOCS = NOTEBOOK.parent.parent / "docs"
PAGE = DOCS / "tour.md"
RESULT = "<!-- result -->\n{}\n<!-- end -->\n"
INLINE = re.compile(r"data:image/(\w+);base64,([\w+/=]+)")


def executed() -> Any:
    """The notebook with its results. Raises nbclient's CellExecutionError if a cell fails."""
    notebook = nbformat.read(NOTEBOOK, 4)
    return NotebookClient(notebook, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()


def result(output: Any) -> str:
    """What a cell shows: an image, a rich form, or else text."""
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
    return data.get("text/html") or f"```text\n{output.get('text', data.get('text/plain', '')).rstrip()}\n```"


def markdown(notebook: Any) -> str:
    """Text and code, each code cell with its results between comments that readers do not see."""
    parts = []
    for cell in notebook.cells:
        is_code = cell.cell_type == "code"
        parts.append(f"```python notebook\n{cell.source}\n```\n" if is_code else f"{cell.source}\n")
        parts += [RESULT.format(result(output)) for output in cell.get("outputs", [])]
    return "\n".join(parts)


def write(notebook: Any) -> None:
    """The page of a notebook that was run, and its images beside it."""
    page = markdown(notebook)
    for old in DOCS.glob("images/tour-*"):
        old.unlink()
    for number, image in enumerate(INLINE.finditer(page), start=1):
        name = f"images/tour-{number}.{image[1]}"
        (DOCS / name).write_bytes(b64decode(image[2]))
        page = page.replace(image[0], name, 1)
    PAGE.write_text(page)


if __name__ == "__main__":
    write(executed())
