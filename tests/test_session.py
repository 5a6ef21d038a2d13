"""GenerationSession: every denoiser call, row by row, and observers that answer."""

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPanoramaPipeline,
    StableDiffusionPipeline,
)
from torch import Tensor

from goca import GocaError, trace
from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.backbone import Backbone
from goca.diffusion.denoiser_call import DenoiserCall
from goca.diffusion.loading import quiet
from goca.diffusion.own_calls import step_number
from goca.diffusion.session import GenerationSession, check_generation
from goca.testing.tiny import BUILDERS
from goca.tracing.observer import TraceObserver
from goca.tracing.steps import plan_for

PROMPTS = ["a cat on grass", "a dog"]
NEGATIVE = ["an ugly cat", "bad"]
ONE_BATCH, TWO_CALLS = ["sd15", "pixart_sigma", "z_image"], ["flux", "wan", "qwen_image"]
# Where the scale counts from 1.
OFFSET = {"z_image": 1.0}


class Recorder:
    """Remembers every call, the branches' attention and the prediction's shape, and leaves the prediction alone."""

    def __init__(self) -> None:
        self.calls: list[DenoiserCall] = []
        self.attention: list[dict[int, int]] = []
        self.shapes: list[tuple[int, ...]] = []

    def begin(self, call: DenoiserCall) -> Sink:
        self.calls.append(call)
        self.attention.append({})
        seen = self.attention[-1]

        def take(row: int, attention: AttentionCall) -> None:
            seen[row] = seen.get(row, 0) + 1

        return take

    def end(self, call: DenoiserCall, noise_pred: Tensor) -> None:
        assert call is self.calls[-1]
        self.shapes.append(tuple(noise_pred.shape))


class ConstantRate:
    """Guidance by a constant rate: u + scale * (c - u) becomes u + scale * rate * (c - u)."""

    def __init__(self, scale: float, rate: float) -> None:
        self.scale, self.rate = scale, rate
        self._cond: tuple[int, Tensor] | None = None

    def begin(self, call: DenoiserCall) -> None:
        return None

    def end(self, call: DenoiserCall, noise_pred: Tensor) -> Tensor | None:
        cond, uncond = call.rows_of("cond"), call.rows_of("uncond")
        if cond:
            self._cond = call.evaluation, noise_pred[list(cond)]
        if not uncond or self.rate == 1:
            return None
        assert self._cond is not None
        evaluation, prediction = self._cond
        assert evaluation == call.evaluation
        answer = noise_pred.clone()
        rows = list(uncond)
        answer[rows] -= self.scale / (self.scale - 1) * (self.rate - 1) * (prediction - noise_pred[rows])
        return answer


def make(pipeline: Any, scale: float = 3.0, **options: Any) -> Tensor:
    arguments = {
        "prompt": list(PROMPTS),
        "negative_prompt": list(NEGATIVE),
        "height": 64,
        "width": 96,
        "num_inference_steps": 3,
        "output_type": "np",
        "generator": [torch.Generator().manual_seed(seed) for seed in range(2)],
        **options,
    }
    kind = type(pipeline).__name__
    arguments["true_cfg_scale" if kind in ("FluxPipeline", "QwenImagePipeline") else "guidance_scale"] = scale
    arguments |= {"num_frames": 1} if "Wan" in kind else {}
    arguments |= {"use_resolution_binning": False} if "PixArt" in kind else {}
    return torch.as_tensor(pipeline(**arguments)[0])


def build(name: str) -> Any:
    with quiet():
        pipeline = BUILDERS[name]()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def panorama() -> Any:
    pipeline = StableDiffusionPanoramaPipeline(**build("sd15").components, requires_safety_checker=False)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def session(pipeline: Any, *observers: Any) -> GenerationSession:
    return GenerationSession(Backbone(pipeline, check=check_generation), observers)


