"""Images that a pipeline gives its denoiser beside the one that it makes: which tokens are whose."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline, QwenImageEditPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from looked import Looked
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessorPil

from goca import GOCA, GocaError, guide, trace
from goca.diffusion.backbone import Backbone
from goca.diffusion.latent_layout import layout_of, references_of
from goca.diffusion.loading import quiet
from goca.testing.tiny import BUILDERS

Make = Callable[..., Image.Image]
RAW = replace(GOCA, rescale=(), order=0)


def make(pipe: Any, images: Any, **options: Any) -> Tensor:
    sized = {"prompt": "a cat on grass", "height": 64, "width": 96, "num_inference_steps": 2, "output_type": "np"}
    return torch.as_tensor(pipe(image=images, generator=torch.Generator().manual_seed(0), **{**sized, **options})[0])


def kontext() -> tuple[Any, dict[str, Any]]:
    return FluxKontextPipeline(**BUILDERS["flux"]().components), {"_auto_resize": False, "max_area": 64 * 96}


def flux2() -> tuple[Any, dict[str, Any]]:
    return BUILDERS["flux2"](), {}


def klein() -> tuple[Any, dict[str, Any]]:
    return BUILDERS["flux2_klein"](), {}


def qwen_edit() -> tuple[Any, dict[str, Any]]:
    """Its text encoder is shown the image too; the real processor needs torchvision to be built, not to run."""
    parts = BUILDERS["qwen_image"]().components
    tokenizer, encoder = parts["tokenizer"], parts["text_encoder"]
    pad, video = "<|image_pad|>", "<|video_pad|>"
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", pad, video]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    encoder.resize_token_embeddings(len(tokenizer))
    encoder.config.image_token_id, encoder.config.video_token_id = tokenizer.convert_tokens_to_ids([pad, video])
    processor = object.__new__(Qwen2_5_VLProcessor)
    processor.image_processor = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=56 * 56)
    processor.tokenizer, processor.video_processor, processor.chat_template = tokenizer, None, None
    processor.image_token, processor.video_token = pad, video
    processor.image_token_id, processor.video_token_id = encoder.config.image_token_id, encoder.config.video_token_id
    return QwenImageEditPipeline(**parts, processor=processor), {}


@pytest.fixture(autouse=True)
def _small_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen's pipeline makes every image that it is given as large as 1024 x 1024."""
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: (80, 64, None))


CASES = [
    (kontext, [(80, 64)]),
    (qwen_edit, [(80, 64)]),
    (flux2, [(80, 64)]),
    (flux2, [(80, 64), (64, 112)]),
    (klein, [(64, 64)]),
]


