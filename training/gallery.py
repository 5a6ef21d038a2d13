"""Stage gallery: samples of the pipeline's images. Of several images of a caption, the one is kept in
which the namer is surest of every requested noun.

    python -m training.gallery [--work FOLDER] [--model unet] [--tries 10] [--out samples.png]
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import namer
from .commands import command
from .export import MODELS, assemble
from .judge import halved, paint
from .loop import DEVICE
from .nouns import NAMES
from .vae import to_tensor

CAPTIONS = (
    ("mushroom", "grass", "sky"), ("penguin", "snow"), ("cactus", "sand", "sky"), ("tree", "grass", "sky"),
    ("bus", "road", "brick"), ("frog", "grass"), ("banana", "wood"), ("house", "snow", "sky"),
    ("boat", "water", "sky"), ("cow", "grass"), ("car", "road"), ("rocket", "sky"),
    ("elephant", "sand"), ("apple", "wood"), ("butterfly", "grass"), ("fish", "water"),
)  # fmt: skip
COLUMNS, SIDE = 8, 128  # an image's pixels, enlarged if it has fewer
SEED = 5000


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--model", default="unet", choices=MODELS)
    parser.add_argument("--tries", type=int, default=10, help="images per caption (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="image file to write (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline, names = assemble(arguments.model, arguments.work).to(DEVICE), namer.load(arguments.work)
    kept = []
    for index, nouns in enumerate(CAPTIONS):
        captions, seed = [", ".join(nouns)] * arguments.tries, SEED + index * arguments.tries
        painted = paint(arguments.model, pipeline, captions, seed)
        with torch.no_grad():
            sure = names(to_tensor(halved(painted)))[:, [NAMES.index(noun) for noun in nouns]].amin(1)
        kept.append(painted[int(sure.argmax())])
    side = kept[0].shape[0]
    rows = np.stack(kept).reshape(-1, COLUMNS, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * side, 3)
    image = Image.fromarray(rows)
    size = (image.width * SIDE // side, image.height * SIDE // side)
    image.resize(size, Image.Resampling.NEAREST).save(arguments.out)


if __name__ == "__main__":
    main()
