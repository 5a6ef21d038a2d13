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
)
from torch import Tensor

from goca import trace
from goca.diffusion.attention_call import AttentionCall, Sink
from goca.diffusion.backbone import Backbone
from goca.diffusion.denoiser_call import DenoiserCall
from goca.diffusion.loading import quiet
from goca.diffusion.session import GenerationSession, check_generation, step_number
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
    pipeline = build("sd15")

    class Doubles:
        def begin(self, call: DenoiserCall) -> None:
            return None

        def end(self, call: DenoiserCall, noise_pred: Tensor) -> Tensor:
            return 2 * noise_pred

    pipeline.scheduler.set_timesteps(1)
    embedded, _ = pipeline.encode_prompt("a cat", "cpu", 1, False)
    latent = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    plain = pipeline.unet(latent, 5, embedded)
    with session(pipeline, Doubles()):
        embedded, _ = pipeline.encode_prompt("a cat", "cpu", 1, False)
        doubled = pipeline.unet(latent, 5, embedded)
    assert type(doubled) is type(plain)
    assert torch.equal(doubled.sample, 2 * plain.sample)


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
