"""Every family traced while its stock pipeline generates: the same images, and the prompts' own attention."""

import inspect
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from torch import Tensor

from goca import trace
from goca.diffusion.backbone import Backbone
from goca.diffusion.denoiser_call import DenoiserCall
from goca.diffusion.loading import quiet
from goca.diffusion.session import GenerationSession, check_generation
from goca.testing.tiny import BUILDERS

PROMPTS = ["a cat on grass", "a dog"]
NEGATIVE = ["an ugly cat, grass and more of it", "bad"]
# What turns guidance off, if not 1; a distilled model takes the scale as input, and has to be given the same.
UNGUIDED = {"z_image": 0.0, "flux": 3.0, "flux2": 3.0}


@pytest.fixture(params=BUILDERS)
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "kolors":
        pytest.importorskip("sentencepiece")
    return str(request.param)


def make(pipeline: Any, **options: Any) -> Tensor:
    """The images of two prompts after two steps, guided away from two others where the pipeline can be."""
    parameters = inspect.signature(pipeline.__call__).parameters
    arguments = {
        "height": 64,
        "width": 96,
        "num_inference_steps": 2,
        "num_frames": 1,
        "negative_prompt": list(NEGATIVE),
        "guidance_scale": 3.0,
        "true_cfg_scale": 3.0,
        "use_resolution_binning": False,
        "enable_prompt_rewrite": False,
        "output_type": "np",
        # One for each image, so that an image does not depend on what is made beside it.
        "generator": [torch.Generator().manual_seed(seed) for seed in range(2)],
        **options,
    }
    accepted = {key: value for key, value in arguments.items() if key in parameters}
    return torch.as_tensor(pipeline(**{"prompt": list(PROMPTS), **accepted})[0])


def test_the_same_images_and_the_prompts_own_attention(name: str) -> None:
    with quiet():
        pipeline = BUILDERS[name]()
        pipeline.set_progress_bar_config(disable=True)
        plain = make(pipeline)
        with trace(pipeline, steps=[0]) as tr:
            assert torch.equal(make(pipeline), plain)
        # The first step is shown the same noise with and without guidance.
        with trace(pipeline, steps=[0]) as unguided:
            scale = UNGUIDED.get(name, 1.0)
            make(pipeline, guidance_scale=scale, true_cfg_scale=1.0, negative_prompt=None)
    assert [image.prompt for image in tr.images] == PROMPTS
    assert [list(map(str, image.words())) for image in tr.images] == [["cat", "on", "grass"], ["dog"]]
    shown = np.asarray(tr[1].image)
    np.testing.assert_allclose(shown / 255, plain[1].reshape(shown.shape), atol=0.51 / 255)
    for image, alone in zip(tr.images, unguided.images, strict=True):
        torch.testing.assert_close(image.attention.total, alone.attention.total, rtol=1e-3, atol=1e-5)
        assert float(image.attention.total.std()) > 0
        (step,) = image.steps
        assert step.step == 0
        assert sum(step.layers.values()) == pytest.approx(1)
        assert all(sum(heads) == pytest.approx(1, abs=1e-4) for heads in step.heads.values())


class Branches:
    """Remembers {(branch, image, prompt)} of all rows, and takes no attention."""

    def __init__(self) -> None:
        self.rows: set[tuple[str, int | None, str]] = set()

    def begin(self, call: DenoiserCall) -> None:
        assert call.step == call.evaluation in (0, 1)
        self.rows |= {(row.branch, row.image, row.prompt.prompt if row.prompt else "") for row in call.rows}

    def end(self, call: DenoiserCall, noise_pred: Tensor) -> None:
        assert len(noise_pred) == len(call.rows)


