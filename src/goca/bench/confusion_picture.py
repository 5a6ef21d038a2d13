"""Where the pixels of each class went, as a picture that can still be read with 150 classes."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from goca.bench.report import Report
from goca.draw import FAINT, INK, PAPER, legible, magma
from goca.export import png

LARGEST, SMALLEST = 40, 14
"""Pixels a side of a cell: few classes get large ones, and below the smallest a name would not fit beside its row."""
GAP = 6
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def confusion_picture(report: Report) -> bytes:
    """A PNG: a row for each label of the ground truth, the colours of its cells saying where its pixels went.

    A row is shares of that label's pixels, black for none and pale yellow for all. Labels that are neither there nor
    found anywhere are left away.
    """
    counts = report.confusion
    there = np.flatnonzero(counts.sum(0) + counts.sum(1)).tolist()
    counts = counts[np.ix_(there, there)]
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    names = [legible(("background", *report.names)[label], f"class {label}") for label in there]
    cell = max(SMALLEST, min(LARGEST, 1200 // len(names)))
    font = ImageFont.load_default(max(10, min(16, cell - 4)))
    margin = max(round(font.getlength(name)) for name in (*names, "columns: found")) + 2 * GAP
    side = cell * len(names)
    sheet = Image.new("RGB", (margin + side + GAP, margin + side + GAP), PAPER)
    squares = Image.fromarray(magma(shares)).resize((side, side), Image.Resampling.NEAREST)
    sheet.paste(squares, (margin, margin))
    sheet.paste(_names(names, cell, margin, font, "right"), (0, margin))
    # Turned, what stands at the left edge stands at the lower one.
    sheet.paste(_names(names, cell, margin, font, "left").transpose(Image.Transpose.ROTATE_90), (margin, 0))
    ImageDraw.Draw(sheet).text((GAP, GAP), "rows: truth\ncolumns: found", FAINT, font)
    return png(sheet)


def _names(names: list[str], cell: int, margin: int, font: Font, side: str) -> Image.Image:
    """The names one below the other, at the left or right edge."""
    paper = Image.new("RGB", (margin, cell * len(names)), PAPER)
    draw = ImageDraw.Draw(paper)
    x, anchor = (GAP, "lm") if side == "left" else (margin - GAP, "rm")
    for index, name in enumerate(names):
        draw.text((x, round((index + 0.5) * cell)), name, INK, font, anchor=anchor)
    return paper
