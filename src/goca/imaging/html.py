"""HTML for notebooks: images over a table, self-contained.

All text is escaped. Colours are the page's, light or dark, except in images and squares of class colours. The output
is small however large a result is: images are scaled down, long tables and long texts are cut.
"""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from typing import TypeVar

from PIL import Image, ImageOps

from goca.imaging.sheet import SIDE, Cell

LEAST, MOST = 384, 640
"""Longest side in pixels of an image over a table; smaller and larger images are resized."""
SHEET = (1024, 2400)
"""The largest (width, height) of a contact sheet, whose captions must stay legible."""
TILE = 180
"""Longest side at which a gallery shows an image; the image has more pixels, for high-resolution screens."""
COLUMNS, MAX_CELLS, MAX_ROWS, MAX_LETTERS = 4, 12, 30, 160
QUALITY = 85
LEFT = ' style="text-align: left"'
FIGURES = tuple("+-0123456789")
"""The beginning of a number."""

Colour = Sequence[int]


def figure(
    title: str,
    image: Image.Image | bytes | None = None,
    header: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    colours: Sequence[Colour] = (),
    most: tuple[int, int] = (MOST, MOST),
) -> str:
    """A title, over an image if there is one, over a table if there is one.

    Args:
        title: One line of text.
        image: An image, or the content of a WebP file.
        header: Names of the columns.
        rows: Each with as many cells as `header`.
        colours: RGB of the square before each row; empty for no squares.
        most: Largest (width, height) in pixels at which the image is shown.
    """
    if isinstance(image, Image.Image) and max(image.size) < LEAST:
        image = ImageOps.contain(image, (LEAST, LEAST))
    return _whole(title, "" if image is None else _image(image, title, most), _table(header, rows, colours))


def gallery(
    title: str,
    cells: Sequence[Cell],
    header: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
    colours: Sequence[Colour] = (),
    legend: Mapping[str, Colour] | None = None,
    total: int = 0,
) -> str:
    """A title, over small images with their captions, over a legend or a table if there is one; see `figure`.

    At most 12 are shown, with the number of further ones: of `total`, if `cells` are not all.
    """
    total = max(total, len(cells))
    tiles = []
    for cell in cells[:MAX_CELLS]:
        square = "" if cell.colour is None else _square(cell.colour)
        caption = f"{square}{_text(cell.caption)}"
        image = _image(cell.image, cell.caption, (SIDE, SIDE))
        tiles.append(f'<td style="text-align: left; vertical-align: top; width: {TILE}px">{image}<br>{caption}</td>')
    if total > len(tiles):
        tiles.append(f"<td>and {total - len(tiles)} more</td>")
    lines = ("".join(tiles[start : start + COLUMNS]) for start in range(0, len(tiles), COLUMNS))
    images = "".join(f"<tr>{line}</tr>" for line in lines)
    names = [f"{_square(colour)}{_text(name)}" for name, colour in list((legend or {}).items())[:MAX_ROWS]]
    below = f"<p>{' &nbsp; '.join(names)}</p>" if names else _table(header, rows, colours)
    return _whole(title, f"<table>{images}</table>" if images else "", below)


def listed(value: object) -> str:
    """A value for a cell, a list as its entries."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Row:
    """A result that is a row of a table. Notebooks show it under its columns' names; see `Rows` for several."""

    def columns(self) -> Mapping[str, str]:
        """{name of a column: this row's cell}."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        columns = self.columns()
        return figure(type(self).__name__, None, tuple(columns), [tuple(columns.values())])


AnyRow = TypeVar("AnyRow", bound=Row)


class Rows(tuple[AnyRow, ...]):
    """Results of one kind, which notebooks show as one table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        columns = [row.columns() for row in self]
        title = f"{len(self)} x {type(self[0]).__name__}" if self else "nothing"
        return figure(title, None, tuple(columns[0]) if columns else (), [tuple(row.values()) for row in columns])


def _whole(*parts: str) -> str:
    title, *others = parts
    return f"<div><p>{_text(title, 2 * MAX_LETTERS)}</p>{''.join(others)}</div>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[Colour]) -> str:
    if not rows:
        return ""
    # Notebooks align tables to the right; only columns of numbers should be.
    styles = ["" if all(cell[:1] in FIGURES for cell in column) else LEFT for column in zip(*rows, strict=True)]

    def line(kind: str, cells: Sequence[str], square: str = "") -> str:
        styled = zip(styles, [f"{square}{_text(cells[0])}", *map(_text, cells[1:])], strict=True)
        return "<tr>" + "".join(f"<{kind}{style}>{text}</{kind}>" for style, text in styled) + "</tr>"

    squares = [_square(colour) for colour in colours[:MAX_ROWS]] or [""] * len(rows)
    lines = [line("td", *row) for row in zip(rows[:MAX_ROWS], squares, strict=False)]
    more = f"<tr><td{LEFT}>and {len(rows) - MAX_ROWS} more</td></tr>" if len(rows) > MAX_ROWS else ""
    return f"<table>{line('th', header)}{''.join(lines)}{more}</table>"


def _text(text: str, most: int = MAX_LETTERS) -> str:
    return escape(text if len(text) <= most else f"{text[: most - 1]}…")


def _square(colour: Colour) -> str:
    red, green, blue = colour
    return f'<span style="background: rgb({red}, {green}, {blue}); padding: 0 0.5em; margin-right: 0.5em"></span>'


def _image(image: Image.Image | bytes, text: str, most: tuple[int, int]) -> str:
    width = ""
    if isinstance(image, bytes):
        kind, content = "webp", image
    else:
        kind, file, small = "jpeg", io.BytesIO(), image.convert("RGB")
        small.thumbnail(most)
        small.save(file, "JPEG", quality=QUALITY, subsampling=0)
        content = file.getvalue()
        if most == (SIDE, SIDE):
            width = f' width="{max(1, small.width * TILE // SIDE)}"'
    source = f"data:image/{kind};base64,{b64encode(content).decode('ascii')}"
    return f'<img{width} style="max-width: 100%" alt="{_text(text)}" src="{source}">'
