"""Scenes: one to three things, pasted on one or two stuffs, with an exact label for every pixel.

A scene is a function of (seed, index, packs, textures) alone, so any scene can be drawn again, in any art.
Scenes are composed on a canvas of 128 px, the size the transformers learn at. For the UNet the canvas is
box-downsampled to 64 px.

    python -m training.scenes [--work FOLDER] [--count 48000]
"""

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from . import art, stuff
from .commands import command
from .nouns import LABEL, STUFF, THINGS

CANVAS = 128  # side on which everything is composed
SIZE = 64  # side of a finished image, unless the canvas itself is requested
SIZES = (SIZE, CANVAS)
TRAIN_SEED, HELD_OUT_SEED = 1, 2  # of the scenes; held-out scenes have textures of their own too

THING_COUNTS = (0.40, 0.40, 0.20)  # probabilities of 1, 2, 3 things
THING_SIZES = ((56, 100), (50, 80), (44, 66))  # longest side on the canvas, by number of things
TWIN = 0.15  # probability that the next thing repeats the last one's noun: captions count ("two birds")
VISIBLE = 0.65  # at least this much of each thing stays visible under later ones
ATTEMPTS = 12  # placements tried before a thing is left out
HORIZON = 0.65  # probability of two stuffs, one above the other
BACKDROPS = {"sky": 0.40, "brick": 0.16, "wood": 0.14, "water": 0.12, "grass": 0.09, "snow": 0.09}
GROUNDS = ("grass", "sand", "water", "snow", "road", "wood")
CHUNK = 1000  # scenes a process renders at a time, with textures made once
STUFF_SHARE, STUFF_PIXELS = 0.3, 600  # of its first area, and canvas pixels, that each stuff keeps visible

Rng = np.random.Generator
Textures = dict[str, np.ndarray]  # noun -> [tile, height, width, 3] uint8


@dataclass(frozen=True)
class Content:
    """What a scene shows: a noun per thing in drawing order, the ground, the backdrop if any."""

    things: tuple[str, ...]
    ground: str
    backdrop: str | None

    @property
    def nouns(self) -> tuple[str, ...]:
        """Every noun of the scene once, things first."""
        return tuple(dict.fromkeys((*self.things, self.ground, *filter(None, [self.backdrop]))))


@dataclass(frozen=True)
class Scene:
    """An image [height, width, 3] uint8, its labels [height, width] uint8 (`nouns.LABEL`), its content."""

    image: np.ndarray
    labels: np.ndarray
    content: Content


def make_textures(seed: int, tiles: int = 64) -> Textures:
    """A bank of tiles per stuff; scenes cut windows from it, much faster than painting each anew."""
    rng = np.random.default_rng(seed)
    paint = stuff.PAINTERS
    return {
        noun.name: np.stack([np.clip(paint[noun.name](rng), 0, 255).astype(np.uint8) for _ in range(tiles)])
        for noun in STUFF
    }


def render(seed: int, index: int, packs: Sequence[art.Pack], textures: Textures, size: int = SIZE) -> Scene:
    """Scene number `index` of the endless set `seed`, `size` pixels a side; each thing is of a random pack."""
    return _finish(*_compose(seed, index, packs, textures), size)


