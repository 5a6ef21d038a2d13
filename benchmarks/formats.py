"""One image in every export format, each drawn from its file: the sheet in docs/masks.md.

python benchmarks/formats.py docs/images/masks.png
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle

from goca import GOCA_OPEN, Segmenter
from goca.exports import EXPORTERS
from goca.exports.objects import ObjectOptions
from goca.imaging.draw import heatmap, painted
from goca.imaging.palette import palette
from goca.imaging.sheet import Cell, contact_sheet

SCALE = 6
PHOTO = Path(__file__).parent.parent / "examples" / "cat.png"
CLASSES = ["cat", "sky", "water"]
COLOURS = [tuple(colour) for colour in palette(len(CLASSES)).tolist()]


def outlined(image: Image.Image, shapes: list[tuple[int, list[tuple[float, float]]]]) -> Image.Image:
    """The image with polygons of classes, enlarged: corners are on the edges of pixels."""
    canvas = image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    for label, corners in shapes:
        draw.polygon([(x * SCALE, y * SCALE) for x, y in corners], outline=COLOURS[label], width=4)
    return canvas


def brush_mask(rle: list[int], shape: tuple[int, ...]) -> np.ndarray:
    """The mask in Label Studio's run lengths, decoded like thi.ng/rle-pack."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    position = 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        return int(bits[position - count : position], 2)

    values, bits_of_value = np.zeros(read(32), np.uint8), read(5) + 1
    bits_of_length = [read(4) + 1 for _ in range(4)]
    start = 0
    while start < len(values):
        repeated, end = read(1), start + 1 + read(bits_of_length[read(2)])
        values[start:end] = read(bits_of_value) if repeated else [read(bits_of_value) for _ in range(end - start)]
        start = end
    return values.reshape(*shape, 4)[..., 3] > 0


def rows(values: list[float], across: float = 1, down: float = 1) -> list[tuple[float, float]]:
    return [(x * across, y * down) for x, y in zip(values[::2], values[1::2], strict=True)]


def drawn(folder: Path, image: Image.Image) -> dict[str, Image.Image]:
    """{format: drawing of its file of the image}."""
    paths = {name: folder / f"cat{exporter.suffix}" for name, exporter in EXPORTERS.items()}
    coco, labelme, sam, facts = (json.loads(paths[name].read_text()) for name in ("coco", "labelme", "sam", "json"))
    labels = np.zeros((image.height, image.width), np.uint16)
    for entry in coco["annotations"]:
        labels[rle.decode(entry["segmentation"]) > 0] = entry["category_id"]
    shapes = [(CLASSES.index(shape["label"]) + 1, shape["points"]) for shape in labelme["shapes"]]
    lines = [line.split() for line in (paths["yolo"] / "labels" / "cat.txt").read_text().splitlines()]
    (task,) = json.loads((paths["label-studio"] / "tasks.json").read_text())
    brushed = np.zeros_like(labels)
    for result in task["predictions"][0]["result"]:
        value = result["value"]
        brushed[brush_mask(value["rle"], labels.shape)] = CLASSES.index(value["brushlabels"][0]) + 1
    objects = [(int(line[0]) + 1, rows([*map(float, line[1:])], image.width, image.height)) for line in lines]
    prompts = [(CLASSES.index(entry["label"]) + 1, entry) for entry in sam["prompts"]]
    boxes = [
        (label, rows([left, top, right, top, right, bottom, left, bottom]))
        for label, (left, top, right, bottom) in ((label, entry["box"]) for label, entry in prompts)
    ]
    boxed = outlined(image, boxes)
    for label, entry in prompts:
        for x, y in entry["points"]:
            centre = ((x + 0.5) * SCALE, (y + 0.5) * SCALE)
            ImageDraw.Draw(boxed).circle(centre, 12, fill=COLOURS[label], outline="white")
    listed = Image.new("RGB", boxed.size, "white")
    text = "\n".join(f"{entry['name']}: {entry['share']:.0%}" for entry in facts["classes"])
    ImageDraw.Draw(listed).text((30, 30), text, "black", font_size=40)
    cut = Image.open(paths["cutout"] / "cat" / "cat.png")
    chess = Image.fromarray((np.indices(labels.shape) // 4).sum(0).astype(np.uint8) % 2 * 40 + 190)
    with np.load(paths["npz"]) as arrays:
        scores = np.array(arrays["scores"][0])
    return {
        "labels": Image.open(paths["labels"]).convert("RGB"),
        "overlay": Image.open(paths["overlay"]).convert("RGB"),
        "json": listed,
        "labelme": outlined(image, shapes),
        "sam": boxed,
        "npz": heatmap(image, scores),
        "coco": painted(image, labels, len(CLASSES)),
        "yolo": outlined(image, objects),
        "voc": Image.open(paths["voc"] / "SegmentationClass" / "cat.png").convert("RGB"),
        "hf": Image.open(paths["hf"] / "train" / "masks" / "cat.png").convert("RGB"),
        "label-studio": painted(image, brushed, len(CLASSES)),
        "masks": Image.open(paths["masks"] / "cat" / "cat.png").convert("RGB"),
        "cutout": Image.composite(cut.convert("RGB"), chess.convert("RGB"), cut.getchannel("A")),
    }


def main(target: str) -> None:
    result = Segmenter.from_pretrained("bundled", recipe=GOCA_OPEN)(PHOTO, CLASSES)
    with tempfile.TemporaryDirectory() as folder:
        result.save(folder, "cat", formats=[*EXPORTERS], objects=ObjectOptions(min_area=9))
        pictures = drawn(Path(folder), result.image)
    cells = [
        Cell(picture if max(picture.size) > 100 else picture.resize((224, 224), Image.Resampling.NEAREST), name)
        for name, picture in pictures.items()
    ]
    contact_sheet([cells[start : start + 5] for start in range(0, len(cells), 5)]).quantize(256).save(
        target, optimize=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
