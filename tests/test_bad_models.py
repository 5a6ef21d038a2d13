"""Models that cannot be asked: refused in one line that names the cause, before any picture is segmented."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from goca import GocaError, Segmenter

Make = Callable[..., Image.Image]
ASK: dict[str, Any] = {"classes": ["cat", "grass"]}


@pytest.fixture
def folder(sd15: Any, tmp_path: Path) -> Path:
    sd15.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("broken", "content"),
    [
        ("tokenizer/tokenizer.json", None),
        ("tokenizer/tokenizer.json", "{}"),
        ("tokenizer/tokenizer_config.json", None),
        ("unet/config.json", None),
        ("unet/config.json", "{"),
        ("text_encoder/model.safetensors", None),
        ("text_encoder/model.safetensors", ""),
        ("unet/diffusion_pytorch_model.safetensors", "half"),
        ("vae/diffusion_pytorch_model.safetensors", None),
        ("model_index.json", None),
        ("model_index.json", "[]"),
    ],
)
def test_a_folder_with_a_part_missing_or_broken(broken: str, content: str | None, folder: Path) -> None:
    path = folder / broken
    if content == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(GocaError) as caught:
        Segmenter.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_loaded(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(GocaError, match="safetensors"):
        Segmenter.from_pretrained(folder)


def test_a_pipeline_that_wants_a_picture_to_start_from(sd15: Any) -> None:
    with pytest.raises(GocaError, match="text-to-image"):
        Segmenter.from_pipeline(StableDiffusionImg2ImgPipeline(**sd15.components, requires_safety_checker=False))


@pytest.mark.parametrize("name", ["", "nothing/here/at/all", "./nowhere", "one-word"])
def test_a_name_of_nothing(name: str) -> None:
    with pytest.raises(GocaError, match=r"no model|no diffusers pipeline"):
        Segmenter.from_pretrained(name)


@pytest.mark.parametrize("device", ["meta", "xpu", "cuda:99", "toaster"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(GocaError, match="no device"):
        Segmenter.from_pretrained("bundled", device=device)


def test_an_offloaded_denoiser(sd15: Any, picture: Make) -> None:
    plain = Segmenter.from_pipeline(sd15, size=64)(picture(), **ASK)
    accelerate.cpu_offload(sd15.unet, torch.device("cpu"))
    offloaded = Segmenter.from_pipeline(sd15, size=64)(picture(), **ASK)
    # The projection is asked for instead of read, which moves the last bits, and min-max enlarges them.
    np.testing.assert_allclose(offloaded.scores.grid, plain.scores.grid, atol=0.02)
