"""Segment a folder of images in Python: write results for each image, and go on after one that fails."""

from itertools import islice
from pathlib import Path

from goca import GocaError, SegmentationRequest, Segmenter, bundled

Path("scenes").mkdir(exist_ok=True)
for number, scene in enumerate(islice(bundled.scenes(), 3)):
    scene.image.save(f"scenes/{number}.png")

segmenter = Segmenter.from_pretrained("bundled", batch=8)
requests = (SegmentationRequest(path, bundled.vocabulary()) for path in sorted(Path("scenes").iterdir()))
for request, outcome in segmenter.stream(requests):
    if isinstance(outcome, GocaError):
        print(f"{request.image}: {outcome}")
        continue
    outcome.save("masks", stem=request.image.stem, formats=("labels", "overlay", "json"))
    print(request.image.name, {name: f"{there.share:.0%}" for name, there in outcome.present.items() if there.share})