def test_both_branches_of_every_family(name: str) -> None:
    branches = Branches()
    with quiet():
        pipeline = BUILDERS[name]()
        pipeline.set_progress_bar_config(disable=True)
        if name == "flux2_klein":
            pipeline.register_to_config(is_distilled=False)
        with GenerationSession(Backbone(pipeline, check=check_generation), [branches]):
            make(pipeline)
    negative = {"flux2": [], "flux2_klein": ["", ""]}.get(name, NEGATIVE)  # klein takes no negative prompt
    cond = {("cond", image, prompt) for image, prompt in enumerate(PROMPTS)}
    assert branches.rows == cond | {("uncond", image, prompt) for image, prompt in enumerate(negative)}


@pytest.mark.parametrize("name", ["lumina2", "z_image", "qwen_image"])
def test_a_shorter_prompt_in_a_batch_is_read_as_alone(name: str) -> None:
    with quiet():
        pipeline = BUILDERS[name]()
        pipeline.set_progress_bar_config(disable=True)
        with trace(pipeline, steps=[0]) as tr:
            make(pipeline)
        with trace(pipeline, steps=[0]) as alone:
            seed = [torch.Generator().manual_seed(1)]
            make(pipeline, prompt=PROMPTS[1:], negative_prompt=NEGATIVE[1:], generator=seed)
    torch.testing.assert_close(tr[1].attention.total, alone[0].attention.total, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_negative_prompt_may_be_another_image_s_prompt(name: str) -> None:
    with quiet():
        pipeline = BUILDERS[name]()
        pipeline.set_progress_bar_config(disable=True)
        plain = make(pipeline, negative_prompt=[PROMPTS[1], "bad"])
        with trace(pipeline) as tr:
            assert torch.equal(make(pipeline, negative_prompt=[PROMPTS[1], "bad"]), plain)
        with trace(pipeline) as swapped:
            make(pipeline, negative_prompt=PROMPTS[::-1])
    for traced in (tr, swapped):
        assert [image.prompt for image in traced.images] == PROMPTS
        assert [step.step for step in traced.steps] == [0, 1]


@pytest.mark.parametrize("name", ["pixart_sigma", "flux"])
def test_two_images_of_each_of_two_prompts(name: str) -> None:
    with quiet():
        pipeline = BUILDERS[name]()
        pipeline.set_progress_bar_config(disable=True)
        seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
        with trace(pipeline, steps=[0]) as tr:
            generated = make(pipeline, num_images_per_prompt=2, generator=seeds)
        with trace(pipeline, steps=[0]) as alone:
            seed = [torch.Generator().manual_seed(3)]
            make(pipeline, prompt=PROMPTS[1:], negative_prompt=NEGATIVE[1:], generator=seed)
    assert [traced_image.prompt for traced_image in tr.images] == [PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    for image, expected in zip(tr.images, generated, strict=True):
        np.testing.assert_allclose(np.asarray(image.image) / 255, expected, atol=0.51 / 255)
    torch.testing.assert_close(tr[3].attention.total, alone[0].attention.total, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(tr[2].attention.total, alone[0].attention.total, rtol=1e-3, atol=1e-5)


def test_the_second_denoiser_of_a_pipeline_is_traced_too() -> None:
    with quiet():
        wan = BUILDERS["wan"]()
        parts = {**wan.components, "transformer_2": deepcopy(wan.transformer)}
        two = WanPipeline(**parts, boundary_ratio=0.7)
        for pipeline in (wan, two):
            pipeline.set_progress_bar_config(disable=True)
        plain = make(two, num_inference_steps=4)
        with trace(two) as tr:
            assert torch.equal(make(two, num_inference_steps=4), plain)
        with trace(wan) as alone:
            make(wan, num_inference_steps=4)
        # The second one takes over where there is little noise.
        assert float(two.scheduler.timesteps[-1]) < 700 < float(two.scheduler.timesteps[0])
        with trace(two, steps=[3]) as last:
            make(two, num_inference_steps=4)
    assert [step.step for step in tr.steps] == [0, 1, 2, 3]
    assert tr.steps == alone.steps
    for image, expected in zip(tr.images, alone.images, strict=True):
        assert torch.equal(image.attention.total, expected.attention.total)
    assert last.steps == tr.steps[3:]
