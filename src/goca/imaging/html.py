"""HTML for notebooks: an image over a table, in one piece that needs nothing from outside."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from PIL import Image

from goca.imaging.draw import png


def figure(
    title: str, image: Image.Image | None, header: Sequence[str] = (), rows: Sequence[Sequence[str]] = ()
) -> str:
    """A title, over an image if there is one, over a table if there is one.

    Args:
        title: one line of text, escaped here as all cells are.
        image: shown at its own size, or as wide as the page where that is less.
        header: the columns' names.
        rows: as many cells each as `header` has.
    """
    source = "" if image is None else b64encode(png(image)).decode("ascii")
    drawing = f'<img style="max-width: 100%" alt="" src="data:image/png;base64,{source}">' if source else ""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><tr>{head}</tr>{body}</table>" if rows else ""
    return f"<div><p>{escape(title)}</p>{drawing}{table}</div>"
