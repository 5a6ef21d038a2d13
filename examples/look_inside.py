"""Why does a pixel get its label? Layers, words and the places that it attends to, in one pass."""

from pathlib import Path

from goca import GOCA, Segmenter

segmenter = Segmenter.from_pretrained("bundled", recipe=GOCA)
inspection = segmenter.inspect(Path(__file__).with_name("cat.png"), ["cat", "water"], ["sky"])
for layer in sorted(inspection.layers, key=lambda layer: -layer.weight)[:3]:
    print(f"{layer.name}: {layer.weight:.0%} of the map, on {layer.grid[0]} x {layer.grid[1]} cells")
pixel = inspection.at(90, 75)
print("attention at (90, 75):", ", ".join(f"{word.word} {word.share:.0%}" for word in pixel.words))
pixel.heatmap().save("where_it_looks.png")
inspection.sheet([(90, 75)]).save("look_inside.png")
