"""Stage judge: the pipeline's images and its denoising; one JSON object and a sample sheet.

The namer says what an image shows; it learned on scenes and never saw a generated image. Its
answers on real held-out scenes say how far it can be trusted; answers for the next image's caption say
how often a noun is found by chance.

    python -m training.judge [--work FOLDER] [--model unet] [--percent 100] [--count 200]
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from . import namer, scenes
from .captions import caption
from .commands import command
from .denoiser import DenoiserTask
from .export import MODELS, assemble, denoiser
from .loop import DEVICE, SNAPSHOTS, snapshot
from .nouns import NAMES, THINGS
from .vae import to_tensor

GUIDANCE, STEPS = 4.0, 30
SHEET = (
    "cat, grass", "a dog on the sand", "fish, water", "a house on the grass under the sky",
    "car, road, sky", "two birds on the snow", "penguin, snow, sky", "an elephant on the sand under the sky",
    "boat, water, sky", "a rocket in the sky", "mushroom, grass, wood", "a pizza on the wood",
    "cactus, sand, sky", "a butterfly and a tree on the grass", "apple, banana, wood", "bus, road, brick",
    "frog, grass, water", "a pig and a cow on the grass", "airplane, sky", "a ball on the road and the brick",
    "turtle, sand, water", "a tree on the snow under the sky", "sand, water", "the grass under the sky",
)  # fmt: skip
COLUMNS = 8

Result = TypeVar("Result")


@torch.no_grad()
def paint(
    model: str,
    pipeline: DiffusionPipeline,
    captions: Sequence[str],
    seed: int,
    steps: int = STEPS,
    batch: int = 20,
) -> np.ndarray:
    """An image per caption [n, h, w, 3] uint8; each has its own generator, so batches do not matter."""
    parts = []
    for first in range(0, len(captions), batch):
        texts = list(captions[first : first + batch])
        generators = [torch.Generator().manual_seed(seed + first + i) for i in range(len(texts))]
        asked = MODELS[model].call(texts, GUIDANCE)
        result = pipeline(**asked, num_inference_steps=steps, generator=generators, output_type="np")
        parts.append((result.images * 255).round().astype(np.uint8))
    return np.concatenate(parts)


def found(said: Tensor, asked: Tensor) -> dict[str, float]:
    """Share of asked nouns that are said to be shown, over images: all, things, stuff."""
    parts = {"all": slice(None), "things": slice(0, len(THINGS)), "stuff": slice(len(THINGS), None)}
    hits = said & asked
    return {name: (hits[:, part].sum() / asked[:, part].sum()).item() for name, part in parts.items()}


def found_by_noun(said: Tensor, asked: Tensor) -> dict[str, float]:
    """The same, for each noun that was asked for."""
    return {
        name: (said[asked[:, i], i].sum() / asked[:, i].sum()).item()
        for i, name in enumerate(NAMES)
        if asked[:, i].any()
    }


def found_by_text(model: str, work: Path, captions: Sequence[str], sets: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`text_finds_image` of each set of images, where the work folder has a text encoder with its projections."""
    if not snapshot(work / MODELS[model].texts.__name__.rpartition(".")[2]).exists():
        return {}
    return {name: text_finds_image(model, work, captions, images) for name, images in sets.items()}


@torch.no_grad()
def text_finds_image(model: str, work: Path, captions: Sequence[str], images: np.ndarray) -> float:
    """Share of captions whose own image the text encoder's projections find most similar among all."""
    trained, tokenizer = MODELS[model].texts.load(work)
    texts = trained.embed_texts(tokenizer(list(captions), padding="longest", return_tensors="pt").to(DEVICE))
    _, coarse = namer.grids(namer.load(work), images)
    embedded = trained.embed_features(namer.features(coarse).to(DEVICE))
    return ((texts @ embedded.T).argmax(1) == torch.arange(len(texts), device=DEVICE)).float().mean().item()


@torch.no_grad()
def forward_seconds(task: DenoiserTask, pipeline: DiffusionPipeline, image: np.ndarray) -> float:
    """CPU seconds, once warm, of what a segmentation asks of the model: two encodings and one denoising."""
    pixels, level = to_tensor(image[None]), torch.tensor([0.1], device=DEVICE)

    def once() -> None:
        latent = pipeline.vae.encode(pixels).latent_dist.mean
        noisy, _, times = task.noised(latent, torch.randn_like(latent), level)
        task.predict(denoiser(pipeline), noisy, times, task.captions[:1], None)

    once()
    return _cpu_seconds(once)[0]


def halved(images: np.ndarray) -> np.ndarray:
    """Images [n, h, w, 3] at the size the namer knows, box-downsampled as scenes are."""
    box = images.shape[1] // scenes.SIZE
    boxes = images.reshape(len(images), scenes.SIZE, box, scenes.SIZE, box, 3).mean((2, 4))
    return (boxes + 0.5).astype(np.uint8)


def judge(model: str, work: Path, percent: int, count: int) -> dict[str, object]:
    """Every figure of a model's snapshot at `percent`; paints the sample sheet on the way."""
    pipeline, names, task = assemble(model, work, percent).to(DEVICE), namer.load(work), MODELS[model].Task(work, 1)
    real, contents = scenes.read(work / "scenes/held-out")
    rng = np.random.default_rng(0)
    captions = [caption(content, rng) for content in contents[:count]]
    asked = namer.presence(contents[:count]) > 0

    seconds, painted = _cpu_seconds(lambda: halved(paint(model, pipeline, captions, seed=0)))
    said, said_of_real = (namer.shown(names, to_tensor(images)) for images in (painted, real[:count]))
    sheet = paint(model, pipeline, SHEET, seed=1000)
    side = sheet.shape[1]
    rows = sheet.reshape(-1, COLUMNS, side, side, 3).transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * side, 3)
    Image.fromarray(rows).save(snapshot(work / model, percent) / "samples.png")
    large, _ = scenes.read(work / "scenes/held-out", side)
    return {
        "percent": percent,
        "images": count,
        "found": found(said, asked),
        "found_by_chance": found(said.roll(1, 0), asked),
        "found_on_real_scenes": found(said_of_real, asked),
        "found_by_noun": found_by_noun(said, asked),
        **found_by_text(model, work, captions, {"text_finds_image": painted, "text_finds_real_image": real[:count]}),
        "held_out_loss": task.held_out_losses(denoiser(pipeline)),
        "cpu_seconds_a_painting": seconds / count,
        "cpu_seconds_a_forward": forward_seconds(task, pipeline, large[0]),
    }


def _cpu_seconds(run: Callable[[], Result]) -> tuple[float, Result]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--model", default="unet", choices=MODELS)
    parser.add_argument("--percent", type=int, default=100, choices=SNAPSHOTS, help="snapshot of the denoiser")
    parser.add_argument("--count", type=int, default=200, help="number of images to generate (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = json.dumps(judge(arguments.model, arguments.work, arguments.percent, arguments.count), indent=2)
    print(result)
    (snapshot(arguments.work / arguments.model, arguments.percent) / "judgement.json").write_text(result)


if __name__ == "__main__":
    main()