@pytest.mark.parametrize("name", [*ONE_BATCH, *TWO_CALLS])
def test_every_row_has_its_image_branch_and_prompt(name: str) -> None:
    pipeline, recorder = build(name), Recorder()
    with quiet(), session(pipeline, recorder) as observed:
        images = make(pipeline)
    cond = [("cond", image, prompt) for image, prompt in enumerate(PROMPTS)]
    uncond = [("uncond", image, prompt) for image, prompt in enumerate(NEGATIVE)]
    batches = [cond, uncond] if name in TWO_CALLS else [cond + uncond if name == "z_image" else uncond + cond]
    rows = [[(row.branch, row.image, row.prompt and row.prompt.prompt) for row in call.rows] for call in recorder.calls]
    assert rows == batches * 3
    assert [call.step for call in recorder.calls] == [step for step in range(3) for _ in batches]
    assert [call.evaluation for call in recorder.calls] == [call.step for call in recorder.calls]
    assert {call.latent_size for call in recorder.calls} == {
        (64 // Backbone(pipeline).vae_scale_factor, 96 // Backbone(pipeline).vae_scale_factor)
    }
    for call, attention, shape in zip(recorder.calls, recorder.attention, recorder.shapes, strict=True):
        assert len(shape) >= 3
        assert shape[0] == len(call.rows)
        # Every row's attention is there to be taken.
        assert set(attention) == set(range(len(call.rows)))
    assert len(observed.images[0]) == len(images)


@pytest.mark.parametrize("name", ["sd15", "flux", "pixart_sigma", "z_image"])
def test_both_branches_have_the_tokens_of_their_words(name: str) -> None:
    pipeline, recorder = build(name), Recorder()
    with quiet(), session(pipeline, recorder):
        make(pipeline)
    for row in (row for call in recorder.calls for row in call.rows):
        assert row.prompt is not None
        for tokens in row.prompt.texts:
            words = [
                tokens.text[a:b].strip().lower()
                for (a, b), special in zip(tokens.offsets, tokens.special, strict=True)
                if not special
            ]
            assert "".join(words) == row.prompt.prompt.replace(" ", "")
        assert row.prompt.texts
    if name == "sd15":
        (tokens,) = recorder.calls[0].rows_of("uncond")[0].prompt.texts
        assert tokens.special[0]
        assert not tokens.special[1]


def test_a_negative_prompt_that_is_the_prompt_of_another_image_has_its_tokens() -> None:
    pipeline, recorder = build("sd15"), Recorder()
    with session(pipeline, recorder):
        make(pipeline, negative_prompt=[PROMPTS[1], "bad"])
    rows = recorder.calls[0].rows
    assert [row.prompt.prompt for row in rows] == [PROMPTS[1], "bad", *PROMPTS]
    assert rows[0].prompt.texts == rows[3].prompt.texts
    assert [tokens.text for tokens in rows[1].prompt.texts] == ["bad"]


@pytest.mark.parametrize("name", ["sd15", "flux_schnell"])
def test_a_negative_prompt_that_is_the_prompt(name: str) -> None:
    pipeline, recorder = build(name), Recorder()
    with quiet(), session(pipeline, recorder):
        make(pipeline, negative_prompt=list(PROMPTS))
    branches = [row.branch for call in recorder.calls[: len(recorder.calls) // 3] for row in call.rows]
    assert branches == (["cond"] * 2 + ["uncond"] * 2 if name == "flux_schnell" else ["uncond"] * 2 + ["cond"] * 2)


def test_without_guidance_all_rows_are_the_prompts() -> None:
    pipeline, recorder = build("sd15"), Recorder()
    with session(pipeline, recorder):
        make(pipeline, scale=1.0)
    assert [[row.branch for row in call.rows] for call in recorder.calls] == [["cond", "cond"]] * 3


def test_embeddings_of_a_negative_prompt_have_no_words() -> None:
    pipeline, recorder = build("sd15"), Recorder()
    unwanted, _ = pipeline.encode_prompt("bad", "cpu", 1, False)
    with session(pipeline, recorder):
        make(pipeline, prompt="a cat", negative_prompt=None, negative_prompt_embeds=unwanted, generator=None)
    uncond, cond = recorder.calls[0].rows
    assert (cond.branch, uncond.branch) == ("cond", "uncond")
    assert (cond.prompt.prompt, uncond.prompt.texts) == ("a cat", ())


@pytest.mark.parametrize("name", ["sd15", "z_image", "pixart_sigma"])
def test_an_empty_negative_prompt_has_special_tokens_alone(name: str) -> None:
    pipeline, recorder = build(name), Recorder()
    with quiet(), session(pipeline, recorder):
        make(pipeline, negative_prompt=["", ""], num_inference_steps=2)
    rows = recorder.calls[0].rows_of("uncond").values()
    assert [row.prompt.prompt for row in rows] == ["", ""]
    assert all(tokens.special and all(tokens.special) for row in rows for tokens in row.prompt.texts)
    assert all(row.prompt.texts for row in rows)


# --- steps


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [
        (DDIMScheduler, [0, 1, 2, 3]),
        (EulerDiscreteScheduler, [0, 1, 2, 3]),
        (DPMSolverMultistepScheduler, [0, 1, 2, 3]),
        # The last step has no second evaluation.
        (HeunDiscreteScheduler, [0, 0, 1, 1, 2, 2, 3]),
        (KDPM2DiscreteScheduler, [0, 0, 1, 1, 2, 2, 3]),
        # The first step is taken again.
        (PNDMScheduler, [0, 0, 1, 2, 3]),
    ],
)
def test_steps_are_counted_as_the_scheduler_does(scheduler: Any, steps: list[int]) -> None:
    pipeline, recorder = build("sd15"), Recorder()
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    with session(pipeline, recorder):
        make(pipeline, num_inference_steps=4)
    assert [call.step for call in recorder.calls] == steps
    assert [call.evaluation for call in recorder.calls] == list(range(len(steps)))
    assert [call.timestep for call in recorder.calls] == pipeline.scheduler.timesteps.tolist()


def test_runge_kutta_steps_of_pndm_have_four_evaluations() -> None:
    scheduler = PNDMScheduler()
    scheduler.set_timesteps(6)
    steps = [step_number(scheduler, evaluation) for evaluation in range(len(scheduler.timesteps))]
    assert steps == [0] * 4 + [1] * 4 + [2] * 4 + [3, 4, 5]


def test_timesteps_of_a_sampler_that_ends_early() -> None:
    pipeline, recorder = build("sdxl"), Recorder()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    with session(pipeline, recorder):
        make(pipeline, num_inference_steps=10, denoising_end=0.5, output_type="latent")
    assert [call.step for call in recorder.calls] == [0, 1, 2, 3, 4]
    assert [call.timestep for call in recorder.calls] == pipeline.scheduler.timesteps.tolist()[:5]


# --- more than one pass a step


class Thorough(StableDiffusionPipeline):
    """With further passes in each evaluation: one as the prompt's own but for an option, and one of other latents."""

    @torch.no_grad()
    def __call__(self, prompt: str, further: bool) -> None:
        embedded, negative = self.encode_prompt(prompt, "cpu", 1, True)
        self.scheduler.set_timesteps(3)
        latents = self.prepare_latents(1, 4, 64, 96, torch.float32, "cpu", torch.Generator().manual_seed(0))
        for timestep in self.scheduler.timesteps:
            rows = self.scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            uncond, cond = self.unet(rows, timestep, torch.cat([negative, embedded]))[0].chunk(2)
            if further:
                self.unet(rows[1:], timestep, embedded, attention_mask=None)
                self.unet(rows[1:] + 1, timestep, embedded)
            latents = self.scheduler.step(uncond + 3 * (cond - uncond), timestep, latents).prev_sample


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler])
def test_passes_beside_the_prompt_s_own_are_neither_branch(scheduler: Any) -> None:
    pipeline = Thorough(**build("sd15").components, requires_safety_checker=False)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    plain, recorder = Recorder(), Recorder()
    with session(pipeline, plain):
        pipeline("a cat", further=False)
    with session(pipeline, recorder):
        pipeline("a cat", further=True)
    assert recorder.calls[::3] == plain.calls
    further = [call for number, call in enumerate(recorder.calls) if number % 3]
    assert {row.branch for call in further for row in call.rows} == {"other"}
    assert [call.evaluation for call in recorder.calls] == [call.evaluation for call in plain.calls for _ in range(3)]


