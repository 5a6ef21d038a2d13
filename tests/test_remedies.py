"""Each message's advice can be followed on the pipeline that it was printed for, and segmentation works then."""

import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.pipelines import auto_pipeline
from PIL import Image

from goca.diffusion.attention_modules import attention_modules
from goca.diffusion.backbone import Backbone
from goca.errors import GocaError
from goca.recipe import GOCA
from goca.segmenter import Segmenter
from goca.testing.tiny import BUILDERS
from goca.tracing import trace

Make = Callable[..., Image.Image]
pytestmark = pytest.mark.slow
DISPATCHED = [
    *("wan", "flux", "flux_schnell", "chroma", "flux2", "flux2_klein", "qwen_image", "z_image", "bria", "ovis"),
    *("longcat", "krea2"),
]
"""Those whose processors run on whatever backend of diffusers is set."""


@pytest.fixture(autouse=True)
def own_backend() -> Any:
    """`set_attention_backend` sets it for every model of the process as well."""
    yield
    _AttentionBackendRegistry.set_active_backend("native")


def scores(pipeline: Any, image: Make) -> np.ndarray:
    return Segmenter.from_pipeline(pipeline, GOCA, size=64)(image(), classes=["cat", "grass"]).scores.grid


@cache
def untouched(name: str, image: Make) -> np.ndarray:
    return scores(BUILDERS[name](), image)


def refusal(pipeline: Any, image: Make) -> str:
    with pytest.raises(GocaError) as caught:
        scores(pipeline, image)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def follow(message: str, pipeline: Any) -> Any:
    """Do what a message says; the pipeline that it gives."""
    if kind := re.search(r"(\w+Pipeline)(?:\(\*\*pipe\.components\)|\.from_pipe\(pipe\))", message):
        return getattr(diffusers, kind[1])(**pipeline.components)
    call = re.search(r"pipe\.[\w.]+\([^()]*(\(\))?\)", message)
    assert call, message
    exec(call[0], {"pipe": pipeline, "AttnProcessor2_0": AttnProcessor2_0})
    return pipeline


@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, "model") for name in BUILDERS), ("flux", "block"), ("cosmos2", "block"), ("sd15", "block")],
)
def test_a_kernel_that_is_not_pytorch_s(name: str, how: str, image: Make) -> None:
    expected, pipeline = untouched(name, image), BUILDERS[name]()
    if how == "model":
        Backbone(pipeline).denoiser.set_attention_backend("flex")
    with attention_backend("flex" if how == "block" else "native"):
        if name in DISPATCHED or (name, how) == ("cosmos2", "block"):
            message = refusal(pipeline, image)
            assert message.endswith('pipe.transformer.set_attention_backend("native")')
            follow(message, pipeline)
        np.testing.assert_array_equal(scores(pipeline, image), expected)


class Foreign:
    """A processor of somebody else's, whose attention PyTorch's modes do not see."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return self.processor(*args, **kwargs)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_processor_that_the_user_set(name: str, image: Make) -> None:
    expected, pipeline = untouched(name, image), BUILDERS[name]()
    for attention in attention_modules(Backbone(pipeline).denoiser):
        if "Linear" not in attention.processor:
            attention.module.set_processor(Foreign(attention.module.processor))
    message = refusal(pipeline, image)
    assert "without scaled_dot_product_attention (processor Foreign): " in message
    if Backbone(pipeline).family.component == "unet":
        follow(message, pipeline)
    else:  # what it came with is not the same for all of its modules
        assert message.endswith("load the pipeline again and leave its attention as it is")
        pipeline = BUILDERS[name]()
    np.testing.assert_array_equal(scores(pipeline, image), expected)


def others(pipeline: Any, component: str) -> list[Any]:
    """The same parts as each of diffusers' pipelines that start from an image, or guide by perturbed attention."""
    mappings = ("TEXT2IMAGE", "IMAGE2IMAGE", "INPAINT")
    listed = [kind for name in mappings for kind in getattr(auto_pipeline, f"AUTO_{name}_PIPELINES_MAPPING").values()]
    listed += [diffusers.StableDiffusionAttendAndExcitePipeline]
    wanted = [kind for kind in listed if re.search("PAG|Img2Img|Inpaint|Attend", kind.__name__)]
    # Those want another UNet, or another text encoder, than Stable Diffusion's.
    wanted = [kind for kind in wanted if not kind.__name__.startswith(("Kolors", "LatentConsistency"))]
    made = []
    for kind in wanted:
        parts = inspect.signature(kind.__init__).parameters
        required = {name for name, part in parts.items() if part.default is part.empty} - {"self"}
        denoiser = type(getattr(pipeline, component)).__name__
        if required <= pipeline.components.keys() and denoiser in str(parts.get(component)):
            made.append(kind(**{name: part for name, part in pipeline.components.items() if name in parts}))
    return made


