"""Name every noun that the model knows, and see which of them the image shows."""

from pathlib import Path

from goca import Segmenter, bundled

segmenter = Segmenter.from_pretrained("bundled")
result = segmenter(Path(__file__).with_name("cat.png"), bundled.vocabulary(), background="none")
for name, presence in sorted(result.present.items(), key=lambda item: -item[1].evidence)[:6]:
    print(f"{name:10} evidence {presence.evidence:.2f}  {presence.share:6.1%} of the pixels")
result.save("found", stem="cat")
