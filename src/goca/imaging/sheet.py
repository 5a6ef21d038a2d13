"""Contact sheets: many small images on one page, each over its caption."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from PIL import Image, ImageDraw, ImageFont

from goca.imaging.legend import INK, PAPER, legible

SIDE = 224  # pixels
TYPE = 13  # pixels
GAP = 12  # pixels between cells


@dataclass(frozen=True)
class Cell:
    """An image and what is written under it, behind a square of a colour if it has one.

    The image is made as large as fits a square of `SIDE` pixels at once, so that a cell holds no more.
    """

    image: Image.Image
    caption: str
    colour: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", _fit(self.image))


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


def _fit(image: Image.Image) -> Image.Image:
    longest = max(image.size)
    width, height = (max(1, round(edge * SIDE / longest)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC if longest < SIDE else Image.Resampling.LANCZOS)


def _caption(cell: Cell, width: int, line: int) -> Image.Image:
    """Set at twice the size and halved, for smooth small type."""
    font = ImageFont.load_default(2 * TYPE)
    paper = Image.new("RGB", (2 * width, 2 * line), PAPER)
    draw = ImageDraw.Draw(paper)
    left = 0
    if cell.colour is not None:
        draw.rectangle((0, line - TYPE, 2 * TYPE, line + TYPE), fill=cell.colour)
        left = 3 * TYPE
    text = legible(cell.caption)
    while left + font.getlength(text) > 2 * width and len(text) > 2:
        text = text[:-2] + "…"
    draw.text((left, line), text, INK, font, anchor="lm")
    return paper.reduce(2)