@pytest.mark.parametrize(
    ("name", "count"),
    [("sd15", 6), ("sdxl", 5), ("pixart_sigma", 1), ("flux", 4), ("sd3", 4), ("qwen_image", 2), ("z_image", 2)],
)
def test_a_pipeline_that_wants_more_than_a_prompt(name: str, count: int, image: Make) -> None:
    plain = BUILDERS[name]()
    expected = scores(plain, image)
    pipelines = [
        pipe for pipe in others(plain, Backbone(plain).family.component) if "Kolors" not in type(pipe).__name__
    ]
    for pipeline in pipelines:
        message = refusal(pipeline, image)
        assert message.startswith(f"{type(pipeline).__name__} is not a plain text-to-image pipeline")
        np.testing.assert_array_equal(scores(follow(message, pipeline), image), expected)
    assert len(pipelines) >= count


@pytest.mark.parametrize("name", BUILDERS)
def test_a_scheduler_of_another_kind(name: str, image: Make) -> None:
    pipeline = BUILDERS[name]()
    flow, scheduler = Backbone(pipeline).family.flow, pipeline.scheduler
    pipeline.scheduler = diffusers.EDMEulerScheduler() if flow else diffusers.FlowMatchEulerDiscreteScheduler()
    named = re.search(r"set pipe\.scheduler to a (\w+) with the checkpoint's own", refusal(pipeline, image))
    assert named
    kind = getattr(diffusers, named[1])
    pipeline.scheduler = scheduler if isinstance(scheduler, kind) else kind.from_config(scheduler.config)
    np.testing.assert_allclose(scores(pipeline, image), untouched(name, image), atol=1e-3)


def test_a_processor_that_the_pipeline_sets_itself(sd15: Any, image: Make) -> None:
    """Self-attention guidance keeps the maps of the middle, by a processor that it sets in each call."""
    expected = scores(sd15, image)
    guided = diffusers.StableDiffusionSAGPipeline(**sd15.components)
    guided.set_progress_bar_config(disable=True)
    before = [attention.module.processor for attention in attention_modules(guided.unet)]
    np.testing.assert_array_equal(scores(guided, image), expected)
    assert [attention.module.processor for attention in attention_modules(guided.unet)] == before
    options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2}
    with (
        trace(guided),
        pytest.raises(
            GocaError, match=r"sets its own attention processors in each call \(CrossAttnStoreProcessor\)"
        ) as caught,
    ):
        guided("a cat", **options)
    plain = follow(str(caught.value), guided)
    plain.set_progress_bar_config(disable=True)
    with trace(plain) as traced:
        plain("a cat", **options)
    assert len(traced.steps) == 2


def test_an_image_adapter(image: Make) -> None:
    sd15 = BUILDERS["sd15"]()
    expected = scores(sd15, image)
    sd15.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    assert "pipe.unload_ip_adapter()" in refusal(sd15, image)
    follow(refusal(sd15, image), sd15)
    np.testing.assert_array_equal(scores(sd15, image), expected)
    # One that was trained with images has no adapter to take off.
    sd15.unet.register_to_config(encoder_hid_dim_type="image_proj")
    assert "unload_ip_adapter" not in refusal(sd15, image)


@pytest.mark.parametrize("name", ["sd15", "hunyuan_dit", "sana", "wan", "flux2", "sd3", "qwen_image"])
def test_fused_projections_give_the_same(name: str, image: Make) -> None:
    pipeline = BUILDERS[name]()
    denoiser = Backbone(pipeline).denoiser
    denoiser.fuse_qkv_projections()
    np.testing.assert_allclose(scores(pipeline, image), untouched(name, image), atol=1e-3)