def _compose(
    seed: int, index: int, packs: Sequence[art.Pack], textures: Textures
) -> tuple[np.ndarray, np.ndarray, Content]:
    """The canvas [128, 128, 3] float32, its labels, its content."""
    rng = np.random.default_rng((seed, index))
    canvas, labels, ground, backdrop = _paint_stuff(rng, textures)
    nouns = _pick_things(rng)
    low, high = THING_SIZES[len(nouns) - 1]
    kept_stuff = {
        name: max(STUFF_SHARE * (labels == LABEL[name]).sum(), STUFF_PIXELS)
        for name in filter(None, (ground, backdrop))
    }
    masks: list[np.ndarray] = []  # of the things placed so far, hidden parts included
    owner = np.full((CANVAS, CANVAS), -1)  # which thing is seen at a pixel
    placed: list[str] = []
    for noun in nouns:
        pack = packs[rng.integers(len(packs))]
        glyph = _vary(rng, pack[noun][rng.integers(len(pack[noun]))], rng.uniform(low, high))
        for _ in range(ATTEMPTS):
            colour, alpha = _place(rng, glyph)
            mask = alpha > 127.5
            seen = np.where(mask, len(placed), owner)
            shown = np.where(mask, LABEL[noun], labels)
            things_ok = all((seen == i).sum() >= VISIBLE * earlier.sum() for i, earlier in enumerate(masks))
            if things_ok and all((shown == LABEL[name]).sum() >= least for name, least in kept_stuff.items()):
                canvas += (colour - canvas) * (alpha[..., None] / 255)
                owner, labels = seen, shown.astype(np.uint8)
                masks.append(mask)
                placed.append(noun)
                break
    return canvas, labels, Content(tuple(placed), ground, backdrop)


def _finish(canvas: np.ndarray, labels: np.ndarray, content: Content, size: int) -> Scene:
    labels = labels if size == CANVAS else _shrink_labels(labels)
    return Scene(_shrink(canvas, size), labels, content)


def _paint_stuff(rng: Rng, textures: Textures) -> tuple[np.ndarray, np.ndarray, str, str | None]:
    if rng.random() >= HORIZON:
        name = str(rng.choice([noun.name for noun in STUFF]))
        return _window(rng, textures[name]), np.full((CANVAS, CANVAS), LABEL[name], np.uint8), name, None
    ground = str(rng.choice(GROUNDS))
    backdrop = ground
    while backdrop == ground:
        backdrop = str(rng.choice(list(BACKDROPS), p=list(BACKDROPS.values())))
    columns = np.arange(CANVAS)
    bumps = np.interp(columns, np.linspace(0, CANVAS, 6), rng.normal(0, 1, 6)) * rng.choice([0, 3])
    line = rng.uniform(0.3, 0.66) * CANVAS + (columns - CANVAS / 2) * rng.normal(0, 0.06) + bumps
    above = np.arange(CANVAS)[:, None] < line
    canvas = np.where(above[..., None], _window(rng, textures[backdrop]), _window(rng, textures[ground]))
    return canvas, np.where(above, LABEL[backdrop], LABEL[ground]).astype(np.uint8), ground, backdrop


def _window(rng: Rng, tiles: np.ndarray) -> np.ndarray:
    tile = tiles[rng.integers(len(tiles))]
    top, left = rng.integers(0, stuff.TILE - CANVAS + 1, 2)
    window = tile[top : top + CANVAS, left : left + CANVAS]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    return np.clip(window * rng.uniform(0.88, 1.1) + rng.normal(0, 4, 3), 0, 255).astype(np.float32)


def _pick_things(rng: Rng) -> list[str]:
    order = [noun.name for noun in THINGS]
    rng.shuffle(order)
    picked = [order.pop()]
    for _ in range(rng.choice(len(THING_COUNTS), p=THING_COUNTS)):
        picked.append(picked[-1] if rng.random() < TWIN else order.pop())
    return picked


def _vary(rng: Rng, glyph: np.ndarray, longest: float) -> np.ndarray:
    """The glyph at the requested size: perhaps mirrored, turned a little, its colours shifted; float RGBA."""
    image = Image.fromarray(glyph)
    scale = longest / max(image.size)
    image = image.resize(
        (max(8, round(image.width * scale)), max(8, round(image.height * scale))),
        Image.Resampling.LANCZOS,
    )
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = float(np.clip(rng.normal(0, 7), -18, 18))
    turned = np.asarray(image.rotate(angle, Image.Resampling.BICUBIC, expand=True)).astype(np.float32)
    turned[..., :3] = np.clip(turned[..., :3] * rng.uniform(0.85, 1.12) + rng.normal(0, 7, 3), 0, 255)
    return turned


