"""The tiny pipelines: each builds the same from its seed, and generates as the real one is asked to."""

import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import UNETS
from goca.diffusion.loading import quiet
from goca.testing.tiny import BUILDERS, JOINT_BUILDERS, UNET_BUILDERS

# What a call needs to make the size that it was asked for, and one image, without guidance.
BINNED = ("pixart_alpha", "pixart_alpha_1024", "pixart_sigma", "hunyuan_dit", "sana")
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"use_resolution_binning": False} for name in BINNED},
    "wan": {"num_frames": 1},
    "z_image": {"guidance_scale": 0.0},
    "longcat": {"enable_prompt_rewrite": False},
}
# The side of a latent cell in pixels, where it is not 2.
CELL = {"hunyuan_dit": 8, "lumina2": 8, "wan": 8, "cosmos2": 8, "sana": 4, "qwen_image": 4, "krea2": 4}
# Four cells in a row of channels for each token.
PACKED = ("flux", "flux_schnell", "chroma", "flux2", "qwen_image", "bria", "ovis", "longcat", "krea2")
SIZE = (64, 96)


@pytest.fixture(params=BUILDERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def build(name: str) -> Callable[[], Any]:
    return BUILDERS[name]


@contextmanager
def nothing_left_empty() -> Iterator[None]:
    """Memory that is not set comes as NaN instead of as what lay there."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def modules(pipeline: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}


def weights(pipeline: Any) -> dict[str, Tensor]:
    tensors_by_path = {}
    for name, module in modules(pipeline).items():
        for tensors in (module.named_parameters(name), module.named_buffers(name)):
            tensors_by_path.update({path: tensor.detach() for path, tensor in tensors})
    return tensors_by_path


def test_what_is_tested_on_every_unet_knows_them_all() -> None:
    assert tuple(UNET_BUILDERS) == UNETS


def test_the_same_weights_every_time_and_all_of_them_set(build: Callable[[], Any]) -> None:
    pipeline = build()
    first = weights(pipeline)
    torch.rand(3)
    with nothing_left_empty():
        second = weights(build())
    assert first.keys() == second.keys()
    assert [path for path, tensor in first.items() if not torch.equal(tensor, second[path])] == []
    floats = [tensor for tensor in second.values() if tensor.is_floating_point()]
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in floats)
    assert {tensor.device.type for tensor in second.values()} == {"cpu"}
    assert not any(part.training for module in modules(pipeline).values() for part in module.modules())


def test_an_image_of_two_different_sides(name: str, build: Callable[[], Any]) -> None:
    with quiet():
        pipeline = build()
        pipeline.set_progress_bar_config(disable=True)
        options = {"guidance_scale": 1.0, **OPTIONS.get(name, {})}
        latents = pipeline(
            prompt="a photo of a cat on grass",
            num_inference_steps=2,
            height=SIZE[0],
            width=SIZE[1],
            output_type="latent",
            **options,
        )[0]
    assert latents.isfinite().all()
    height, width = (side // CELL.get(name, 2) for side in SIZE)
    if name == "hidream":
        # It makes every image about as large as 64 x 64.
        height, width = 26, 38
    assert latents.shape[1:] == (
        (height * width // 4, 64 if name == "longcat" else 16)
        if name in PACKED
        else (4, *(1,) * (latents.ndim - 4), height, width)
    )


def test_every_tokenizer_knows_every_printable_character(build: Callable[[], Any]) -> None:
    pipeline = build()
    tokenizers = [part for name, part in pipeline.components.items() if name.startswith("tokenizer")]
    assert tokenizers
    for tokenizer in tokenizers:
        for character in string.printable.split()[0]:
            # Alone, at the start, in the midst and at the end of a word.
            for text in (character, f"{character}o", f"o{character}o", f"o{character}"):
                ids = tokenizer(text, add_special_tokens=False).input_ids
                decoded = tokenizer.decode(ids).replace(" ", "")
                assert decoded.lower() == text.lower(), tokenizer


def test_qwen_images_template_is_as_long_as_what_it_cuts_off() -> None:
    pipeline = JOINT_BUILDERS["qwen_image"]()
    before = pipeline.prompt_template_encode.split("{}")[0]
    assert len(pipeline.tokenizer(before).input_ids) == pipeline.prompt_template_encode_start_idx
