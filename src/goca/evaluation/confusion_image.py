"""The confusion matrix as an image that is still readable with 150 classes."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from goca.evaluation.report import Report
from goca.imaging.draw import png
from goca.imaging.legend import FAINT, INK, PAPER, legible
from goca.imaging.palette import magma

LARGEST, SMALLEST = 40, 14
"""Smallest and largest side of a cell in pixels; below the smallest a name would not fit beside its row."""
GAP = 6
SWATCH = 10
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def confusion_image(report: Report, palette: UInt8[np.ndarray, "label 3"]) -> bytes:
    """A PNG with a row for each label of the ground truth, whose cells show where its pixels went.

    A row holds shares of that label's pixels, from black for none to pale yellow for all. The data set's colours are
    shown beside the names. Labels that neither occur nor are predicted are omitted.
    """
    counts = report.confusion
    labels = np.flatnonzero(counts.sum(0) + counts.sum(1)).tolist()
    counts = counts[np.ix_(labels, labels)]
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    names = [legible(("background", *report.names)[label], f"class {label}") for label in labels]
    cell = max(SMALLEST, min(LARGEST, 1200 // len(names)))
    font = ImageFont.load_default(max(10, min(16, cell - 4)))
    margin = max(round(font.getlength(name)) for name in (*names, "columns: found")) + 3 * GAP + SWATCH
    side = cell * len(names)
    sheet = Image.new("RGB", (margin + side + GAP, margin + side + GAP), PAPER)
    squares = Image.fromarray(magma(shares)).resize((side, side), Image.Resampling.NEAREST)
    sheet.paste(squares, (margin, margin))
    colours = [tuple(colour) for colour in palette[labels].tolist()]
    sheet.paste(_names(names, colours, cell, margin, font, "right"), (0, margin))
    # When rotated, the left edge becomes the lower one.
    sheet.paste(_names(names, colours, cell, margin, font, "left").transpose(Image.Transpose.ROTATE_90), (margin, 0))
    ImageDraw.Draw(sheet).text((GAP, GAP), "rows: truth\ncolumns: found", FAINT, font)
    return png(sheet)


def _names(
    names: list[str], colours: list[tuple[int, ...]], cell: int, margin: int, font: Font, side: str
) -> Image.Image:
    """The names below each other, with their colours at the left or right edge."""
    paper = Image.new("RGB", (margin, cell * len(names)), PAPER)
    draw = ImageDraw.Draw(paper)
    start = GAP if side == "left" else margin - GAP - SWATCH
    x, anchor = (start + SWATCH + GAP, "lm") if side == "left" else (start - GAP, "rm")
    for index, (name, colour) in enumerate(zip(names, colours, strict=True)):
        middle = round((index + 0.5) * cell)
        draw.rectangle((start, middle - SWATCH // 2, start + SWATCH - 1, middle + SWATCH // 2 - 1), colour, FAINT)
        draw.text((x, middle), name, INK, font, anchor=anchor)
    return paper
