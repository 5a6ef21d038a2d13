"""(images, captions, noise timestep) -> one denoiser pass, with the pipeline given back as it was."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import nn

from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.backbone import MAX_PROMPTS, Backbone, BatchItem
from goca.diffusion.families import FAMILIES
from goca.diffusion.timesteps import add_noise, pinned
from goca.errors import GocaError
from goca.segmenter import Segmenter
from goca.testing.tiny import BUILDERS

Make = Callable[..., Image.Image]
SIZE = (64, 96)
CAPTIONS = ["a cat, grass", "a dog on the traffic light, sky"]


def ignore(index: int, call: AttentionCall) -> None:
    pass


def state(pipeline: Any) -> dict[str, Any]:
    """What must be the same after a call: attributes, configuration, hooks, processors, dtypes, random state."""
    modules = [m for part in pipeline.components.values() if isinstance(part, nn.Module) for m in part.modules()]
    return {
        "attributes": {name: id(value) for name, value in vars(pipeline).items()},
        "config": dict(pipeline.config),
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        "processors": [id(getattr(m, "processor", None)) for m in modules],
        "dtypes": [p.dtype for m in modules for p in m.parameters(recurse=False)],
        "random": torch.get_rng_state().tolist(),
    }


def warm(pipeline: Any) -> None:
    """transformers hooks a text encoder for good when it is first asked for hidden states; that is not our doing."""
    for caption in CAPTIONS:
        pipeline.encode_prompt(prompt=caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)


class Spy:
    """Counts and keeps the calls of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.outputs: list[Any] = []
        module.register_forward_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.calls.append((args, kwargs))
        self.outputs.append(output)


