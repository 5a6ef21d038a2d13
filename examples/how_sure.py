"""Where does the model change its mind? Four noises and the mirrored image, and the spread of their scores."""

from pathlib import Path

from PIL import Image

from goca import GOCA_BALANCED, Segmenter

segmenter = Segmenter.from_pretrained("bundled", GOCA_BALANCED, seeds=4, flip=True)
result = segmenter(Path(__file__).with_name("cat.png"), ["cat", "water", "sky"], background="none")
spread = result.uncertainty
print(f"{result.plan.num_passes} passes; mean spread {spread.mean():.3f}, at most {spread.max():.3f}")
Image.fromarray((255 * spread / spread.max()).astype("uint8")).save("how_sure.png")