class Loop(StableDiffusionPipeline):
    """A loop over any of the scheduler's timesteps, unguided, that may give several rows of an image in one pass."""

    @torch.no_grad()
    def __call__(self, prompt: str, order: list[int], rows: int = 1, steps_itself: bool = False) -> None:
        embedded, _ = self.encode_prompt(prompt, "cpu", 1, False)
        self.scheduler.set_timesteps(3)
        latents = self.prepare_latents(1, 4, 64, 96, torch.float32, "cpu", torch.Generator().manual_seed(0))
        for index in order:
            timestep = self.scheduler.timesteps[index]
            noise = self.unet(torch.cat([latents] * rows), timestep, torch.cat([embedded] * rows))[0][:1]
            latents = latents - noise if steps_itself else self.scheduler.step(noise, timestep, latents).prev_sample


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2], [0, 1, 0, 1, 2], [0, 1, 2, 1, 2]])
@pytest.mark.parametrize("steps_itself", [False, True])
def test_steps_of_a_sampler_that_goes_back(order: list[int], steps_itself: bool) -> None:
    pipeline, recorder = Loop(**build("sd15").components, requires_safety_checker=False), Recorder()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    with session(pipeline, recorder):
        pipeline("a cat", order, steps_itself=steps_itself)
    assert [call.timestep for call in recorder.calls] == pipeline.scheduler.timesteps[order].tolist()
    assert [call.step for call in recorder.calls] == [index - order[0] for index in order]
    assert [[row.branch for row in call.rows] for call in recorder.calls] == [["cond"]] * len(order)


