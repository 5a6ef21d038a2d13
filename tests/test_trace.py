"""Trace: what is collected while a pipeline generates, and what can be asked of it."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FluxImg2ImgPipeline,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
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


def test_a_pass_that_attends_to_no_known_prompt_is_told(pipe: Any, traced: Trace) -> None:
    embedded, _ = pipe.encode_prompt(PROMPT, "cpu", 1, False)
    with trace(pipe) as tr:
        pipe.encode_prompt("a dog", "cpu", 1, False)
        pipe.unet(torch.zeros(1, 4, 16, 24), 5, embedded)
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
            pytest.warns(UserWarning, match="nothing is traced of this call: .* not finite") as told,
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
        "modes": torch.overrides._len_torch_function_stack(),
    }


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
    segmenter = Segmenter.from_pipeline(pipe, size=64)
    before = state(pipe)
    with trace(pipe):
        with pytest.raises(GocaError, match="is being traced"), trace(pipe):
            pass
        with pytest.raises(GocaError, match="is being traced"):
            segmenter(image(), classes=["cat", "grass"])
    assert state(pipe) == before
    segmenter(image(), classes=["cat", "grass"])


def test_what_another_thread_does_is_not_heard_and_a_segmenter_there_waits(
    pipe: Any, traced: Trace, image: Make
) -> None:
    segmenter, done, begun = Segmenter.from_pipeline(pipe, size=64), [], threading.Event()

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
    assert traced.segment(["cat"], background_classes=["grass"], image=shown).labels.shape == (64, 96)


def test_another_recipe_once_everything_is_collected(pipe: Any, traced: Trace) -> None:
    other = replace(GOCA, rescale=("share", "minmax"), order=0)
    with trace(pipe, recipe=other) as tr:
        make(pipe)
    asked = traced.segment(["cat", "grass"], recipe=other)
    np.testing.assert_allclose(asked.scores.grid, tr.segment(["cat", "grass"]).scores.grid, atol=1e-6)
    assert not np.allclose(asked.scores.grid, traced.segment(["cat", "grass"]).scores.grid)
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
        with pytest.raises(GocaError, match=r'does not say "dog".*: choose from cat, on, grass$'):
            ask("dog")
    with pytest.raises(GocaError, match='"cat" is 2 times in the prompt: give an occurrence from 1 to 2'):
        traced.map("cat", 3)
    with pytest.raises(GocaError, match='"cat" is 2 times in the prompt: give an occurrence from 1 to 2'):
        traced.map("cat#3")
    with pytest.raises(GocaError, match='does not say "dog"'):
        traced.map("dog#1")
    with pytest.raises(GocaError, match="every pixel would be labelled"):
        traced.segment(["cat"], background=None)


def test_what_is_no_word_and_no_number(traced: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    # As users have it, without the tests' type checks, which would speak first.
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    for word, occurrence in (("cat", "1"), ("cat", 1.5), (5, None), (None, None), (["cat"], None)):
        with pytest.raises(GocaError, match="is not a word and a number: give a word of the prompt"):
            traced.map(word, occurrence)


@pytest.mark.parametrize("steps", [5, [-1], [], ["0"], range(0), [0.5], "0", np.array(5), np.array([0.5])])
def test_steps_that_are_none(pipe: Any, steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(GocaError, match="are not steps of a sampler"):
        trace(pipe, steps=steps)


@pytest.mark.parametrize("steps", [{0, 1}, np.array([0, 1]), (np.int64(0), 1)])
def test_steps_in_any_collection(pipe: Any, steps: Any) -> None:
    with trace(pipe, steps=steps) as tr:
        make(pipe)
    assert [step.step for step in tr.steps] == [0, 1]


def test_an_image_that_there_is_not(traced: Trace) -> None:
    for index in (5, -2):
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


def test_pipelines_that_cannot_be_traced(image: Make) -> None:
    with pytest.raises(GocaError, match="StableDiffusionPAGPipeline cannot be traced"):
        trace(StableDiffusionPAGPipeline(**sd15().components, requires_safety_checker=False))
    for lacking in ("image_processor", "prepare_latents"):
        incomplete = sd15()
        object.__setattr__(incomplete, lacking, None)
        with pytest.raises(GocaError, match="StableDiffusionPipeline cannot be traced"):
            trace(incomplete)
    with quiet():
        flux2 = BUILDERS["flux2"]()
        flux2.set_progress_bar_config(disable=True)
        with pytest.raises(GocaError, match="another image beside the one"), trace(flux2):
            make(flux2, image=image(64, 64))
        wan = BUILDERS["wan"]()
        wan.set_progress_bar_config(disable=True)
        with pytest.raises(GocaError, match="num_frames=1"), trace(wan):
            make(wan, num_frames=5)


def test_packed_latents_of_unknown_size() -> None:
    with quiet():
        flux = BUILDERS["flux"]()

        def denoise() -> None:
            embedded, pooled, ids = flux.encode_prompt(PROMPT, None)
            latents = torch.zeros(1, 6, flux.transformer.config.in_channels)
            flux.transformer(latents, embedded, pooled, torch.ones(1), torch.zeros(6, 3), ids, torch.ones(1))

        denoise()
        with pytest.raises(GocaError, match="for an unknown size"), trace(flux):
            denoise()


def test_a_recipe_that_needs_its_nouns_beforehand(pipe: Any) -> None:
    with pytest.raises(
        GocaError, match=r'"concept-attention" weighs nouns against each other .* choose another recipe'
    ):
        trace(pipe, recipe="concept-attention")
