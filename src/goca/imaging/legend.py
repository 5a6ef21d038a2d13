"""A legend below an image, or beside it if it is upright."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFont

from goca.text.clean import printable

MAX_MISSING = 20  # names; a list of 150 categories would dwarf the image
WORD_SPACE = "  "  # a single space of Pillow's font is hardly visible in small type
SMALLEST_TYPE = 14  # pixels
SMOOTH_TYPE = 40  # pixels; larger type needs no smoothing
MAX_LETTERS = 120  # most letters of a name
PAPER, INK, FAINT = "#ffffff", "#1f2328", "#6e7781"


@dataclass(frozen=True)
class LegendItem:
    """An item of the legend: a class that occurs, with its colour, or one that does not."""

    text: str
    note: str = ""
    colour: tuple[int, ...] | None = None


class Legend:
    """Items set in lines of a given width, like text. Lengths are in pixels, proportional to the type size."""

    def __init__(self, width: int, size: int, min_height: int = 0) -> None:
        self.size, self.margin, self.line, self.min_height = size, size, round(1.7 * size), min_height
        self.room = width - 2 * self.margin
        self.font = ImageFont.load_default(size)
        self.x, self.y = 0, 0
        self.placed: list[tuple[int, int, LegendItem]] = []

    def add(self, item: LegendItem) -> None:
        while self.width(item) > self.room and len(item.text) > 2:
            item = replace(item, text=item.text[:-2] + "…")
        width = self.width(item)
        if self.x + width > self.room:
            self.new_line()
        self.placed.append((self.margin + self.x, self.margin + self.y, item))
        self.x += width + (self.size if item.colour else self.size // 3)

    def new_line(self) -> None:
        if self.x:
            self.x, self.y = 0, self.y + self.line

    def width(self, item: LegendItem) -> int:
        note = self.font.getlength(item.note) + self.size // 3 if item.note else 0
        return self._text_start(item) + math.ceil(self.font.getlength(item.text) + note)

    @property
    def sides(self) -> tuple[int, int]:
        """(width, height) of all finished lines."""
        return self.room + 2 * self.margin, max(self.min_height, self.y + 2 * self.margin)

    @property
    def area(self) -> int:
        return self.sides[0] * self.sides[1]

    def image(self) -> Image.Image:
        paper = Image.new("RGB", self.sides, PAPER)
        draw = ImageDraw.Draw(paper)
        for x, y, item in self.placed:
            middle = y + self.line // 2
            if item.colour:
                swatch = (x, middle - self.size // 2, x + self.size, middle + self.size // 2)
                draw.rounded_rectangle(swatch, radius=self.size // 4, fill=item.colour)
            x += self._text_start(item)
            draw.text((x, middle), item.text, INK if item.colour else FAINT, self.font, anchor="lm")
            x += math.ceil(self.font.getlength(item.text)) + self.size // 3
            draw.text((x, middle), item.note, FAINT, self.font, anchor="lm")
        return paper

    def _text_start(self, item: LegendItem) -> int:
        return round(1.4 * self.size) if item.colour else 0


def with_legend(image: Image.Image, present: Sequence[LegendItem], missing: Sequence[LegendItem]) -> Image.Image:
    """The image with a legend of the classes that occur, then of those that do not.

    Its type is proportional to the image, but smaller, down to 14 px, if the legend would take more than half as much
    room as the image.
    """
    # The short side decides: type proportional to the long side would dwarf a long image.
    size = max(SMALLEST_TYPE, round(min(max(image.size), 4 * min(image.size)) / 42))
    legend = _laid_out(image.size, size, present, missing)
    while size > SMALLEST_TYPE and 2 * legend.area > image.width * image.height:
        size = max(SMALLEST_TYPE, round(0.85 * size))
        legend = _laid_out(image.size, size, present, missing)
    if size < SMOOTH_TYPE:
        # Set at twice the size and halved, for smooth corners and evenly spaced small type.
        panel = _laid_out((2 * image.width, 2 * image.height), 2 * size, present, missing).image().reduce(2)
    else:
        panel = legend.image()
    corner = (image.width, 0) if image.height > image.width else (0, image.height)
    sheet = Image.new("RGB", (corner[0] + panel.width, max(image.height, corner[1] + panel.height)), PAPER)
    sheet.paste(image)
    sheet.paste(panel, corner)
    return sheet


def _laid_out(
    sides: tuple[int, int], size: int, present: Sequence[LegendItem], missing: Sequence[LegendItem]
) -> Legend:
    """The legend for an image of (width, height); beside it, if it is upright."""
    width, height = sides
    legend = Legend(width, size)
    if height > width:
        widest = max((legend.width(item) for item in present), default=0)
        legend = Legend(min(max(widest, 10 * size), 30 * size, height) + 2 * size, size, height)
    for item in present:
        legend.add(item)
    legend.new_line()
    for item in missing:
        legend.add(item)
    legend.new_line()
    return legend


def percent(share: float) -> str:
    """A share of pixels in a legend's form."""
    return f"{share:.0%}" if share >= 0.01 else "<1%"


def missing_items(names: Sequence[str]) -> list[LegendItem]:
    """The end of a legend: the classes that no pixel has."""
    if not names:
        return []
    shown = names[:MAX_MISSING]
    if len(names) > len(shown):
        shown = [*shown, WORD_SPACE.join(("and", str(len(names) - len(shown)), "more"))]
    return [
        LegendItem(WORD_SPACE.join(("not", "found:"))),
        *(LegendItem(f"{name},") for name in shown[:-1]),
        LegendItem(shown[-1]),
    ]


def legible(name: str, instead: str = "?") -> str:
    """The name in the built-in font's letters, without accents; `instead`, if other letters remain.

    Control characters become escapes, and a name of over 120 letters is cut.
    """
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    words = printable(" ".join(plain.split())) if plain.isascii() else instead
    if len(words) > MAX_LETTERS:
        words = words[:MAX_LETTERS] + "…"
    return words.replace(" ", WORD_SPACE)