@pytest.mark.parametrize(("build", "sizes"), CASES)
def test_the_same_images_and_every_image_s_own_tokens(
    build: Callable[[], tuple[Any, dict[str, Any]]], sizes: list[tuple[int, int]], image: Make
) -> None:
    with quiet():
        pipe, options = build()
        pipe.set_progress_bar_config(disable=True)
        images = [image(*size, seed=seed) for seed, size in enumerate(sizes)]
        given = images[0] if len(images) == 1 else images
        plain = make(pipe, given, **options)
        with trace(pipe) as alone:
            assert torch.equal(make(pipe, given, **options), plain)
        looked = {}
        blocks = [
            "transformer_blocks.1",
            "transformer_blocks.0" if build is qwen_edit else "single_transformer_blocks.0",
        ]
        for block in blocks:
            looked[block] = Looked(pipe.transformer.get_submodule(block).attn)
        with looked[blocks[0]], looked[blocks[1]], trace(pipe, keep=["heads", "references"], layers=blocks) as tr:
            assert torch.equal(make(pipe, given, **options), plain)
    assert np.array_equal(tr.map("cat"), alone.map("cat"))
    assert [(part.image.width, part.image.height) for part in tr.references] == sizes
    for part, source in zip(tr.references, images, strict=True):
        assert part.image == source
    cells = pipe.vae_scale_factor * 2
    grids = [(64 // cells, 96 // cells), *((height // cells, width // cells) for width, height in sizes)]
    for block in blocks:
        matrices = [torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, -1) for q, k in looked[block].calls]
        attention = torch.stack(matrices).mean(0)
        start = attention.shape[1] - sum(height * width for height, width in grids)
        for part, (height, width) in zip((tr, *tr.references), grids, strict=True):
            rows = attention[:, start : start + height * width]
            start += height * width
            columns = part.attention.word_indices[part.words()[0]]
            for head in range(2):
                expected = rows[head][:, list(columns)].mean(1).reshape(height, width)
                np.testing.assert_allclose(part.layer_map("cat", block, head), expected, rtol=1e-3, atol=1e-8)


def test_the_words_of_a_prompt_that_is_encoded_with_an_image(image: Make) -> None:
    with quiet():
        pipe, _ = qwen_edit()
        pipe.set_progress_bar_config(disable=True)
        with trace(pipe, keep="negative") as tr:
            make(pipe, image(80, 64), negative_prompt="an ugly dog", true_cfg_scale=3.0)
        inner = pipe.processor.tokenizer
        cat, dog = (pipe.encode_prompt(f"a {name} on grass", image(80, 64))[0][0] for name in ("cat", "dog"))
    assert inner is pipe.tokenizer
    # What comes before a word does not know of it.
    differs = (cat != dog).any(-1).nonzero().flatten().tolist()
    assert tr.attention.word_indices[tr.words()[0]][0] == differs[0]
    assert [str(word) for word in tr.words()] == ["cat", "on", "grass"]
    assert [str(word) for word in tr.negative.words()] == ["ugly", "dog"]


def test_a_pixel_looks_at_the_image_s_own_patches(image: Make) -> None:
    with quiet():
        pipe, options = kontext()
        pipe.set_progress_bar_config(disable=True)
        with trace(pipe, keep="references") as tr:
            make(pipe, image(80, 64), **options)
    for part, grid in ((tr, tr.attention.grid), (tr.references[0], tr.references[0].attention.grid)):
        assert part.at(40, 30).looks.shape == grid
        assert part.segment(["cat", "grass"]).labels.shape == (part.image.height, part.image.width)


def test_references_are_kept_if_asked_and_guidance_takes_none(image: Make) -> None:
    with quiet():
        pipe, options = kontext()
        pipe.set_progress_bar_config(disable=True)
        with trace(pipe) as tr:
            make(pipe, image(80, 64), **options)
        with pytest.raises(GocaError, match='keep="references"'):
            _ = tr.references
        with trace(pipe, keep="references") as tr:
            make(pipe, None, **options)
        assert tr.references == ()
        with pytest.raises(GocaError, match="their regions cannot be told apart"), guide(pipe):
            make(pipe, image(80, 64), negative_prompt="a dog", true_cfg_scale=3.0, **options)


def test_a_negative_prompt_beside_a_reference(image: Make) -> None:
    with quiet():
        pipe, options = kontext()
        pipe.set_progress_bar_config(disable=True)
        with trace(pipe, recipe=RAW, keep=["negative", "references"]) as tr:
            make(pipe, image(80, 64), negative_prompt="an ugly dog", true_cfg_scale=3.0, **options)
    assert [str(word) for word in tr.negative.words()] == ["ugly", "dog"]
    assert len(tr.negative.steps) == len(tr.references[0].steps) == len(tr.steps) == 2


def test_the_sizes_of_images_beside_are_told_by_the_denoiser_s_inputs() -> None:
    ids = torch.cartesian_prod(torch.tensor([0]), torch.arange(2), torch.arange(3))
    beside = [
        torch.cartesian_prod(torch.tensor([number]), torch.arange(5, 5 + height), torch.arange(width))
        for number, height, width in ((10, 4, 1), (20, 1, 7))
    ]
    together = torch.cat([ids, *beside])
    expected = ((8, 2), (2, 14))
    assert references_of({"img_ids": together}, 6) == references_of({"img_ids": together[None]}, 6) == expected
    assert references_of({"img_shapes": [[(1, 2, 3), (1, 4, 1), (1, 1, 7)]] * 2}, 6) == expected
    assert references_of({"img_shapes": [(1, 2, 3)]}, 6) == references_of({}, 6) == ()
    with quiet():
        backbone = Backbone(BUILDERS["flux"]())
    with pytest.raises(GocaError, match="a reference image of unknown size"):
        layout_of(backbone, (64, 96), None, torch.zeros(1, 1000, 16), torch.zeros(1), {"img_ids": together})
