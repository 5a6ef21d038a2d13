"""Draw scenes that ship with goca, and under each its label map: the image at the top of the README."""

import sys
from itertools import islice

from PIL import Image

from goca import Segmenter, bundled

SIDE, GAP = 256, 12
segmenter = Segmenter.from_pretrained("bundled-dit", recipe="goca-refined")
scenes = list(islice(bundled.scenes(), 0, 48, 8))
strip = Image.new("RGB", (len(scenes) * (SIDE + GAP) - GAP, 2 * SIDE + GAP), "white")
for column, scene in enumerate(scenes):
    result = segmenter(scene.image, scene.classes, background=None)
    for row, image in enumerate((scene.image, result.overlay(legend=False))):
        strip.paste(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (column * (SIDE + GAP), row * (SIDE + GAP)))
strip.save(sys.argv[1] if len(sys.argv) > 1 else "strip.png")
