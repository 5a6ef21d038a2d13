"""Images of a result: label maps as coloured overlays with a legend, score maps as heat maps.

Knows arrays and class names, nothing of models. Images returned are new and RGB; the input stays as it was.
"""

import io
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16
from PIL import Image, ImageDraw, ImageFont

DISTINCT_COLOURS = 255  # what an indexed PNG can hold next to the background

# The first classes get colours chosen by eye; the rest are computed to be far from these and from each other.
CHOSEN = "#ff5a5f #2ec4b6 #ffb400 #4d7cfe #8ac926 #b15ef0 #ff8a3d #1fa2e0 #f15bb5 #12a150"

# Magma at nine equal steps: perceptually uniform, and readable in grey and by the colour-blind.
MAGMA = "#000004 #1d1147 #51127c #822681 #b73779 #e75263 #fc8961 #fec488 #fcfdbf"

MOST_MISSING = 20  # names; a list of 150 categories would bury the image
SHORTEST_LONG_SIDE = 384  # pixels: smaller images are enlarged, or no legend fits
WORD_SPACE = "  "  # a single space of Pillow's font hardly shows in small type
PAPER, INK, FAINT = "#ffffff", "#1f2328", "#6e7781"


def png(image: Image.Image) -> bytes:
    """An image as a PNG file holds it."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def palette(classes: int) -> UInt8[np.ndarray, "colour 3"]:
    """RGB colours for a label map of so many classes: row 0 is black, for background, row i is class i.

    A shorter palette is the beginning of a longer one. After 255 classes the colours repeat.
    """
    own = [0, *(1 + index % DISTINCT_COLOURS for index in range(classes))]
    return _distinct_colours()[own]


def overlay(
    image: Image.Image, labels: UInt16[np.ndarray, "height width"], classes: Sequence[str], alpha: float = 0.5
) -> Image.Image:
    """The image with its regions coloured and outlined, and a legend below, or beside it if upright.

    Args:
        image: the image that was segmented, of the labels' size.
        labels: 0 for background, which stays as photographed, i for `classes[i - 1]`.
        classes: names; those that no pixel has are listed as not found, up to 20 of them.
        alpha: share of a region's colour, 0 to 1.

    Returns:
        The image in the upper left corner, in its own size, or in k times that for the smallest whole
        number k that makes its long side at least 384 px; then the legend, in the letters of Pillow's own
        font: accents are dropped, and a name in another script appears as "class i".

    Raises:
        ValueError: image and labels differ in size.
    """
    painted_image = painted(image, labels, len(classes), alpha)
    colours = palette(len(classes))
    shares = np.bincount(labels.ravel(), minlength=len(classes) + 1) / labels.size
    names = {index: legible(name, f"class {index}") for index, name in enumerate(classes, start=1)}
    found = [
        _Item(name, _percent(shares[index]), tuple(colours[index].tolist()))
        for index, name in names.items()
        if shares[index]
    ]
    missing = [name for index, name in names.items() if not shares[index]]
    return _with_legend(painted_image, found, _missing_items(missing))


def painted(
    image: Image.Image, labels: UInt16[np.ndarray, "height width"], classes: int, alpha: float = 0.5
) -> Image.Image:
    """`overlay` without its legend."""
    canvas = image.convert("RGB")
    factor = math.ceil(SHORTEST_LONG_SIDE / max(canvas.size))
    if factor > 1:
        canvas = canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.BICUBIC)
        labels = labels.repeat(factor, axis=0).repeat(factor, axis=1)
    paint = Image.fromarray(palette(classes)[labels])
    canvas.paste(Image.blend(canvas, paint, alpha), mask=Image.fromarray(labels > 0))
    thickness = max(1, round(max(canvas.size) / 300))
    canvas.paste(paint, mask=Image.fromarray(_contours(labels, thickness)))
    return canvas


def heatmap(image: Image.Image, scores: Float[np.ndarray, "height width"]) -> Image.Image:
    """The image in grey under the scores in colour: black is 0, pale yellow 1.

    Args:
        image: the image that the scores belong to; the result has its size.
        scores: in [0, 1], on any grid that covers the image; interpolated bilinearly.
    """
    smooth = Image.fromarray(scores.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    colours = Image.fromarray(magma(np.asarray(smooth)))
    return Image.blend(image.convert("L").convert("RGB"), colours, 0.65)


def magma(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """RGB colours of values in [0, 1]: black is 0, pale yellow 1."""
    stops = _from_hex(MAGMA)
    at = np.linspace(0, 255, len(stops))
    table = np.stack([np.interp(np.arange(256), at, channel) for channel in stops.T], axis=1)
    index = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
    return np.rint(table).astype(np.uint8)[index]


def _contours(labels: UInt16[np.ndarray, "height width"], thickness: int) -> Bool[np.ndarray, "height width"]:
    """The pixels of a class that lie within `thickness` pixels of another label, up, down, left or right."""
    edge = np.zeros(labels.shape, dtype=bool)
    for step in range(1, thickness + 1):
        across = labels[:, step:] != labels[:, :-step]
        down = labels[step:] != labels[:-step]
        edge[:, step:] |= across
        edge[:, :-step] |= across
        edge[step:] |= down
        edge[:-step] |= down
    return edge & (labels > 0)


@dataclass(frozen=True)
class _Item:
    """One word of the legend: a class that occurs, with its colour, or one that does not."""

    text: str
    note: str = ""
    colour: tuple[int, ...] | None = None


class _Legend:
    """Items set in lines of a given width, as text is. Lengths in pixels, in proportion to the type size."""

    def __init__(self, width: int, size: int) -> None:
        self.size, self.margin, self.line = size, size, round(1.7 * size)
        self.room = width - 2 * self.margin
        self.font = ImageFont.load_default(size)
        self.x, self.y = 0, 0
        self.placed: list[tuple[int, int, _Item]] = []

    def add(self, item: _Item) -> None:
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

    def width(self, item: _Item) -> int:
        note = self.font.getlength(item.note) + self.size // 3 if item.note else 0
        return self._text_start(item) + math.ceil(self.font.getlength(item.text) + note)

    def image(self, height: int = 0) -> Image.Image:
        self.new_line()
        height = max(height, self.y + 2 * self.margin)
        paper = Image.new("RGB", (self.room + 2 * self.margin, height), PAPER)
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

    def _text_start(self, item: _Item) -> int:
        return round(1.4 * self.size) if item.colour else 0


def _with_legend(image: Image.Image, found: Sequence[_Item], missing: Sequence[_Item]) -> Image.Image:
    # Set at twice the size and halved, for smooth corners and evenly spaced small type.
    size = 2 * max(14, round(max(image.size) / 42))
    upright = image.height > image.width
    width = 2 * image.width
    if upright:
        ruler = _Legend(2 * image.height, size)
        widest = max((ruler.width(item) for item in found), default=0)
        width = min(max(widest, 10 * size), image.height) + 2 * size

    legend = _Legend(width, size)
    for item in found:
        legend.add(item)
    legend.new_line()
    for item in missing:
        legend.add(item)

    panel = legend.image(2 * image.height if upright else 0).reduce(2)
    corner = (image.width, 0) if upright else (0, image.height)
    sheet = Image.new("RGB", (corner[0] + panel.width, corner[1] + panel.height), PAPER)
    sheet.paste(image)
    sheet.paste(panel, corner)
    return sheet


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"


def _missing_items(names: Sequence[str]) -> list[_Item]:
    if not names:
        return []
    shown = names[:MOST_MISSING]
    if len(names) > len(shown):
        shown = [*shown, WORD_SPACE.join(("and", str(len(names) - len(shown)), "more"))]
    return [
        _Item(WORD_SPACE.join(("not", "found:"))),
        *(_Item(f"{name},") for name in shown[:-1]),
        _Item(shown[-1]),
    ]


def legible(name: str, instead: str = "?") -> str:
    """The name as the built-in font can write it, which has no accents; `instead`, if it has letters beyond ASCII."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    words = plain if plain.isascii() else instead
    return WORD_SPACE.join(words.split())


