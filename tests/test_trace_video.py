"""Videos: their frames' maps, which attention keeps one under the other."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from looked import Looked
from PIL import Image
from torch import Tensor

from goca import GOCA, GocaError, guide, trace
from goca.diffusion.loading import quiet
from goca.maths.frames import apart, together
from goca.maths.rescale import TokenMass, blur
from goca.testing.tiny import BUILDERS

RAW = replace(GOCA, rescale=(), order=0)
BLOCK = "blocks.1"


@pytest.fixture(scope="module")
def wan() -> Any:
    with quiet():
        pipeline = BUILDERS["wan"]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make(pipe: Any, **options: Any) -> Tensor:
    given = {"prompt": "a cat on grass", "height": 64, "width": 96, "num_inference_steps": 2, "num_frames": 9}
    given |= {"guidance_scale": 1.0, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    return torch.as_tensor(pipe(**{**given, **options})[0])


def test_a_video_s_frames_have_maps(wan: Any, tmp_path: Any) -> None:
    with quiet():
        plain = make(wan)
        looked = Looked(wan.transformer.get_submodule(BLOCK).attn2)
        # As if of that block alone.
        recipe = replace(RAW, cross=(BLOCK,), reference=BLOCK, heads="mean")
        with looked, trace(wan, recipe=recipe, keep=["heads", "steps"]) as tr:
            assert torch.equal(make(wan), plain)
    latent_frames = (9 - 1) // wan.vae_scale_factor_temporal + 1
    cells = 2 * wan.vae_scale_factor_spatial
    shape = (latent_frames, 64 // cells, 96 // cells)
    attention = torch.stack([torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, -1) for q, k in looked.calls])
    columns = attention[..., list(tr.attention.word_indices[tr.words()[2]])].mean(-1)
    for head in range(attention.shape[1]):
        expected = columns[:, head].mean(0).reshape(shape)
        np.testing.assert_allclose(tr.layer_map("grass", BLOCK, head), expected, rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(tr.map("grass"), columns.mean((0, 1)).reshape(shape), rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(tr.map("grass", step=1), columns[1].mean(0).reshape(shape), rtol=1e-3, atol=1e-8)
    animation = tr.animation("grass")
    assert len(animation.frames) == latent_frames > 1
    with Image.open(animation.save(tmp_path / "grass.webp")) as image:
        assert (image.n_frames, image.size) == (latent_frames, (96, 64))
    # The frames shown are spread over the video: the first, the last, and what is between.
    first, last = (np.asarray(tr.attention.decoded[number]) / 255 for number in (0, -1))
    np.testing.assert_allclose(first, plain[0, 0], atol=0.51 / 255)
    np.testing.assert_allclose(last, plain[0, -1], atol=0.51 / 255)
    assert np.array_equal(tr.heatmap("grass"), animation.frames[latent_frames // 2])
    assert len(tr.save(tmp_path)) == 2 + len(tr.words())


def test_a_video_is_rescaled_as_one(wan: Any) -> None:
    with quiet(), trace(wan) as tr:
        make(wan, negative_prompt="an ugly dog", guidance_scale=3.0)
    maps = tr.map("grass")
    assert maps.max() <= 1
    assert len({float(frame.max()) for frame in maps}) == len(maps)


@pytest.mark.parametrize("height", [1, 2, 5])
def test_frames_are_blurred_apart(height: int) -> None:
    maps = torch.rand(2, 3, height, 7, generator=torch.Generator().manual_seed(0))
    mass = TokenMass(maps[:, 0], maps[0, 0], maps[0, 0])
    tall = blur(apart(maps.flatten(1, 2), 3), mass)
    for number in range(2):
        expected = torch.stack([blur(maps[number, None, frame], mass)[0] for frame in range(3)])
        if height > 2:  # narrower maps are continued by their last row
            torch.testing.assert_close(together(tall[number], 3), expected)
        assert together(tall[number], 3).shape == (3, height, 7)


def test_what_a_video_has_not(wan: Any) -> None:
    with quiet(), trace(wan) as tr:
        make(wan)
    for ask in (lambda: tr.at(3, 3), lambda: tr.segment(["cat"]), lambda: tr.overlay("cat")):
        with pytest.raises(GocaError, match=r"a video only has maps and animations: .*num_frames=1"):
            ask()
    with quiet(), pytest.raises(GocaError, match=r"a video of . latent frames cannot be guided"), guide(wan):
        make(wan, negative_prompt="a dog", guidance_scale=3.0)
