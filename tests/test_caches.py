"""Denoisers that skip blocks or keep state between passes: segmented past the cache, and not traced under one."""

import re
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import hooks
from PIL import Image

from goca.errors import GocaError
from goca.recipe import GOCA
from goca.segmenter import Segmenter
from goca.testing.tiny import BUILDERS
from goca.tracing import trace

Make = Callable[..., Image.Image]
ATTENTION: dict[str, Any] = {
    "spatial_attention_block_skip_range": 2,
    "spatial_attention_timestep_skip_range": (-1, 1001),
    "spatial_attention_block_identifiers": ("transformer_blocks",),
    "current_timestep_callback": lambda: 500,
}
CACHES: dict[str, Any] = {
    "PyramidAttentionBroadcast": hooks.PyramidAttentionBroadcastConfig(**ATTENTION),
    "FirstBlockCache": hooks.FirstBlockCacheConfig(threshold=1e9),
    "MagCache": hooks.MagCacheConfig(num_inference_steps=4, threshold=1e9, retention_ratio=0.0, mag_ratios=[1.0] * 4),
    "TaylorSeerCache": hooks.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
    "FasterCache": hooks.FasterCacheConfig(**ATTENTION, is_guidance_distilled=True, tensor_format="BCHW"),
}
# Caches that the oldest diffusers we allow does not have.
CACHES |= {
    name: getattr(hooks, f"{name}Config")() for name in ("SeaCache", "TextKVCache") if hasattr(hooks, f"{name}Config")
}
APPLY: dict[str, Callable[..., None]] = {
    "FBCHeadBlockHook": lambda denoiser: hooks.apply_first_block_cache(denoiser, CACHES["FirstBlockCache"]),
    "MagCacheHeadHook": lambda denoiser: hooks.apply_mag_cache(denoiser, CACHES["MagCache"]),
    "FeedForwardSkipHook": lambda denoiser: hooks.apply_layer_skip(denoiser, hooks.LayerSkipConfig(indices=[1])),
    "PyramidAttentionBroadcastHook": lambda denoiser: hooks.apply_pyramid_attention_broadcast(
        denoiser, CACHES["PyramidAttentionBroadcast"]
    ),
}


def scores(pipeline: Any, image: Image.Image) -> np.ndarray:
    return Segmenter.from_pipeline(pipeline, GOCA, size=64)(image, classes=["cat", "grass"]).scores.grid


def generate(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    size = {"height": 64, "width": 64, "num_inference_steps": 4}
    return np.array(pipeline("a cat", generator=generator, **size, **options).images[0])


def follow(error: GocaError, pipeline: Any) -> None:
    """Do what a message says."""
    remedy = re.search(r"switch it off, (.*)$", str(error))
    assert remedy
    exec(remedy[1], {"pipe": pipeline, "diffusers": diffusers})


@pytest.mark.parametrize("name", ["flux", "qwen_image", "cogview4"])
@pytest.mark.parametrize("cache", CACHES)
def test_a_cache_steps_aside_with_its_state(cache: str, name: str, image: Make) -> None:
    expected = scores(BUILDERS[name](), image())
    pipeline = BUILDERS[name]()
    pipeline.transformer.enable_cache(CACHES[cache])
    broken = cache == "FasterCache"  # wants a model whose denoiser is called with positional arguments
    before = None if broken else generate(pipeline)
    np.testing.assert_array_equal(scores(pipeline, image()), expected)
    if before is not None:
        np.testing.assert_array_equal(generate(pipeline), before)


@pytest.mark.parametrize("cache", ["FirstBlockCache", "PyramidAttentionBroadcast", "TaylorSeerCache"])
def test_a_generation_goes_on_under_its_cache_after_a_segmentation_in_its_midst(cache: str, image: Make) -> None:
    flux = BUILDERS["flux"]()
    plain, expected = generate(flux), scores(flux, image())
    flux.transformer.enable_cache(CACHES[cache])
    before, seen = generate(flux), list[np.ndarray]()

    def look(pipeline: Any, step: int, timestep: Any, given: Any) -> Any:
        if step == 1:
            seen.append(scores(pipeline, image()))
        return given

    np.testing.assert_array_equal(generate(flux, callback_on_step_end=look), before)
    np.testing.assert_array_equal(seen[0], expected)
    assert not np.array_equal(before, plain)


@pytest.mark.parametrize("cache", [name for name in CACHES if name != "TextKVCache"])
def test_a_trace_under_a_cache_is_refused_before_it_begins_with_what_to_do(cache: str) -> None:
    flux = BUILDERS["flux"]()
    flux.transformer.enable_cache(CACHES[cache])
    with pytest.raises(GocaError, match=f"^{cache} skips") as caught:
        trace(flux)
    follow(caught.value, flux)
    with trace(flux) as traced:
        generate(flux)
    assert len(traced.steps) == 4


@pytest.mark.parametrize("hook", APPLY)
def test_hooks_that_no_configuration_tells_of(hook: str, image: Make) -> None:
    expected = scores(BUILDERS["cogview4"](), image())
    pipeline = BUILDERS["cogview4"]()
    APPLY[hook](pipeline.transformer)
    np.testing.assert_array_equal(scores(pipeline, image()), expected)
    with pytest.raises(GocaError, match=f"^{hook} skips") as caught:
        trace(pipeline)
    follow(caught.value, pipeline)
    with trace(pipeline) as traced:
        generate(pipeline)
    assert len(traced.steps) == 4


def test_a_cache_that_is_enabled_inside_the_block() -> None:
    flux = BUILDERS["flux"]()
    steps: list[int] = []
    with trace(flux):
        flux.transformer.enable_cache(CACHES["FirstBlockCache"])
        with pytest.raises(GocaError, match=r"FirstBlockCache .* pipe\.transformer\.disable_cache\(\)"):
            generate(flux, callback_on_step_end=lambda pipe, step, at, given: steps.append(step) or given)
    assert not steps


def test_offloading_and_casting_are_no_caches(image: Make) -> None:
    expected = scores(BUILDERS["flux"](), image())
    flux = BUILDERS["flux"]()
    cpu = torch.device("cpu")
    hooks.apply_group_offloading(flux.transformer, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    flux.transformer.enable_cache(CACHES["FirstBlockCache"])
    np.testing.assert_allclose(scores(flux, image()), expected, atol=0.02)
    flux.transformer.disable_cache()
    trace(flux)


class DeepCacheLikeHelper:
    """Gives blocks the output that they had in a pass before, as DeepCache does."""

    def __init__(self, unet: Any) -> None:
        self.block, self.kept = unet.mid_block, list[Any]()

    def enable(self) -> None:
        forward = self.block.forward

        def wrapped_forward(*args: Any, **kwargs: Any) -> Any:
            if not self.kept:
                self.kept.append(forward(*args, **kwargs))
            return self.kept[0]

        self.block.forward = wrapped_forward


def test_a_cache_of_another_library_is_named(sd15: Any, image: Make) -> None:
    segmenter = Segmenter.from_pipeline(sd15, GOCA, size=64)
    DeepCacheLikeHelper(sd15.unet).enable()
    with pytest.raises(GocaError, match=r"a cache, .*DeepCacheLikeHelper.*, runs pipe\.unet\.mid_block"):
        segmenter(image(), classes=["cat", "grass"])
    with pytest.raises(GocaError, match="DeepCacheLikeHelper"):
        trace(sd15)