def test_several_rows_of_one_image_and_prompt() -> None:
    pipeline = Loop(**build("sd15").components, requires_safety_checker=False)
    with (
        session(pipeline, Recorder()),
        pytest.raises(GocaError, match=r"Loop .* several rows of the same prompt for each"),
    ):
        pipeline("a cat", [0], rows=2)


def test_skip_layer_guidance_is_neither_branch() -> None:
    pipeline, recorder = build("sd3"), Recorder()
    skipped = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    with quiet(), session(pipeline, recorder):
        make(pipeline, **skipped)
    branches = [[row.branch for row in call.rows] for call in recorder.calls]
    guided, other = ["uncond"] * 2 + ["cond"] * 2, ["other"] * 2
    assert branches == [guided, guided, other, guided, other]
    assert [call.step for call in recorder.calls] == [0, 1, 1, 2, 2]


# --- observers that answer


@pytest.mark.parametrize("name", ["sd15", "pixart_sigma", "z_image", "flux", "wan"])
def test_a_constant_rate_is_guidance_at_another_scale(name: str) -> None:
    pipeline, offset = build(name), OFFSET.get(name, 0.0)
    with quiet():
        plain, stronger = make(pipeline, 4.0 - offset), make(pipeline, 6.0 - offset)
        with session(pipeline, ConstantRate(4.0, 1.0)):
            assert torch.equal(make(pipeline, 4.0 - offset), plain)
        with session(pipeline, ConstantRate(4.0, 1.5)):
            guided = make(pipeline, 4.0 - offset)
    assert not torch.allclose(plain, stronger, atol=1e-3)
    torch.testing.assert_close(guided, stronger, rtol=0, atol=1e-4)


