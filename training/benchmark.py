"""Stage benchmark: the scenes that ship with the package, in art that nothing was trained on.

240 scenes in Twemoji, with stuff of their own, from a seed that no other stage uses. They are only ever
reported on; the settings of the bundled pipeline are chosen on other scenes, by `training.tune`.

    python -m training.benchmark [--work FOLDER] [--out src/goca/bundled/scenes]
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from goca.bundled import Scene

from . import art, captions, scenes
from .commands import command
from .nouns import LABEL

SEED, COUNT = 3, 240


def task(drawn: scenes.Scene, rng: np.random.Generator) -> Scene:
    """A drawn scene as something to segment: its classes in random order, its labels by their places, its captions."""
    nouns = captions.noun_list(drawn.content, rng)
    classes = tuple(nouns.split(", "))
    labels = np.zeros_like(drawn.labels)
    for place, noun in enumerate(classes, start=1):
        labels[drawn.labels == LABEL[noun]] = place
    said = {"nouns": nouns, "sentences": captions.sentence(drawn.content, rng)}
    return Scene(Image.fromarray(drawn.image), labels, classes, said)


def write(folder: Path, art_folder: Path) -> None:
    """Images and indexed labels as PNG, and scenes.json: the classes and both captions of each."""
    folder.mkdir(parents=True, exist_ok=True)
    art.fetch(art.HELD_OUT_PACK, art_folder)
    packs = [art.load(art.HELD_OUT_PACK, art_folder)]
    textures = scenes.make_textures(SEED)
    entries = []
    for index in range(COUNT):
        scene = task(scenes.render(SEED, index, packs, textures), np.random.default_rng((SEED, index, 1)))
        entry = {"image": f"{index:03}.png", "labels": f"{index:03}.labels.png", "classes": scene.classes}
        scene.image.save(folder / entry["image"], optimize=True)
        Image.fromarray(scene.labels).save(folder / entry["labels"], optimize=True)
        entries.append({**entry, "captions": scene.captions})
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (folder / "scenes.json").write_text(f"[\n{lines}\n]\n")


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--out", type=Path, default=Path("src/goca/bundled/scenes"))
    arguments = parser.parse_args()
    write(arguments.out, arguments.work / "art")
    print(f"{COUNT} scenes in {arguments.out}")


if __name__ == "__main__":
    main()
