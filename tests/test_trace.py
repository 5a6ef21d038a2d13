"""Trace: what is collected while a pipeline generates, and what can be asked of it."""

import inspect
import json
import pickle
import re
import threading
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    DDIMParallelScheduler,
    DDIMScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    HeunDiscreteScheduler,
    StableDiffusionAttendAndExcitePipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionParadigmsPipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
    UNet2DConditionModel,
)
from jaxtyping import config
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.overrides import TorchFunctionMode
from yardsticks import newcomers

from goca import GOCA, GocaError, Recipe, Segmenter, trace
from goca.diffusion.loading import quiet
from goca.diffusion.timesteps import add_noise
from goca.testing.tiny import BUILDERS, sd15
from goca.tracing import Trace, TracedImage

Make = Callable[..., Image.Image]
PROMPT = "a cat on grass, a cat"
SLOW = ("pixart_sigma", "flux")


@pytest.fixture(scope="module")
def pipe() -> Any:
    """One for all tests here: every one of them has to leave it as it was."""
    pipeline = sd15()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make(pipeline: Any, prompt: Any = PROMPT, **options: Any) -> Tensor:
    asked = {"height": 32, "width": 48, "num_inference_steps": 3, "output_type": "np", **options}
    given = {name: value for name, value in asked.items() if value is not None}
    return torch.as_tensor(pipeline(prompt=prompt, generator=torch.Generator().manual_seed(0), **given)[0])


@pytest.fixture(scope="module")
def traced(pipe: Any) -> Trace:
    with trace(pipe) as tr:
        make(pipe)
    return tr


def maps_of(image: Trace | TracedImage) -> np.ndarray:
    """The maps of all words of the prompt, one behind the other."""
    return np.stack([image.map(word) for word in image.words()])


RAW = replace(GOCA, rescale=(), order=0)
"""Maps that are what the attention is, averaged over the steps: nothing is divided, stretched or refined."""


# --- what is collected


@pytest.mark.parametrize(("recipe", "atol"), [(RAW, 1e-6), (GOCA, 1e-2)], ids=["raw", "goca"])
def test_one_step_is_what_a_segmenter_sees_in_that_pass(pipe: Any, image: Make, recipe: Recipe, atol: float) -> None:
    image = image(48, 32)
    pipe.scheduler.set_timesteps(3)
    timestep = int(pipe.scheduler.timesteps[0])
    segmenter = Segmenter.from_pipeline(pipe, recipe=recipe, size=39, timestep=timestep, seed=7)
    noisy = add_noise(pipe.scheduler, segmenter.backbone.latents([image], (32, 48)), timestep, seed=7)
    expected = segmenter(image, classes=["cat", "grass"], caption=PROMPT, background=0.5)
    with trace(pipe, recipe=recipe, steps=[0]) as tr:
        make(pipe, guidance_scale=1.0, latents=noisy)
    result = tr.segment(["cat", "grass"], background=0.5)
    np.testing.assert_allclose(result.scores.grid, expected.scores.grid, rtol=1e-4, atol=atol)
    assert result.plan.timestep == expected.plan.timestep == (timestep,)
    assert tr.steps[0].timestep == timestep


def test_steps_are_averaged(pipe: Any) -> None:
    def ask(steps: list[int]) -> Trace:
        with trace(pipe, recipe=RAW, steps=steps) as tr:
            make(pipe)
        return tr

    together, parts = ask([0, 1, 2]), [ask([number]) for number in range(3)]
    for number, part in enumerate(parts):
        assert [step.step for step in part.steps] == [number]
        assert part.steps[0] == together.steps[number]
    mean = sum(maps_of(part) for part in parts) / 3
    np.testing.assert_allclose(maps_of(together), mean, rtol=1e-4, atol=1e-7)
    assert not np.allclose(maps_of(together), maps_of(parts[2]), rtol=1e-3)


