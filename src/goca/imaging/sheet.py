"""Contact sheets: small images on one page, each over its caption, with bar charts between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

from goca.imaging.legend import FAINT, INK, PAPER, legible

SIDE = 224  # pixels
TYPE = 13  # pixels
GAP = 12  # pixels between cells
BAR, TRACK = (181, 54, 122), (236, 238, 241)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Cell:
    """An image and its caption, after a coloured square if it has a colour.

    The image is immediately resized to fit a square of `side` pixels, by default `SIDE`, to save memory.
    """

    image: Image.Image
    caption: str
    colour: tuple[int, ...] | None = None
    side: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", fit(self.image, self.side or SIDE))


@dataclass(frozen=True)
class Bar:
    """A line of a chart: a name, a bar of length 0 to 1, its figure, and squares with darkness 0 to 1."""

    name: str
    length: float
    figure: str
    squares: Sequence[float] = ()


def contact_sheet(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Rows of cells, at least one of them; captions that are too long are cut."""
    columns = max(len(row) for row in rows)
    line = round(1.7 * TYPE)
    heights = [max((cell.image.height for cell in row), default=0) for row in rows]
    widths = [max(cell.image.width for cell in column if cell) for column in zip_longest(*rows)]
    size = (sum(widths) + GAP * (columns + 1), sum(heights) + line * len(rows) + GAP * (len(rows) + 1))
    sheet = Image.new("RGB", size, PAPER)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        left = GAP
        for cell, width in zip(row, widths, strict=False):
            sheet.paste(cell.image, (left, top))
            sheet.paste(_caption(cell, width, line), (left, top + height))
            left += width + GAP
        top += height + line + GAP
    return sheet


def chart(title: str, bars: Sequence[Bar], width: int) -> Image.Image:
    """Bars below each other under a title, `width` pixels wide; names that are too long are cut."""
    line = round(1.7 * TYPE)
    paper, draw, font = _double(width, line * (len(bars) + 1) + GAP)
    name_end, bar_end, figure_end = (round(2 * width * part) for part in (0.42, 0.6, 0.68))
    middle = line + 2 * GAP
    draw.text((2 * GAP, middle), _cut(legible(title), font, 2 * width - 4 * GAP), INK, font, anchor="lm")
    for bar in bars:
        middle += 2 * line
        top, bottom = middle - TYPE // 2, middle + TYPE // 2
        draw.text((2 * GAP, middle), _cut(legible(bar.name), font, name_end - 4 * GAP), INK, font, anchor="lm")
        draw.rectangle((name_end, top, bar_end, bottom), TRACK)
        length = round(min(max(bar.length, 0.0), 1.0) * (bar_end - name_end))
        draw.rectangle((name_end, top, name_end + max(2, length), bottom), BAR)
        draw.text((figure_end, middle), bar.figure, FAINT, font, anchor="rm")
        step = min(2 * TYPE, (2 * width - figure_end - 4 * GAP) // max(1, len(bar.squares)))
        for position, value in enumerate(bar.squares):
            left = figure_end + 2 * GAP + step * position
            shade = tuple(round(least + value * (most - least)) for least, most in zip(TRACK, BAR, strict=True))
            draw.rectangle((left, middle - TYPE + 2, left + max(1, step - 3), middle + TYPE - 3), shade)
    return paper.reduce(2)


def heading(lines: Sequence[str], width: int) -> Image.Image:
    """Texts wrapped to about `width` pixels, the first in ink, the others fainter."""
    rows = [(row, number) for number, text in enumerate(lines) for row in wrap(legible(text), width // 7)]
    line = round(1.7 * TYPE)
    paper, draw, font = _double(width, line * len(rows))
    for index, (row, number) in enumerate(rows):
        text = _cut(row, font, 2 * width - 4 * GAP)
        draw.text((2 * GAP, line * (2 * index + 1)), text, FAINT if number else INK, font, anchor="lm")
    return paper.reduce(2)


def stacked(parts: Sequence[Image.Image], beside: bool = False) -> Image.Image:
    """Images below each other, or beside each other, on one page; at least one."""
    widths, heights = [part.width for part in parts], [part.height for part in parts]
    size = (sum(widths), max(heights)) if beside else (max(widths), sum(heights))
    page, left, top = Image.new("RGB", size, PAPER), 0, 0
    for part in parts:
        page.paste(part, (left, top))
        left, top = (left + part.width, 0) if beside else (0, top + part.height)
    return page


def fit(image: Image.Image, side: int) -> Image.Image:
    """The image as large as fits a square of `side` pixels."""
    longest = max(image.size)
    width, height = (max(1, round(edge * side / longest)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC if longest < side else Image.Resampling.LANCZOS)


def _double(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw, Font]:
    """A canvas of twice the size, which is halved at the end, for smooth small type."""
    paper = Image.new("RGB", (2 * width, 2 * height), PAPER)
    return paper, ImageDraw.Draw(paper), ImageFont.load_default(2 * TYPE)


def _caption(cell: Cell, width: int, line: int) -> Image.Image:
    paper, draw, font = _double(width, line)
    left = 0
    if cell.colour is not None:
        draw.rectangle((0, line - TYPE, 2 * TYPE, line + TYPE), fill=cell.colour)
        left = 3 * TYPE
    draw.text((left, line), _cut(legible(cell.caption), font, 2 * width - left), INK, font, anchor="lm")
    return paper.reduce(2)


def _cut(text: str, font: Font, width: int) -> str:
    """The text, or as much of its beginning as fits."""
    while font.getlength(text) > width and len(text) > 2:
        text = text[:-2] + "…"
    return text
