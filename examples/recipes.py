"""Methods side by side on one image; each is a value, and a variation is `replace`."""

from dataclasses import replace
from pathlib import Path

from goca import GOCA, GOCA_BALANCED, GOCA_REFINED, VANILLA, Segmenter
from goca.imaging.sheet import Cell, contact_sheet

cells = []
for name, recipe in {
    "vanilla": VANILLA,
    "goca": GOCA,
    "goca, equal heads": replace(GOCA, heads="mean"),
    "goca-balanced": GOCA_BALANCED,
    "goca-refined": GOCA_REFINED,
}.items():
    segmenter = Segmenter.from_pretrained("bundled", recipe)
    result = segmenter(Path(__file__).with_name("cat.png"), ["cat", "water", "sky"], background="none")
    cells.append(Cell(result.overlay(legend=False), name))
contact_sheet([cells]).save("recipes.png")