class Looked(TorchFunctionMode):
    """The queries and keys of every attention of some modules, for the last row of a batch alone."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []
        self.running = False
        for module in modules:
            module.register_forward_pre_hook(lambda module, args: setattr(self, "running", True))
            module.register_forward_hook(lambda module, args, output: setattr(self, "running", False))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention and self.running:
            self.calls.append((args[0][-1], args[1][-1]))
        return func(*args, **(kwargs or {}))


def test_the_self_attention_of_all_steps_refines() -> None:
    pipeline = sd15()
    pipeline.set_progress_bar_config(disable=True)
    grid: list[tuple[int, int]] = []
    fixed = torch.rand(2, 13 * 11, generator=torch.Generator().manual_seed(1)).reshape(2, 13, 11)

    def settle(maps: Tensor, token_mass: Any) -> Tensor:
        grid.append((maps.shape[1], maps.shape[2]))
        return interpolate(fixed[None], grid[-1], mode="bilinear")[0]

    recipe = replace(GOCA, rescale=(settle,), order=1)
    blocks = [
        pipeline.unet.get_submodule(block) for block in Segmenter.from_pipeline(pipeline, recipe=recipe).plan.refine
    ]
    looked = Looked([block.attn1 for block in blocks])
    with trace(pipeline, recipe=recipe, steps=[0, 1]) as tr, looked:
        make(pipeline, num_inference_steps=2, guidance_scale=1.0)
    found = tr.segment(["cat", "grass"]).scores.grid
    assert len(looked.calls) == len(tr.steps) * len(blocks) > 1
    # The tiny UNet refines at 16 x 24 cells, those of its latents. A pixel of the maps asks as the nearest cell does,
    # and what the cells show is resized bilinearly.
    cells = torch.eye(16 * 24, dtype=torch.float64).reshape(-1, 1, 16, 24)
    nearest, bilinear = (interpolate(cells, grid[0], mode=mode).flatten(1) for mode in ("nearest", "bilinear"))
    heads = [(query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) for query, key in looked.calls]
    mean = torch.stack(heads).double().mean((0, 1))
    refined = interpolate(fixed[None], grid[0], mode="bilinear")[0].double().flatten(1) @ bilinear.T @ mean.T @ nearest
    low, high = refined.amin(1, keepdim=True), refined.amax(1, keepdim=True)
    expected = ((refined - low) / (high - low)).reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_class_names_lose_the_spaces_around_them(traced: Trace) -> None:
    assert traced.segment([" cat ", "grass"]).classes == ("cat", "grass")


def test_a_range_of_steps(pipe: Any) -> None:
    with trace(pipe, steps=range(1, 9, 2)) as tr:
        make(pipe, num_inference_steps=5)
    assert [step.step for step in tr.steps] == [1, 3]
    assert tr.segment(["cat"]).plan.timestep == tuple(round(step.timestep) for step in tr.steps)


def test_both_passes_of_a_second_order_sampler_are_one_step(pipe: Any) -> None:
    before = pipe.scheduler
    pipe.scheduler = HeunDiscreteScheduler.from_config(before.config)
    try:
        plain = make(pipe)
        with trace(pipe, steps=[1, 2]) as tr:
            assert torch.equal(make(pipe), plain)
        timesteps = pipe.scheduler.timesteps.tolist()
    finally:
        pipe.scheduler = before
    # Three steps are five passes: the last has no second one.
    assert [(step.step, step.timestep) for step in tr.steps] == [
        (1, timesteps[2]),
        (1, timesteps[3]),
        (2, timesteps[4]),
    ]


@pytest.mark.parametrize("negative", [PROMPT, "a dog"])
def test_a_negative_prompt_is_not_read_even_if_it_is_the_prompt(pipe: Any, negative: str) -> None:
    with trace(pipe, recipe=RAW, steps=[0]) as tr:
        make(pipe, negative_prompt=negative)
    with trace(pipe, recipe=RAW, steps=[0]) as alone:
        make(pipe, guidance_scale=1.0)
    assert len(tr) == 1
    np.testing.assert_allclose(maps_of(tr), maps_of(alone), rtol=1e-4, atol=1e-6)


def test_guidance_in_two_calls_by_the_same_prompt_is_one_pass_a_step() -> None:
    with quiet():
        flux = BUILDERS["flux_schnell"]()
        flux.set_progress_bar_config(disable=True)
        with trace(flux) as tr:
            make(flux, negative_prompt=PROMPT, true_cfg_scale=2.0)
    assert [step.step for step in tr.steps] == [0, 1, 2]


def test_every_image_of_every_prompt_has_its_own(pipe: Any) -> None:
    prompts = [PROMPT, "a dog under the sky"]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(4)]
    with trace(pipe, recipe=RAW) as tr:
        generated = pipe(
            prompts, num_images_per_prompt=2, height=32, width=48, num_inference_steps=2, generator=seeds
        ).images
    assert [traced_image.prompt for traced_image in tr.images] == [PROMPT, PROMPT, prompts[1], prompts[1]]
    assert all(np.array_equal(one.image, expected) for one, expected in zip(tr.images, generated, strict=True))
    with trace(pipe, recipe=RAW) as alone:
        pipe(prompts[1], height=32, width=48, num_inference_steps=2, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(maps_of(tr[3]), maps_of(alone), rtol=1e-2, atol=1e-4)
    assert not np.allclose(maps_of(tr[2]), maps_of(alone), rtol=1e-2, atol=1e-4)


def test_a_second_call_adds_its_images(pipe: Any, traced: Trace) -> None:
    with trace(pipe) as tr:
        make(pipe, "a dog")
        make(pipe)
    assert [image.prompt for image in tr.images] == ["a dog", PROMPT]
    assert np.array_equal(maps_of(tr[1]), maps_of(traced))


@pytest.mark.parametrize("fails_before_latents", [False, True])
def test_a_call_that_fails_does_not_hide_the_next(
    pipe: Any, traced: Trace, monkeypatch: pytest.MonkeyPatch, fails_before_latents: bool
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ValueError("no generator")

    with trace(pipe) as tr:
        if fails_before_latents:
            monkeypatch.setattr(pipe.scheduler, "set_timesteps", fail)
        with pytest.raises(ValueError, match="generator"):
            pipe("a dog", height=32, width=48, num_inference_steps=3, generator=[torch.Generator()] * 2)
        monkeypatch.undo()
        # Were it the failed call's prompt that is read, it would be the negative one's.
        make(pipe, negative_prompt="a dog")
        make(pipe)
    assert [image.prompt for image in tr.images] == [PROMPT, PROMPT]
    assert np.array_equal(maps_of(tr[1]), maps_of(traced))
    assert [step.step for step in tr.steps] == [0, 1, 2]


def test_a_prompt_that_was_only_encoded_does_not_hide_the_next(pipe: Any, traced: Trace) -> None:
    with trace(pipe) as tr:
        pipe.encode_prompt("a dog under the sky", "cpu", 1, False)
        make(pipe)
        embedded, unwanted = pipe.encode_prompt(PROMPT, "cpu", 1, True)
        make(pipe, None, prompt_embeds=embedded, negative_prompt_embeds=unwanted)
    assert [image.prompt for image in tr.images] == [PROMPT, PROMPT]
    assert np.array_equal(maps_of(tr[0]), maps_of(traced))
    assert np.array_equal(maps_of(tr[1]), maps_of(traced))


def test_what_a_callback_encodes_does_not_end_the_generation(pipe: Any, traced: Trace) -> None:
    def look(pipeline: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipeline.encode_prompt("a dog", "cpu", 1, False)
        return given

    with trace(pipe) as tr:
        make(pipe, callback_on_step_end=look)
    assert len(tr) == 1
    assert np.array_equal(maps_of(tr[0]), maps_of(traced))


def test_why_nothing_was_traced(pipe: Any) -> None:
    embedded, unwanted = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)

    def by_hand() -> None:
        known, _ = pipe.encode_prompt(PROMPT, "cpu", 1, False)
        pipe.unet(torch.zeros(1, 4, 16, 24), 5, known)

    def in_a_thread() -> None:
        thread = threading.Thread(target=make, args=(pipe,))
        thread.start()
        thread.join()

    def exchanged() -> None:
        denoiser = pipe.unet
        object.__setattr__(pipe, "unet", twin)
        make(pipe)
        object.__setattr__(pipe, "unet", denoiser)

    twin = deepcopy(pipe.unet)
    given = {"prompt_embeds": embedded, "negative_prompt_embeds": unwanted}
    for run, told in (
        (lambda: None, "nothing was traced: call the pipeline, with a prompt as text, inside"),
        (by_hand, "ran, but not by a call of this StableDiffusionPipeline; call it"),
        (lambda: make(other), "ran, but not by a call of this StableDiffusionPipeline; call it"),
        (exchanged, "got another denoiser inside the `with` block; set it before the block"),
        (in_a_thread, "ran in another thread than the `with` block; call the pipeline in the block's"),
    ):
        with trace(pipe) as tr:
            run()
        with pytest.raises(GocaError, match=told):
            tr.words()
    # An encoder beside the session's: the pipeline's own is not asked.
    with trace(pipe) as tr:
        object.__setattr__(pipe, "encode_prompt", lambda *args, **kwargs: (embedded, unwanted))
        make(pipe, None, **given)
        del pipe.encode_prompt
    with pytest.raises(GocaError, match="attended to no prompt that was encoded inside"):
        tr.words()


def test_what_cannot_be_summed_up_costs_no_image_and_is_not_traced_again(pipe: Any) -> None:
    """An attention that is not finite in the first step alone: the latents are made good before the second."""
    attention = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    passes: list[int] = []

    def spoil(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        passes.append(1)
        return output * torch.nan if len(passes) == 1 else output

    def mend(pipeline: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.full_like(given["latents"], 0.1 * step)}

    def draw() -> Tensor:
        passes.clear()
        return make(pipe, callback_on_step_end=mend)

    handle = attention.to_k.register_forward_hook(spoil)
    try:
        plain = draw()
        with (
            trace(pipe) as tr,
            pytest.warns(UserWarning, match="this call is not traced: .* not finite") as told,
        ):
            assert torch.equal(draw(), plain)
        assert len(passes) == 3
        assert len(told) == 1
        assert plain.isfinite().all()
    finally:
        handle.remove()
    assert len(tr) == 0
    with pytest.raises(GocaError, match="not finite"):
        tr.words()
    with trace(pipe) as tr:
        make(pipe)
    assert [step.step for step in tr.steps] == [0, 1, 2]


def test_images_of_another_number_than_the_latents_are_not_theirs(pipe: Any) -> None:
    def show_two(pipeline: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipeline.image_processor.postprocess(torch.zeros(2, 3, 32, 48))
        return given

    with trace(pipe) as tr:
        make(pipe, output_type="latent", callback_on_step_end=show_two)
    assert len(tr) == 1
    assert tr[0].image.getcolors() == [(32 * 48, (128, 128, 128))]


@pytest.mark.parametrize("name", ["sd15", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_memory_does_not_grow_with_the_steps(name: str) -> None:
    with quiet():
        pipe = BUILDERS[name]()
        pipe.set_progress_bar_config(disable=True)

    def kept(steps: int) -> tuple[int, list[int]]:
        during: list[int] = []
        options: dict[str, Any] = {"num_inference_steps": steps}
        if name == "pixart_sigma":
            options["use_resolution_binning"] = False

        def look(module: nn.Module, args: Any, output: Any) -> None:
            during.append(held())

        with quiet():
            make(pipe, **options)  # the scheduler has tables of that length
            before = held()
            with trace(pipe) as tr:
                # Behind the session's own hook, so that the step is summed up.
                handle = (pipe.unet if name == "sd15" else pipe.transformer).register_forward_hook(look)
                make(pipe, **options)
                handle.remove()
        assert len(tr.steps) == steps
        return held() - before, during

    with newcomers() as held:
        few, many = kept(2), kept(4)
    assert few[0] == many[0]
    # Samplers of several steps have theirs by then.
    assert len(set(many[1][2:])) == 1


# --- other pipelines that make images


def _inpainting(channels: int) -> Any:
    parts = sd15().components
    if channels == 9:
        torch.manual_seed(0)
        parts["unet"] = UNet2DConditionModel.from_config({**parts["unet"].config, "in_channels": 9}).eval()
    return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


def _flux_from_image() -> Any:
    return FluxImg2ImgPipeline(**BUILDERS["flux"]().components)


@pytest.mark.parametrize(
    ("build", "masked"),
    [
        (lambda: StableDiffusionImg2ImgPipeline(**sd15().components, requires_safety_checker=False), False),
        (_flux_from_image, False),
        (lambda: _inpainting(4), True),
        (lambda: _inpainting(9), True),
    ],
)
def test_pipelines_that_start_from_an_image(build: Callable[[], Any], masked: bool, image: Make) -> None:
    with quiet():
        pipeline = build()
        pipeline.set_progress_bar_config(disable=True)
        given = {"image": image(48, 32), **({"mask_image": image(48, 32, 1).convert("L")} if masked else {})}

        def draw() -> Tensor:
            options = {"num_inference_steps": 4, "strength": 0.5, **given}
            if isinstance(pipeline, StableDiffusionImg2ImgPipeline):  # as large as its image
                options |= {"height": None, "width": None}
            return make(pipeline, **options)

        plain = draw()
        with trace(pipeline) as tr:
            assert torch.equal(draw(), plain)
        timesteps = pipeline.scheduler.timesteps.tolist()
    assert [(step.step, step.timestep) for step in tr.steps] == [(0, timesteps[-2]), (1, timesteps[-1])]
    result = tr.segment(["cat", "grass"])
    assert result.labels.shape == (32, 48)
    assert result.image == tr[0].image


def test_a_compiled_denoiser_and_sliced_attention_are_seen() -> None:
    pipeline = sd15()
    pipeline.set_progress_bar_config(disable=True)
    with trace(pipeline, recipe=RAW) as plain:
        make(pipeline, num_inference_steps=1)
    pipeline.enable_attention_slicing()
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    processors = list(pipeline.unet.attn_processors.values())
    with trace(pipeline, recipe=RAW) as tr:
        make(pipeline, num_inference_steps=1)
    np.testing.assert_allclose(maps_of(tr), maps_of(plain), rtol=1e-4, atol=1e-6)
    assert list(pipeline.unet.attn_processors.values()) == processors


def test_an_offloaded_pipeline_under_autocast() -> None:
    accelerate = pytest.importorskip("accelerate")
    pipeline = sd15()
    pipeline.set_progress_bar_config(disable=True)
    accelerate.cpu_offload(pipeline.unet, torch.device("cpu"))
    with trace(pipeline) as tr, torch.autocast("cpu", torch.bfloat16):
        make(pipeline, num_inference_steps=1)
    assert np.isfinite(maps_of(tr)).all()
    assert maps_of(tr).dtype == np.float32


# --- what is restoring


def state(pipeline: Any) -> dict[str, Any]:
    """What must be the same afterwards, but for what the pipeline's own call leaves in it."""
    modules = [m for part in pipeline.components.values() if isinstance(part, nn.Module) for m in part.modules()]
    own = ("_guidance", "_num_timesteps", "_interrupt", "_clip_skip", "_cross_attention_kwargs")
    return {
        "attributes": {name: id(value) for name, value in vars(pipeline).items() if not name.startswith(own)},
        "processor": set(vars(pipeline.image_processor)),
        "config": dict(pipeline.config),
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        "processors": [id(getattr(m, "processor", None)) for m in modules],
        "class": type(pipeline),
        "scheduler": set(vars(pipeline.scheduler)),
        "modes": torch.overrides._len_torch_function_stack(),
    }


