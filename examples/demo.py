"""Segment one image with the bundled pipeline, show it, and compare it with the truth; `make demo` runs this.

The image was drawn like those the pipeline was trained on, but in an art style that it has never seen.
"""

import logging
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from goca import Segmenter
from goca.evaluation.metrics import score
from goca.evaluation.records import ImageRecord, count, tally

logging.disable(logging.WARNING)  # packages installed beside goca may log a lot when the model is loaded
HERE = Path(__file__).parent
CLASSES = ("cat", "water", "sky")
LEAST_MIOU = 0.5

segmenter = Segmenter.from_pretrained("bundled")
result = segmenter(HERE / "cat.png", classes=CLASSES, background=None)
written = result.save("demo-out", stem="cat")

truth = np.asarray(Image.open(HERE / "cat.labels.png")).astype(np.uint16)
record = ImageRecord("cat", counts={"none": count(truth, result.labels, 4)})
scores = score(tally([record], "none", 4), CLASSES)
table = Table("class", "share of pixels", "IoU", title="examples/cat.png")
for name in CLASSES:
    table.add_row(name, f"{result.present[name].share:.1%}", f"{scores.per_class[name]:.3f}")
table.add_section()
table.add_row("mean", f"{scores.pixel_accuracy:.1%} right", f"{scores.miou:.3f}")

console = Console()
console.print(table)
console.print("look at", *(str(path) for path in written if path.name.endswith(".overlay.png")))
if scores.miou < LEAST_MIOU:
    sys.exit(f"mIoU {scores.miou:.3f} is under {LEAST_MIOU}: the installation does not work as it should")