@cache
def _distinct_colours() -> UInt8[np.ndarray, "colour 3"]:
    """Black, the chosen colours, then always the candidate farthest from all before (Glasbey et al. 2007)."""
    steps = np.arange(0, 256, 15)
    candidates = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3).astype(np.uint8)
    lightness, green_red, blue_yellow = _oklab(candidates).T
    # Not too dark or too pale to be told from a shadow or from paper, and never grey.
    vivid = np.hypot(green_red, blue_yellow) > 0.08
    candidates = candidates[vivid & (lightness > 0.45) & (lightness < 0.9)]

    colours = [np.zeros(3, np.uint8), *_from_hex(CHOSEN)]
    position = _oklab(candidates)
    distance = np.full(len(candidates), np.inf)
    for known in _oklab(np.stack(colours)):
        distance = np.minimum(distance, np.linalg.norm(position - known, axis=1))
    while len(colours) <= DISTINCT_COLOURS:
        farthest = int(distance.argmax())
        colours.append(candidates[farthest])
        distance = np.minimum(distance, np.linalg.norm(position - position[farthest], axis=1))
    return np.stack(colours)


def _oklab(colours: UInt8[np.ndarray, "colour 3"]) -> Float[np.ndarray, "colour 3"]:
    """Lightness, green to red, blue to yellow, in which distance is difference to the eye (Ottosson 2020)."""
    light = colours / 255
    linear = np.where(light <= 0.04045, light / 12.92, ((light + 0.055) / 1.055) ** 2.4)
    to_cones = [[0.41222, 0.21190, 0.08830], [0.53633, 0.68070, 0.28172], [0.05145, 0.10740, 0.62998]]
    to_lab = [[0.21045, 1.97800, 0.02590], [0.79362, -2.42859, 0.78277], [-0.00407, 0.45059, -0.80868]]
    return np.cbrt(linear @ to_cones) @ to_lab


def _from_hex(colours: str) -> UInt8[np.ndarray, "colour 3"]:
    return np.array([list(bytes.fromhex(colour[1:])) for colour in colours.split()], dtype=np.uint8)