def test_a_pipeline_made_inside_by_the_traced_one_s_class_is_like_any_other(pipe: Any) -> None:
    with trace(pipe):
        twin = type(pipe).from_pipe(pipe)
    assert type(twin) is StableDiffusionPipeline
    assert torch.equal(make(pickle.loads(pickle.dumps(twin))), make(pipe))


def test_everything_is_given_back(pipe: Any) -> None:
    make(pipe)
    before = state(pipe)
    with trace(pipe):
        assert state(pipe) != before
        make(pipe)
    assert state(pipe) == before


@pytest.mark.parametrize("stage", ["tokenizer", "text_encoder", "unet", "sink", "callback", "vae", "interrupt"])
def test_everything_is_given_back_after_an_exception_at(
    stage: str, pipe: Any, traced: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BoomError(KeyboardInterrupt if stage == "interrupt" else Exception):  # type: ignore[misc]
        pass

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise BoomError

    options, handles, recipe = {}, [], GOCA
    if stage in ("text_encoder", "unet", "interrupt"):
        # Deep inside, so that the pass has begun.
        whole = pipe.text_encoder if stage == "text_encoder" else pipe.unet
        inner = [module for module in whole.modules() if not [*module.children()]]
        handles.append(inner[len(inner) // 2].register_forward_pre_hook(fail))
    elif stage == "sink":
        recipe = replace(GOCA, heads=fail)
    elif stage == "callback":
        options["callback_on_step_end"] = fail
    else:
        name = {"tokenizer": "maybe_convert_prompt", "vae": "decode"}[stage]
        monkeypatch.setattr(pipe if stage == "tokenizer" else pipe.vae, name, fail, raising=True)
    before = state(pipe)
    with pytest.raises(BoomError), trace(pipe, recipe=recipe) as tr:
        make(pipe, **options)
    assert state(pipe) == before
    assert len(tr) == (1 if stage in ("callback", "vae") else 0)
    monkeypatch.undo()
    for handle in handles:
        handle.remove()
    with trace(pipe) as again:
        make(pipe)
    assert np.array_equal(maps_of(again[0]), maps_of(traced))


def test_inside_a_trace_a_pipeline_is_nobody_else_s(pipe: Any, image: Make) -> None:
    segmenter = Segmenter.from_pipeline(pipe, GOCA, size=64)
    before = state(pipe)
    with trace(pipe), pytest.raises(GocaError, match="is observed by a `with` block around"):
        segmenter(image(), classes=["cat", "grass"])
    assert state(pipe) == before
    segmenter(image(), classes=["cat", "grass"])


def _hires(pipe: Any, image: Make) -> None:
    again = StableDiffusionImg2ImgPipeline.from_pipe(pipe, scheduler=deepcopy(pipe.scheduler))
    again(PROMPT, image=image(48, 32), num_inference_steps=4, strength=0.5)


def _twin(pipe: Any, image: Make) -> None:
    twin = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    make(twin, num_inference_steps=3)


def _automatic(pipe: Any, image: Make) -> None:
    make(AutoPipelineForText2Image.from_pipe(pipe, scheduler=deepcopy(pipe.scheduler)), "a dog")


def _by_hand(pipe: Any, image: Make) -> None:
    embedded, _ = pipe.encode_prompt(PROMPT, "cpu", 1, False)
    pipe.unet(torch.zeros(1, 4, 16, 24), pipe.scheduler.timesteps[0], embedded)


def _segmenter(pipe: Any, image: Make) -> None:
    twin = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    Segmenter.from_pipeline(twin, GOCA, size=64)(image(), classes=["cat", "grass"], caption=PROMPT)


def _inner_trace(pipe: Any, image: Make) -> None:
    twin = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    with trace(twin) as tr:
        make(twin)
    assert [step.step for step in tr.steps] == [0, 1, 2]


@pytest.mark.parametrize("other", [_hires, _twin, _automatic, _by_hand, _segmenter, _inner_trace])
@pytest.mark.parametrize("when", ["before", "after", "callback"])
def test_what_else_calls_the_denoiser_is_not_the_pipeline_s_own(
    pipe: Any, traced: Trace, image: Make, other: Callable[[Any, Make], None], when: str
) -> None:
    """A second pipeline of the same parts, the denoiser by hand, a segmenter: before, after and within a call."""

    def callback(pipeline: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        with torch.random.fork_rng():
            if step == 1:
                other(pipe, image)
        return given

    plain, before = make(pipe), state(pipe)
    with trace(pipe) as tr:
        if when == "before":
            other(pipe, image)
        assert torch.equal(make(pipe, **({"callback_on_step_end": callback} if when == "callback" else {})), plain)
        if when == "after":
            other(pipe, image)
    assert state(pipe) == before
    assert len(tr) == 1
    assert tr.steps == traced.steps
    assert np.array_equal(maps_of(tr), maps_of(traced))


def test_a_call_within_a_callback_of_the_same_pipeline_is_its_own(pipe: Any, traced: Trace) -> None:
    def callback(pipeline: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            make(pipe, "a dog")
        return given

    with trace(pipe) as tr:
        make(pipe, callback_on_step_end=callback)
    first, second = sorted(tr.images, key=lambda image: image.prompt != PROMPT)
    assert (first.prompt, second.prompt) == (PROMPT, "a dog")
    assert [[step.step for step in image.steps] for image in (first, second)] == [[0, 1, 2]] * 2
    assert np.array_equal(maps_of(first), maps_of(traced))


def predict(unet: Any, latents: Tensor, timestep: Any, embedded: Tensor) -> Tensor:
    return unet(latents, timestep, embedded)[0]


class OwnLoop(StableDiffusionPipeline):
    """A user's pipeline, whose own loop calls the denoiser through a function beside the class."""

    @torch.no_grad()
    def __call__(self, prompt: str, num_inference_steps: int, generator: torch.Generator, **given: Any) -> Any:
        embedded, _ = self.encode_prompt(prompt, "cpu", 1, False)
        self.scheduler.set_timesteps(num_inference_steps)
        latents = self.prepare_latents(1, 4, given["height"], given["width"], embedded.dtype, "cpu", generator)
        for timestep in self.scheduler.timesteps:
            latents = self.scheduler.step(self.predict(latents, timestep, embedded), timestep, latents)[0]
        return (self.image_processor.postprocess(self.vae.decode(latents)[0], output_type="np"),)

    def predict(self, latents: Tensor, timestep: Any, embedded: Tensor) -> Tensor:
        return predict(self.unet, latents, timestep, embedded)


def test_functions_that_a_pipeline_s_class_calls_by_name_are_its_own(pipe: Any) -> None:
    mine = OwnLoop(**pipe.components, requires_safety_checker=False)
    plain = make(mine)
    with trace(mine) as tr:
        assert torch.equal(make(mine), plain)
    assert [step.step for step in tr.steps] == [0, 1, 2]
    object.__setattr__(mine, "predict", lambda *given: predict(mine.unet, *given))
    with trace(mine) as tr:
        make(mine)
    with pytest.raises(GocaError, match=r"within a call of OwnLoop, but not by a function of that class.*; make what"):
        tr.words()


def test_steps_that_attend_to_another_prompt_are_told(pipe: Any) -> None:
    dog, _ = pipe.encode_prompt("a dog", "cpu", 1, False)

    def exchange(pipeline: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        prompts = given["prompt_embeds"].clone()
        prompts[1] = dog[0] if step == 0 else prompts[1]
        return {**given, "prompt_embeds": prompts}

    options = {"callback_on_step_end": exchange, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    plain = make(pipe, **options)
    with trace(pipe) as tr, pytest.warns(UserWarning, match="2 of 3 denoiser evaluations attended to other embeddings"):
        assert torch.equal(make(pipe, **options), plain)
    assert [step.step for step in tr.steps] == [0]


def test_what_another_thread_does_is_not_heard_and_a_segmenter_there_waits(
    pipe: Any, traced: Trace, image: Make
) -> None:
    segmenter, done, begun = Segmenter.from_pipeline(pipe, GOCA, size=64), [], threading.Event()

    def segment() -> None:
        begun.set()
        segmenter(image(), classes=["cat", "grass"])
        done.append(True)

    beside, waiting = threading.Thread(target=make, args=(pipe, "a dog")), threading.Thread(target=segment)
    with trace(pipe) as tr:
        beside.start()
        beside.join()
        assert len(tr) == 0
        waiting.start()
        begun.wait()
        make(pipe)
        assert not done
    waiting.join(60)
    assert done
    assert np.array_equal(maps_of(tr[0]), maps_of(traced))


# --- what can be asked


def test_words_and_their_occurrences(traced: Trace) -> None:
    assert [str(word) for word in traced.words()] == ["cat", "on", "grass", "cat#2"]
    first, _, grass, second = traced.words()
    assert (second.name, second.occurrence) == ("cat", 2)
    assert np.array_equal(traced.map(first), traced.map("cat", 1))
    assert np.array_equal(traced.map(second), traced.map("cat", occurrence=2))
    assert not np.allclose(traced.map(first), traced.map(second))
    assert not np.allclose(traced.map("cat"), traced.map(first))
    assert np.array_equal(traced.map("cat#2"), traced.map(second))
    assert np.array_equal(traced.map("cat#1"), traced.map(first))
    assert np.array_equal(traced.map("Grass"), traced.map(grass))
    # "cats" is not said: the one whose plural it is stands for it.
    assert np.array_equal(traced.map("cats"), traced.map("cat"))


def test_a_map_is_the_recipe_s_share_of_what_all_words_take(pipe: Any, traced: Trace) -> None:
    maps = []
    for rescale in ((), ("share",)):
        with trace(pipe, recipe=replace(GOCA, rescale=rescale, order=0)) as tr:
            make(pipe)
        maps.append(maps_of(tr))
    raw, shares = maps
    # Between the marks of beginning and end; what a word takes is the mean of its tokens.
    tokens = [len(pipe.tokenizer(word.name).input_ids) - 2 for word in tr.words()]
    assert max(tokens) > 1
    whole = sum(count * one for count, one in zip(tokens, raw, strict=True))
    np.testing.assert_allclose(shares, raw / whole, rtol=1e-4)
    assert traced.map("grass").min() == 0
    assert traced.map("grass").max() == 1


def test_a_single_word_takes_all_and_still_has_a_map(pipe: Any) -> None:
    with trace(pipe, steps=[0]) as tr:
        make(pipe, "a cat")
    assert [str(word) for word in tr.words()] == ["cat"]
    assert (tr.map("cat").min(), tr.map("cat").max()) == (0, 1)
    assert np.asarray(tr.heatmap("cat")).std() > 0


def test_heat_maps_and_masks_lie_on_the_image(traced: Trace, image: Make) -> None:
    assert traced.heatmap("cat").size == (48, 32)
    assert traced.overlay("cat", "grass").width >= 48
    result = traced.segment(["cat", "grass"])
    assert result.image == traced[0].image
    assert result.labels.shape == (32, 48)
    assert result.plan.captions == (PROMPT,)
    assert result.plan.timestep == tuple(round(step.timestep) for step in traced.steps)
    assert result.plan.seeds == ()
    assert result.plan.notes == ("traced over 3 of the sampler's steps",)
    assert traced.segment(["cat", "grass"], background=None).labels.min() == 1
    assert traced.segment(["cat", "grass"], background=1.0).labels.max() == 0
    shown = image(96, 64)
    beside = traced.segment(["cat"], background_classes=["grass"], image=shown)
    assert beside.labels.shape == (64, 96)
    # Only the prompt's words have maps: no noun joins them by itself.
    assert (result.plan.background_classes, beside.plan.background_classes) == ((), ("grass",))


def test_another_recipe_once_everything_is_collected(pipe: Any, traced: Trace) -> None:
    other = replace(GOCA, rescale=("share", "minmax"), order=0)
    with trace(pipe, recipe=other) as tr:
        make(pipe)
    asked = traced.segment(["cat", "grass"], recipe=other)
    np.testing.assert_allclose(asked.scores.grid, tr.segment(["cat", "grass"]).scores.grid, atol=1e-6)
    assert not np.allclose(asked.scores.grid, traced.segment(["cat", "grass"]).scores.grid)
    along = traced.segment(["cat", "grass"], background=None, recipe=replace(other, edges=True))
    assert along.plan.refine_edges
    assert np.array_equal(along.scores.grid, asked.scores.grid)
    assert not np.array_equal(along.labels, traced.segment(["cat", "grass"], background=None, recipe=other).labels)
    with pytest.raises(GocaError, match=r"trace\(pipe, recipe="):
        traced.segment(["cat"], recipe="vanilla")
    with pytest.raises(GocaError, match=r"trace\(pipe, recipe="):
        tr.segment(["cat"], recipe="goca")


def test_daam_is_a_recipe_of_a_trace(pipe: Any) -> None:
    with trace(pipe, recipe="daam") as tr:
        make(pipe)
    assert tr.map("grass").max() == 1
    assert tr.map("grass").min() > 0
    assert tr.segment(["grass"]).labels.shape == (32, 48)


def test_an_image_that_was_not_decoded_is_grey(pipe: Any) -> None:
    with trace(pipe) as tr:
        make(pipe, output_type="latent")
    assert tr[0].image.size == (48, 32)
    assert tr[0].image.getcolors() == [(32 * 48, (128, 128, 128))]


def test_edges_that_the_image_does_not_show_are_cut_off_the_maps(traced: Trace) -> None:
    whole = traced.segment(["cat"]).scores.grid[0]
    narrow = Image.new("RGB", (32, 32))  # the middle two thirds of 48 x 32
    width = whole.shape[1]
    columns = (np.arange(width) + 0.5) * 2 / 3 + width / 6 - 0.5
    expected = [np.interp(columns, np.arange(width), row) for row in whole]
    np.testing.assert_allclose(traced.segment(["cat"], image=narrow).scores.grid[0], expected, atol=1e-5)


def test_saved(pipe: Any, traced: Trace, tmp_path: Path) -> None:
    paths = traced.save(tmp_path, "cat")
    names = ["cat.png", "cat.cat.heatmap.png", "cat.on.heatmap.png", "cat.grass.heatmap.png", "cat.cat-2.heatmap.png"]
    assert [path.name for path in paths] == [*names, "cat.json"]
    assert np.array_equal(Image.open(paths[0]), traced[0].image)
    told = json.loads(paths[-1].read_text())
    assert (told["prompt"], told["words"]) == (PROMPT, ["cat", "on", "grass", "cat#2"])
    assert [step["step"] for step in told["steps"]] == [0, 1, 2]
    assert told["plan"]["recipe"] == "goca"
    with trace(pipe, steps=[0]) as tr:
        make(pipe, ["a dog", "a cat"])
    assert {path.name for path in tr.save(tmp_path)} >= {"image-1.dog.heatmap.png", "image-2.json"}


def test_words_that_are_too_long_for_a_file_s_name_are_cut(tmp_path: Path) -> None:
    long = "\u732b" * 90
    with quiet():
        flux = BUILDERS["flux"]()
        flux.set_progress_bar_config(disable=True)
        with trace(flux, steps=[0]) as tr:
            make(flux, f"cat {long}a {long}b", num_inference_steps=1)
    names = [path.name for path in tr.save(tmp_path, "p")]
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert (names[1], len(set(names))) == ("p.cat.heatmap.png", 5)
    assert all(250 < len(name.encode()) <= 255 and name.startswith("p.\u732b") for name in names[2:4])


# --- mistakes


def test_a_word_that_is_not_in_the_prompt(traced: Trace) -> None:
    for ask in (traced.map, traced.heatmap, traced.overlay, lambda word: traced.segment(["cat", word])):
        with pytest.raises(GocaError, match=r'does not contain "dog".*: choose from cat, on, grass$'):
            ask("dog")
    with pytest.raises(GocaError, match='"cat" occurs 2 times in the prompt: give an occurrence from 1 to 2'):
        traced.map("cat", 3)
    with pytest.raises(GocaError, match='"cat" occurs 2 times in the prompt: give an occurrence from 1 to 2'):
        traced.map("cat#3")
    with pytest.raises(GocaError, match='does not contain "dog"'):
        traced.map("dog#1")
    with pytest.raises(GocaError, match="every pixel would be labelled"):
        traced.segment(["cat"], background=None)


def refusals(image: Trace, word: str) -> str:
    """What `map`, `heatmap` and `segment` alike say of a word."""
    messages = set()
    for ask in (image.map, image.heatmap, image.overlay):
        with pytest.raises(GocaError) as told:
            ask(word)
        messages.add(str(told.value))
    (message,) = messages
    assert len(message) < 400
    return message


def test_a_word_behind_the_limit(pipe: Any) -> None:
    with trace(pipe, steps=[0]) as tr:
        make(pipe, f"a cat and {'very ' * 80} big cat, dog, {'long' * 40}", num_inference_steps=1)
    assert refusals(tr, "dog") == (
        '"dog" is cut off by the tokenizer\'s limit of 77 tokens: shorten the caption, or choose from cat, very'
    )
    assert '"long' in refusals(tr, "long" * 40)
    assert refusals(tr, "and").startswith('"and" consists of stop words: use a noun')
    message = refusals(tr, "zebra " * 100)
    assert message.startswith('the prompt "a cat and very very')
    assert 'does not contain "zebra zebra' in message
    with pytest.raises(GocaError, match='"cat" occurs once in the part of the prompt that its tokens hold'):
        tr.map("cat", 2)


def test_a_word_of_another_text(pipe: Any) -> None:
    with trace(pipe, steps=[0]) as tr:
        make(pipe, "a cat", negative_prompt="a blurred dog", num_inference_steps=1)
    assert refusals(tr, "dog") == (
        '"dog" occurs only in negative_prompt, which only trace(pipe, keep="negative") reads: choose from cat'
    )
    with quiet():
        flux = BUILDERS["flux"]()
        flux.set_progress_bar_config(disable=True)
        with trace(flux) as tr:
            make(flux, "cat", prompt_2="a red boat", negative_prompt="dog", true_cfg_scale=2.0, num_inference_steps=1)
    assert refusals(tr, "cat") == (
        '"cat" occurs only in prompt, whose tokens the model does not attend to: choose from red, boat'
    )
    assert refusals(tr, "dog").startswith('"dog" occurs only in negative_prompt')
    assert tr.map("boat").max() == 1
    with quiet():
        xl = BUILDERS["sdxl"]()
        xl.set_progress_bar_config(disable=True)
        with trace(xl) as tr:
            make(xl, "a cat", prompt_2="a boat", negative_prompt="x", negative_prompt_2="dog", num_inference_steps=1)
    # Both encoders' tokens are attended to.
    assert [word.name for word in tr.words()] == ["cat", "boat"]
    assert refusals(tr, "bus").startswith('the prompt "a cat" does not contain "bus"')


def test_a_name_inside_another(traced: Trace, pipe: Any) -> None:
    with trace(pipe, steps=[0]) as tr:
        make(pipe, "a traffic light", num_inference_steps=1)
    with pytest.raises(
        GocaError, match='"light" is not on its own in the caption "a traffic light": another name takes'
    ):
        tr.segment(["traffic light", "light"])


def test_what_is_no_word_and_no_number(traced: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    # As users have it, without the tests' type checks, which would speak first.
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    for word, occurrence in (
        ("cat", "1"),
        ("cat", 1.5),
        (5, None),
        (None, None),
        (["cat"], None),
        ("_ ", None),
    ):
        with pytest.raises(GocaError, match="is not a word and a number: give a word of the prompt"):
            traced.map(word, occurrence)


@pytest.mark.parametrize("steps", [5, [-1], [], ["0"], range(0), [0.5], "0", np.array(5), np.array([0.5])])
def test_steps_that_are_none(pipe: Any, steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(GocaError, match="are not sampling steps"):
        trace(pipe, steps=steps)


@pytest.mark.parametrize("steps", [{1, 2}, np.array([1, 2]), (np.int64(1), 2), range(1, 10**15)])
def test_steps_in_any_collection(pipe: Any, steps: Any) -> None:
    with trace(pipe, steps=steps) as tr:
        make(pipe)
    assert [step.step for step in tr.steps] == [1, 2]


def test_an_image_that_there_is_not(traced: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    wrong: list[Any] = [5, -2, "cat", None, slice(0, 1), 0.0]
    for index in wrong:
        with pytest.raises(GocaError, match=r"there is no image .*: 1 were traced, choose from 0 to 0"):
            traced[index]
    assert traced[-1] is traced[0]
    assert list(traced) == [traced[0]]


def test_nothing_to_ask(pipe: Any) -> None:
    with trace(pipe) as tr:
        pass
    with pytest.raises(GocaError, match="nothing was traced: call the pipeline"):
        tr.words()
    with trace(pipe, steps=[7]) as tr:
        make(pipe)
    with pytest.raises(GocaError, match="the sampler made 3, numbered 0 to 2"):
        tr.heatmap("cat")


def test_embeddings_have_no_words(pipe: Any) -> None:
    embedded, _ = pipe.encode_prompt(PROMPT, "cpu", 1, False)
    before = state(pipe)
    with pytest.raises(GocaError, match="pass the prompt itself, as text"), trace(pipe):
        make(pipe, None, prompt_embeds=embedded, guidance_scale=1.0)
    assert state(pipe) == before


def assembled(kind: Any, scheduler: Any = DDIMScheduler) -> Any:
    """A pipeline of the parts of Stable Diffusion 1.5."""
    parts = sd15().components
    parts["scheduler"] = scheduler.from_config(parts["scheduler"].config)
    wanted = {name: part for name, part in parts.items() if name in inspect.signature(kind.__init__).parameters}
    with quiet():
        pipeline = kind(**wanted, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_pipelines_that_cannot_be_traced_at_all() -> None:
    with pytest.raises(
        GocaError, match=r"perturbed attention.* use the .* instead, StableDiffusionPipeline.from_pipe\(pipe\)"
    ):
        trace(assembled(StableDiffusionPAGPipeline))
    with pytest.raises(GocaError, match=r"StableDiffusionInstructPix2PixPipeline .* has no method encode_prompt, by"):
        trace(assembled(StableDiffusionInstructPix2PixPipeline))
    for lacking, told in (("image_processor", "image processor"), ("prepare_latents", "method prepare_latents")):
        incomplete = sd15()
        object.__setattr__(incomplete, lacking, None)
        with pytest.raises(GocaError, match=f"StableDiffusionPipeline cannot be observed: it has no {told}, by which"):
            trace(incomplete)

    class Wordless(StableDiffusionPipeline):
        def __call__(self, steps: int) -> None:
            pass

    with pytest.raises(GocaError, match="Wordless cannot be observed: it takes no prompt"):
        trace(assembled(Wordless))


def test_every_pipeline_of_perturbed_attention_has_one_without() -> None:
    perturbed = [name for name in dir(diffusers) if name.endswith("Pipeline") and "PAG" in name]
    assert len(perturbed) > 10
    assert all(callable(getattr(diffusers, name.replace("PAG", "")).from_pipe) for name in perturbed)


@pytest.mark.parametrize(
    ("kind", "scheduler", "options", "told"),
    [
        (
            StableDiffusionSAGPipeline,
            DDIMScheduler,
            {},
            "sets its own attention processors in each call (CrossAttnStoreProcessor)",
        ),
        (
            StableDiffusionAttendAndExcitePipeline,
            DDIMScheduler,
            {"token_indices": [2]},
            "sets its own attention processors in each call (AttendExciteAttnProcessor)",
        ),
        (StableDiffusionParadigmsPipeline, DDIMParallelScheduler, {}, "denoises several steps in one pass"),
        (
            StableDiffusionPanoramaPipeline,
            DDIMScheduler,
            {"height": 512, "width": 576},
            "denoises its image of 512 x 576 pixels in parts of 128 x 128",
        ),
    ],
)
def test_a_call_that_cannot_be_traced_and_its_remedies(kind: Any, scheduler: Any, options: Any, told: str) -> None:
    pipeline = assembled(kind, scheduler)
    before = state(pipeline)["processors"]
    expected = rf"{kind.__name__} .*{re.escape(told)}.*StableDiffusionPipeline.from_pipe"
    with pytest.raises(GocaError, match=expected), quiet(), trace(pipeline):
        make(pipeline, **options)
    assert state(pipeline)["processors"] == before
    plain = StableDiffusionPipeline.from_pipe(pipeline)
    with trace(plain) as tr:
        make(plain)
    assert [step.step for step in tr.steps] == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "scheduler", "options"),
    [
        (StableDiffusionPanoramaPipeline, DDIMScheduler, {"height": 128, "width": 128, "guidance_scale": 3.0}),
        (StableDiffusionParadigmsPipeline, DDIMParallelScheduler, {"parallel": 1, "guidance_scale": 3.0}),
    ],
)
def test_those_pipelines_where_they_make_whole_images(kind: Any, scheduler: Any, options: Any) -> None:
    pipeline = assembled(kind, scheduler)
    plain = make(pipeline, **options)
    with trace(pipeline) as tr:
        assert torch.equal(make(pipeline, **options), plain)
    assert [(step.step, step.timestep) for step in tr.steps] == [*enumerate(pipeline.scheduler.timesteps.tolist())]


def test_packed_latents_of_a_part_or_of_unknown_size() -> None:
    class Tiled(FluxPipeline):
        def prepare_latents(self, count: int, channels: int, height: int, width: int, *args: Any) -> Any:
            latents, ids = super().prepare_latents(count, channels, height, width, *args)
            return latents[:, :4], ids[:4]

    class Vague(FluxPipeline):
        def prepare_latents(self, *args: Any) -> Any:
            return super().prepare_latents(*args)

    for kind, told in (
        (Tiled, "its denoiser gets 4 of the [0-9]+ patches of"),
        (Vague, "has no height"),
    ):
        with quiet():
            flux = kind(**BUILDERS["flux"]().components)
            flux.set_progress_bar_config(disable=True)
            with pytest.raises(GocaError, match=f"{kind.__name__} cannot be traced: .*{told}"), trace(flux):
                make(flux, num_inference_steps=1)
            plain = FluxPipeline.from_pipe(flux)
            with trace(plain) as tr:
                make(plain, num_inference_steps=1)
        assert [step.step for step in tr.steps] == [0]


def test_a_recipe_that_needs_its_nouns_beforehand(pipe: Any) -> None:
    with pytest.raises(
        GocaError, match=r'"concept-attention" weighs nouns against each other .* choose another recipe'
    ):
        trace(pipe, recipe="concept-attention")