def test_one_pass_on_the_exact_noisy_latent(pipeline: Any, image: Make) -> None:
    backbone, spy = Backbone(pipeline), Spy(pipeline.unet)
    latents = backbone.latents([image(seed=0), image(seed=1)], SIZE)
    assert latents.shape == (2, 4, 32, 48)
    output = backbone.session().forward(latents, CAPTIONS, 100, 7, ignore)
    assert len(spy.calls) == 1
    (sample, timestep), kwargs = spy.calls[0]
    assert int(timestep) == 100
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(7))
    kept = pipeline.scheduler.alphas_cumprod[100]
    torch.testing.assert_close(sample, kept**0.5 * latents + (1 - kept) ** 0.5 * noise)
    # A caption that says what the pipeline itself would have encoded.
    for index, caption in enumerate(CAPTIONS):
        alone = pipeline.encode_prompt(
            prompt=caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        torch.testing.assert_close(kwargs["encoder_hidden_states"][index], alone[0][0])
    assert torch.equal(output, spy.outputs[0][0])


def test_size_conditions_of_sdxl_are_the_pipeline_s_own(image: Make) -> None:
    from goca.testing.tiny import sdxl

    pipeline = sdxl()
    backbone, spy = Backbone(pipeline), Spy(pipeline.unet)
    backbone.session().forward(backbone.latents([image()], SIZE), CAPTIONS[:1], 100, 0, ignore)
    conditions = spy.calls[0][1]["added_cond_kwargs"]
    assert conditions["time_ids"].tolist() == [[64.0, 96.0, 0.0, 0.0, 64.0, 96.0]]
    assert conditions["text_embeds"].shape == (1, 32)


def test_a_pass_with_the_tap_equals_one_without(pipeline: Any, image: Make) -> None:
    backbone, spy = Backbone(pipeline), Spy(pipeline.unet)
    output = backbone.session().forward(backbone.latents([image()], SIZE), CAPTIONS[:1], 100, 0, ignore)
    args, kwargs = spy.calls[0]
    with torch.no_grad():
        assert torch.equal(pipeline.unet(*args, **kwargs)[0], output)


def test_everything_is_given_back(pipeline: Any, image: Make) -> None:
    warm(pipeline)
    before = state(pipeline)
    backbone = Backbone(pipeline)
    backbone.session().forward(backbone.latents([image()], SIZE), CAPTIONS[:1], 100, 0, ignore)
    assert state(pipeline) == before


STAGES = ["tokenizer", "text_encoder", "vae", "scheduler", "unet", "sink"]


@pytest.mark.parametrize("stage", STAGES)
def test_everything_is_given_back_after_an_exception_at(stage: str, sd15: Any, image: Make) -> None:
    class BoomError(Exception):
        pass

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise BoomError

    sink = fail if stage == "sink" else ignore
    handles = []
    if stage in ("text_encoder", "unet"):
        # Deep inside, so that the pass has begun.
        inner = [m for m in getattr(sd15, stage).modules() if not list(m.children())]
        handles.append(inner[len(inner) // 2].register_forward_pre_hook(fail))
    elif stage == "vae":
        handles.append(sd15.vae.encoder.register_forward_pre_hook(fail))
    elif stage == "tokenizer":
        sd15.maybe_convert_prompt = fail
    elif stage == "scheduler":
        sd15.prepare_latents = fail
    before = state(sd15)
    backbone = Backbone(sd15)
    with pytest.raises(BoomError):
        backbone.session().forward(backbone.latents([image()], SIZE), CAPTIONS[:1], 100, 0, sink)
    assert state(sd15) == before


def test_a_caption_is_encoded_once_however_many_images_share_it(pipeline: Any, image: Make) -> None:
    backbone, spy = Backbone(pipeline), Spy(pipeline.text_encoder)
    session = backbone.session()
    latents = backbone.latents([image(seed=seed) for seed in range(3)], SIZE)
    for _ in range(2):
        session.forward(latents, [CAPTIONS[0]] * 3, 100, 0, ignore)
    session.forward(backbone.latents([image()], (32, 32)), CAPTIONS[:1], 50, 0, ignore)
    assert len(spy.calls) == 1
    # The user may have exchanged the text encoder in between.
    backbone.session().forward(latents, [CAPTIONS[0]] * 3, 100, 0, ignore)
    assert len(spy.calls) == 2


def test_the_pipeline_is_called_once_for_images_of_a_size(pipeline: Any, image: Make, monkeypatch: Any) -> None:
    calls, begin = [], type(pipeline).check_inputs  # with which every call begins
    monkeypatch.setattr(type(pipeline), "check_inputs", lambda *args, **named: calls.append(1) or begin(*args, **named))
    backbone = Backbone(pipeline)
    first, second = (backbone.latents([image(seed=seed)], SIZE) for seed in (0, 1))
    session = backbone.session()
    session.prompt(CAPTIONS[0])  # which calls it as well
    calls.clear()
    session.forward(first, CAPTIONS[:1], 100, 0, ignore)
    again = session.forward(second, CAPTIONS[:1], 100, 0, ignore)
    assert len(calls) == 1
    fresh = backbone.session().forward(second, CAPTIONS[:1], 100, 0, ignore)
    torch.testing.assert_close(again, fresh, rtol=0, atol=0)
    calls.clear()
    session.forward(second, CAPTIONS[:1], 200, 0, ignore)
    smaller = backbone.latents([image()], (SIZE[0] // 2, SIZE[1]))
    session.forward(smaller, CAPTIONS[:1], 100, 0, ignore)
    assert len(calls) == 2


def test_an_image_does_not_depend_on_its_batch(pipeline: Any, image: Make) -> None:
    backbone = Backbone(pipeline)
    latents = backbone.latents([image(seed=0), image(seed=1)], SIZE)
    together = backbone.session().forward(latents, CAPTIONS, 100, 0, ignore)
    for index in range(2):
        alone = backbone.session().forward(latents[index : index + 1], CAPTIONS[index : index + 1], 100, 0, ignore)
        torch.testing.assert_close(alone[0], together[index], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(pipeline: Any, dtype: torch.dtype, image: Make) -> None:
    backbone = Backbone(pipeline)
    exact = backbone.latents([image()], SIZE)
    pipeline.to(dtype=dtype)
    latents = backbone.latents([image()], SIZE)
    torch.testing.assert_close(latents, exact, rtol=0.05, atol=0.02)
    output = backbone.session().forward(latents, CAPTIONS[:1], 100, 0, ignore)
    assert output.dtype == dtype
    assert bool(torch.isfinite(output).all())
    assert pipeline.vae.dtype == dtype


def test_a_vae_that_overflows_in_half_precision_runs_in_single(sd15: Any, image: Make) -> None:
    with torch.no_grad():
        # Weights that float16 holds and activations that it does not; a later norm brings them back, as in SDXL's VAE.
        weight = sd15.vae.encoder.conv_in.weight
        weight *= 6e4 / weight.abs().max()
    backbone = Backbone(sd15)
    exact = backbone.latents([image()], SIZE)
    sd15.vae.to(torch.float16)
    torch.testing.assert_close(backbone.latents([image()], SIZE), exact, rtol=0.05, atol=0.02)
    sd15.vae.register_to_config(force_upcast=False)
    with pytest.raises(GocaError, match='dtype "float32" or "bfloat16"'):
        backbone.latents([image()], SIZE)


SAMPLERS = [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_sampler_sees_the_same_latent(sampler: Any, sd15: Any, image: Make) -> None:
    reference = Backbone(sd15)
    latents = reference.latents([image()], SIZE)
    expected = reference.session().forward(latents, CAPTIONS[:1], 100, 0, ignore)
    sd15.scheduler = sampler.from_config(sd15.scheduler.config)
    assert torch.equal(Backbone(sd15).session().forward(latents, CAPTIONS[:1], 100, 0, ignore), expected)


def test_our_noise_is_what_euler_shows_its_model() -> None:
    euler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents = torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(11))
    euler.set_timesteps(1000)
    timestep = euler.timesteps[-101:-100]
    theirs = euler.scale_model_input(euler.add_noise(latents, noise[None], timestep), timestep[0])
    torch.testing.assert_close(add_noise(euler, latents, int(timestep), 11), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_a_level_out_of_range_is_refused(timestep: int, sd15: Any) -> None:
    with pytest.raises(GocaError, match="0 to 999"):
        Backbone(sd15).session().forward(torch.zeros(1, 4, 8, 8), CAPTIONS[:1], timestep, 0, ignore)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_level_out_of_range_is_refused_where_the_plan_is_made(name: str) -> None:
    pipeline = BUILDERS[name]()
    for timestep in (1000, (100, 1000), 10**30):
        with pytest.raises(GocaError, match="0 to 999") as caught:
            Segmenter.from_pipeline(pipeline, timestep=timestep)
        assert caught.value.hint == "timestep"


def test_pipelines_that_cannot_be_read_are_refused_by_name(sd15: Any) -> None:
    scheduler = sd15.scheduler
    for other in (EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler()):
        sd15.scheduler = other
        with pytest.raises(GocaError, match=type(other).__name__):
            Backbone(sd15)
    sd15.scheduler = scheduler
    sd15.unet.register_to_config(in_channels=9)
    with pytest.raises(GocaError, match="inpainting"):
        Backbone(sd15)
    with pytest.raises(GocaError, match="UNet2DConditionModel"):
        Backbone(object())


def test_a_constructor_runs_nothing(pipeline: Any) -> None:
    spies = [Spy(part) for part in (pipeline.unet, pipeline.vae.encoder, pipeline.text_encoder)]
    Backbone(pipeline)
    assert [spy.calls for spy in spies] == [[], [], []]


def unlisted(pipeline: Any) -> Any:
    """The pipeline with a denoiser that differs by its class's name alone."""
    pipeline.unet.__class__ = type("FutureUNet", (type(pipeline.unet),), {})
    return pipeline


def test_an_unlisted_denoiser_is_refused_and_may_be_given_a_family(sd15: Any, image: Make) -> None:
    listed = Backbone(sd15)
    latents = listed.latents([image()], SIZE)
    expected = listed.session().forward(latents, CAPTIONS[:1], 100, 0, ignore)
    with pytest.raises(GocaError, match=r"StableDiffusionPipeline is not supported.* probe") as refusal:
        Backbone(unlisted(sd15))
    assert refusal.value.hint == "probe"
    backbone = Backbone(sd15, "mine", family=listed.family)
    assert backbone.name == "mine"
    assert torch.equal(backbone.session().forward(latents, CAPTIONS[:1], 100, 0, ignore), expected)


def test_a_family_of_another_denoiser_is_refused(sd15: Any) -> None:
    flux = next(family for family in FAMILIES if family.name == "flux")
    with pytest.raises(GocaError, match=r'StableDiffusionPipeline has no transformer, .* not of the family "flux"'):
        Backbone(sd15, family=flux)


@pytest.mark.parametrize("name", ["sd15", "kolors", "flux", "sd3", "wan"])
def test_every_listed_family_but_a_pipeline_s_own_is_refused(name: str) -> None:
    pipeline = BUILDERS[name]()
    listed = Backbone(pipeline).family
    for family in FAMILIES:
        if family is listed:
            assert Backbone(pipeline, family=family).family is listed
            continue
        with pytest.raises(GocaError, match=f'not of the family "{family.name}": leave the family out') as refusal:
            Backbone(pipeline, family=family)
        assert refusal.value.hint == "family"
    # A row of the user's own for a listed denoiser goes before the listed one; of another denoiser it does not.
    own = replace(listed, name="mine", timestep=7)
    assert Backbone(pipeline, family=own).settings.name
    with pytest.raises(GocaError, match=f"{type(Backbone(pipeline).denoiser).__name__} is not of the family"):
        Backbone(pipeline, family=replace(own, denoisers=("SomebodyElsesModel",)))


def test_a_pipeline_derived_from_kolors_s_is_read_as_kolors() -> None:
    kolors = BUILDERS["kolors"]()
    kolors.__class__ = type("MyKolorsPipeline", (type(kolors),), {})
    assert Backbone(kolors).family.name == "kolors"


def test_a_scheduler_s_table_of_timesteps_is_not_made_again() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.register_to_config(num_train_timesteps=10**15)  # a table of which no machine holds
    only = pinned(scheduler, 250)
    only.set_timesteps(4, device="cpu")
    assert only.timesteps.tolist() == [pytest.approx(0.25e15)]
    assert only.config.num_train_timesteps == 10**15


@pytest.mark.parametrize("compile_it", [lambda unet: torch.compile(unet, backend="eager"), None])
def test_a_compiled_denoiser(compile_it: Any, sd15: Any, image: Make) -> None:
    backbone = Backbone(sd15)
    latents = backbone.latents([image()], SIZE)
    expected = backbone.session().forward(latents, CAPTIONS[:1], 100, 0, ignore)
    if compile_it is None:
        sd15.unet.compile(backend="eager")
    else:
        sd15.unet = compile_it(sd15.unet)
    seen: list[str] = []
    before = state(sd15)
    output = Backbone(sd15).session().forward(latents, CAPTIONS[:1], 100, 0, lambda _, call: seen.append(call.block))
    assert torch.equal(output, expected)
    assert len(seen) == 2 * len(backbone.blocks)
    assert state(sd15) == before


def test_two_threads_share_one_pipeline(pipeline: Any, image: Make) -> None:
    warm(pipeline)
    before = state(pipeline)
    backbones = [Backbone(pipeline), Backbone(pipeline)]
    latents = backbones[0].latents([image()], SIZE)
    expected = [backbones[0].session().forward(latents, [caption], 100, 0, ignore) for caption in CAPTIONS]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(4):
            output = backbones[index].session().forward(latents, [CAPTIONS[index]], 100, 0, ignore)
            if not torch.equal(output, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert state(pipeline) == before


def test_a_pass_may_end_with_the_last_attention(pipeline: Any, image: Make) -> None:
    backbone = Backbone(pipeline)
    latents = backbone.latents([image()], SIZE)
    ends: list[str] = []
    pipeline.unet.conv_out.register_forward_hook(lambda *_: ends.append("conv_out"))
    seen: dict[bool, list[AttentionCall]] = {False: [], True: []}
    outputs = [
        backbone.session().forward(
            latents, CAPTIONS[:1], 100, 0, lambda _, call, to=seen[early]: to.append(call), early
        )
        for early in (False, True)
    ]
    assert outputs[0] is not None
    assert outputs[1] is None
    assert ends == ["conv_out"]
    for complete, short in zip(seen[False], seen[True], strict=True):
        assert (complete.block, complete.kind) == (short.block, short.kind)
        assert torch.equal(complete.q, short.q)
    # Parts that are moved to and fro have to be put back, so there the pass is whole.
    pipeline.unet.mid_block._hf_hook = object()
    assert backbone.session().forward(latents, CAPTIONS[:1], 100, 0, ignore, stop_early=True) is not None


def test_a_run_groups_what_can_share_a_pass(sd15: Any, image: Make) -> None:
    backbone, batches = Backbone(sd15), list[int]()
    sd15.unet.conv_in.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    seen: dict[int, list[AttentionCall]] = {}

    def item(index: int, size: tuple[int, int], caption: str, timestep: int = 100, seed: int = 0) -> BatchItem:
        sink = seen.setdefault(index, []).append
        return BatchItem(backbone.latents([image(seed=index)], size), size, caption, timestep, seed, sink)

    wide, tall = (64, 96), (96, 64)
    items = [
        item(0, wide, CAPTIONS[0]),
        item(1, tall, CAPTIONS[0]),
        item(2, wide, CAPTIONS[1]),
        item(3, wide, CAPTIONS[0]),
        item(4, wide, CAPTIONS[0], timestep=50),
        item(5, wide, CAPTIONS[0], seed=1),
    ]
    backbone.session().run(items, batch=2)
    assert batches == [2, 1, 1, 1, 1]
    # Each row's attention goes to its own sink, as if it had been alone.
    for index, row in enumerate(items):
        alone: list[AttentionCall] = []
        backbone.session().run([replace(row, sink=alone.append)], batch=1)
        assert [call.block for call in seen[index]] == [call.block for call in alone]
        for ours, theirs in zip(seen[index], alone, strict=True):
            torch.testing.assert_close(ours.q, theirs.q, rtol=1e-4, atol=1e-5)


def test_a_session_keeps_the_last_captions(sd15: Any) -> None:
    spy, session = Spy(sd15.text_encoder), Backbone(sd15).session()
    captions = [f"thing number {index}" for index in range(MAX_PROMPTS + 1)]
    for caption in captions:
        session.prompt(caption)
    encoded = len(spy.calls)
    session.prompt(captions[-1])
    assert len(spy.calls) == encoded == len(captions)
    session.prompt(captions[0])
    assert len(spy.calls) == encoded + 1
