"""Every object of a class as an image of its own, with everything else transparent."""

from pathlib import Path

from PIL import Image

from goca import GOCA_REFINED, Segmenter

image = Image.open(Path(__file__).with_name("cat.png")).convert("RGB")
segmenter = Segmenter.from_pretrained("bundled", GOCA_REFINED)
result = segmenter(image, ["cat", "water", "sky"], background="none")
for number, instance in enumerate(result.instances(min_area=50)):
    print(instance)
    image.putalpha(Image.fromarray(instance.mask))
    image.crop(instance.box).save(f"{instance.class_name}-{number}.png")