def _place(rng: Rng, glyph: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The glyph on an empty canvas, at most 8 % of it outside: colour [h, w, 3], alpha [h, w], 0 to 255."""
    height, width = glyph.shape[:2]
    top = int(rng.uniform(-0.08 * height, CANVAS - 0.92 * height))
    left = int(rng.uniform(-0.08 * width, CANVAS - 0.92 * width))
    layer = np.zeros((CANVAS, CANVAS, 4), np.float32)
    rows, columns = (
        slice(max(top, 0), min(top + height, CANVAS)),
        slice(max(left, 0), min(left + width, CANVAS)),
    )
    from_rows, from_columns = (slice(s.start - o, s.stop - o) for s, o in ((rows, top), (columns, left)))
    layer[rows, columns] = glyph[from_rows, from_columns]
    return layer[..., :3], layer[..., 3]


def _shrink(canvas: np.ndarray, size: int) -> np.ndarray:
    box = CANVAS // size
    boxes = canvas.reshape(size, box, size, box, 3).mean((1, 3))
    return np.clip(boxes + 0.5, 0, 255).astype(np.uint8)


def _shrink_labels(labels: np.ndarray) -> np.ndarray:
    """The most frequent label of each 2 x 2 box; the first one for ties."""
    boxes = labels.reshape(SIZE, 2, SIZE, 2).transpose(0, 2, 1, 3).reshape(SIZE, SIZE, 4)
    votes = (boxes[..., :, None] == boxes[..., None, :]).sum(-1)
    return np.take_along_axis(boxes, votes.argmax(-1)[..., None], -1)[..., 0]


def _render_range(job: tuple[int, range, Path]) -> tuple[dict[int, np.ndarray], list[Content]]:
    seed, indices, art_folder = job
    packs = [art.load(name, art_folder) for name in art.TRAINING_PACKS]
    textures = make_textures(seed)
    composed = [_compose(seed, index, packs, textures) for index in indices]
    images = {size: np.stack([_shrink(canvas, size) for canvas, _, _ in composed]) for size in SIZES}
    return images, [content for _, _, content in composed]


def write(folder: Path, seed: int, count: int, art_folder: Path, processes: int = 2) -> None:
    """Render scenes 0 to count - 1 of `seed` to `folder`: images of both sizes, then contents.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    images = {
        size: np.lib.format.open_memmap(_images(folder, size), "w+", np.uint8, (count, size, size, 3)) for size in SIZES
    }
    jobs = [(seed, range(first, min(first + CHUNK, count)), art_folder) for first in range(0, count, CHUNK)]
    contents: list[Content] = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for (_, indices, _), (drawn, drawn_contents) in zip(jobs, pool.map(_render_range, jobs), strict=True):
            for size in SIZES:
                images[size][indices.start : indices.stop] = drawn[size]
            contents += drawn_contents
    lines = (json.dumps(asdict(content)) for content in contents)
    (folder / "contents.jsonl").write_text("\n".join(lines) + "\n")


def read(folder: Path, size: int = SIZE) -> tuple[np.ndarray, list[Content]]:
    """The images of `folder` [image, size, size, 3], mapped from disk, and their contents."""
    rows = map(json.loads, (folder / "contents.jsonl").read_text().splitlines())
    contents = [Content(tuple(row["things"]), row["ground"], row["backdrop"]) for row in rows]
    return np.load(_images(folder, size), mmap_mode="r"), contents


def _images(folder: Path, size: int) -> Path:
    return folder / f"images-{size}.npy"


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--count", type=int, default=48_000, help="training scenes (and 2,000 held-out ones)")
    arguments = parser.parse_args()
    for name, seed, count in (("held-out", HELD_OUT_SEED, 2_000), ("train", TRAIN_SEED, arguments.count)):
        write(arguments.work / "scenes" / name, seed, count, arguments.work / "art")
        print(f"{name}: {count} scenes")


if __name__ == "__main__":
    main()