def test_a_trace_and_guidance_share_a_session() -> None:
    pipeline = build("sd15")
    backbone = Backbone(pipeline, check=check_generation)
    plans = plan_for(backbone)
    tracing = TraceObserver(plans("goca"), plans, backbone.vae_scale_factor, None)
    with trace(pipeline, steps=[0]) as alone:
        plain = make(pipeline, 6.0)
    with GenerationSession(backbone, [tracing, ConstantRate(4.0, 1.5)]):
        guided = make(pipeline, 4.0)
    torch.testing.assert_close(guided, plain, rtol=0, atol=1e-4)
    first, _ = tracing.generations[0]
    assert first.steps[0] == alone[0].steps[0]


def test_an_observer_is_given_what_those_before_it_left() -> None:
    pipeline, seen = build("sd15"), []

    class Adds:
        def begin(self, call: DenoiserCall) -> None:
            return None

        def end(self, call: DenoiserCall, noise_pred: Tensor) -> Tensor:
            seen.append(noise_pred)
            return noise_pred + 1

    with session(pipeline, Adds(), Adds()):
        make(pipeline, num_inference_steps=1)
    assert torch.equal(seen[1], seen[0] + 1)


def test_an_output_that_is_no_tuple_is_answered_in_kind() -> None:
    pipeline, outputs, seen = panorama(), [], []

    class Doubles:
        def begin(self, call: DenoiserCall) -> None:
            return None

        def end(self, call: DenoiserCall, noise_pred: Tensor) -> Tensor:
            seen.append(noise_pred)
            return 2 * noise_pred

    with session(pipeline, Doubles()):
        handle = pipeline.unet.register_forward_hook(lambda module, args, output: outputs.append(output))
        pipeline("a cat", height=128, width=128, num_inference_steps=1)
        handle.remove()
    assert type(outputs[0]).__name__ == "UNet2DConditionOutput"
    assert torch.equal(outputs[0].sample, 2 * seen[0])


@pytest.mark.parametrize(
    ("answer", "described"),
    [
        (lambda prediction: prediction[:1], "a tensor of shape \\(1, 4, 32, 48\\)"),
        (lambda prediction: prediction[..., None], "a tensor of shape \\(2, 4, 32, 48, 1\\)"),
        (lambda prediction: prediction.double(), "torch.float64"),
        (lambda prediction: prediction.to("meta"), "on meta"),
        (lambda prediction: prediction.numpy(), "returned ndarray"),
        (lambda prediction: (prediction,), "returned tuple"),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_an_answer_that_the_pipeline_could_not_go_on_with(answer: Any, described: str, last: bool) -> None:
    pipeline, recorder = build("sd15"), Recorder()

    class Careless(ConstantRate):
        def end(self, call: DenoiserCall, noise_pred: Tensor) -> Any:
            return answer(noise_pred)

    observers = [recorder, Careless(1.0, 1.0)] if last else [Careless(1.0, 1.0), recorder]
    expected = rf"Careless\.end returned .*{described}.* but the prediction is a tensor of shape \(2, 4, 32, 48\)"
    with (
        session(pipeline, *observers),
        pytest.raises(GocaError, match=f"(?s){expected}" if "returned" not in described else described),
    ):
        make(pipeline, prompt="a cat", negative_prompt=None, generator=None)
    assert len(recorder.shapes) == (1 if last else 0)
    with session(pipeline, recorder):
        make(pipeline, num_inference_steps=1)
    assert recorder.calls[-1].generation == 0


def test_a_call_that_fails_is_not_ended() -> None:
    pipeline, recorder = build("sd15"), Recorder()
    handle = pipeline.unet.conv_out.register_forward_pre_hook(lambda *args: 1 / 0)
    with session(pipeline, recorder) as observed:
        with pytest.raises(ZeroDivisionError):
            make(pipeline)
        handle.remove()
        make(pipeline)
    assert [call.generation for call in recorder.calls] == [0, 1, 1, 1]
    assert len(recorder.shapes) == 3
    assert list(observed.images) == [1]
