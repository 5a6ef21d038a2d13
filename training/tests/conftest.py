"""A pack of plain discs, and a work folder with a few scenes drawn in it."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

# The process that hands tests to workers reads this too, and runs none: torch is imported where it is needed.
if TYPE_CHECKING:
    from training import scenes
    from training.art import Pack


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pack() -> "Pack":
    """Every thing is an opaque disc in magenta, which no stuff comes near."""
    from training.nouns import THINGS

    rows, columns = np.mgrid[-1:1:90j, -1:1:90j]
    disc = np.zeros((90, 90, 4), np.uint8)
    disc[rows**2 + columns**2 <= 1] = (255, 0, 255, 255)
    return {thing.name: (disc,) for thing in THINGS}


@pytest.fixture(scope="session")
def textures() -> "scenes.Textures":
    from training import scenes

    return scenes.make_textures(seed=5, tiles=1)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, pack: "Pack", textures: "scenes.Textures") -> Path:
    """What the stages scenes and tokenizer leave behind, in small."""
    from training import scenes, tokenizer

    folder = tmp_path_factory.mktemp("work")
    for name, count in (("train", 7), ("held-out", 5)):
        (folder / "scenes" / name).mkdir(parents=True)
        for size in scenes.SIZES:
            drawn = [scenes.render(3, index, [pack], textures, size) for index in range(count)]
            np.save(folder / "scenes" / name / f"images-{size}.npy", np.stack([scene.image for scene in drawn]))
        lines = (json.dumps(asdict(scene.content)) for scene in drawn)
        (folder / "scenes" / name / "contents.jsonl").write_text("\n".join(lines))
    tokenizer.build().save_pretrained(folder / "tokenizer")
    tokenizer.build_t5().save_pretrained(folder / tokenizer.T5_FOLDER)
    return folder
