"""Guidance by regions: on every family that guides, the identities that hold of constant rates, and its settings."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from PIL import Image
from torch import Tensor

from goca import GOCA, GOCA_BALANCED, GocaError, Recipe, guide, trace
from goca.diffusion.families import family_of
from goca.diffusion.loading import load, quiet
from goca.guidance.regions import Columns, SpecialTokens
from goca.maths import guidance as maths
from goca.testing.tiny import BUILDERS
from goca.text.tokens import Tokens

PROMPTS = ["a cat on grass", "a dog"]
NEGATIVE = ["an ugly cat", "bad"]
UNGUIDED = {"flux2"}
SCALE = 4.0


def build(name: str) -> Any:
    if name == "kolors":
        pytest.importorskip("sentencepiece")
    with quiet():
        pipeline = load("bundled", None, None, None, None) if name == "bundled" else BUILDERS[name]()
    pipeline.set_progress_bar_config(disable=True)
    if name == "flux2_klein":
        pipeline.register_to_config(is_distilled=False)
    return pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return build("bundled")


def make(pipeline: Any, scale: float = SCALE, images: int = 1, **options: Any) -> Tensor:
    """Latents of the first prompts after two steps, at a scale as u + scale (c - u) has it."""
    parameters = inspect.signature(pipeline.__call__).parameters
    name = "true_cfg_scale" if "true_cfg_scale" in parameters else "guidance_scale"
    family = family_of(pipeline)
    assert family is not None
    arguments = {
        "prompt": PROMPTS[:images],
        "negative_prompt": NEGATIVE[:images],
        "height": 64,
        "width": 96,
        "num_inference_steps": 2,
        "num_frames": 1,
        "guidance_rescale": 0.3,
        name: scale - family.guidance_offset,
        "use_resolution_binning": False,
        "enable_prompt_rewrite": False,
        "output_type": "latent",
        "generator": [torch.Generator().manual_seed(seed) for seed in range(images)],
        **options,
    }
    return torch.as_tensor(pipeline(**{key: value for key, value in arguments.items() if key in parameters})[0])


def close(ours: Tensor, theirs: Tensor, relative: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=relative * float(theirs.abs().max()))


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in UNGUIDED])
def test_every_family_is_guided(name: str) -> None:
    pipeline = build(name)
    stock = make(pipeline)
    with guide(pipeline, rate=1.0) as guided:
        assert torch.equal(make(pipeline), stock)
    assert [pytest.approx(scale, rel=1e-4) for (scale,) in guided.effective_scales] == [SCALE, SCALE]
    with guide(pipeline, rate=1.5):
        ours = make(pipeline)
    close(ours, make(pipeline, 1.5 * SCALE))
    with guide(pipeline) as guided:
        image = make(pipeline)
    assert image.isfinite().all()
    assert not torch.equal(image, stock)
    assert [step.step for step in guided.steps] == [0, 1]
    names = guided.region_names[0]
    assert "a" in names.values()
    for rates, regions in zip(guided.rates, guided.regions, strict=True):
        assert regions is not None
        assert rates.shape == regions.shape
        assert rates.shape[1] < rates.shape[2]
        assert 0.79 < rates.min() <= rates.max() < 3.01
        assert set(np.unique(regions)) <= names.keys()


@pytest.mark.parametrize("scheduler", [PNDMScheduler, HeunDiscreteScheduler])
def test_samplers_that_evaluate_twice(pipe: Any, scheduler: Any) -> None:
    options = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    again = type(pipe)(**{**pipe.components, "scheduler": scheduler.from_config(pipe.scheduler.config, **options)})
    again.set_progress_bar_config(disable=True)
    with guide(again, rate=1.5) as guided:
        ours = make(again, num_inference_steps=3)
    close(ours, make(again, 1.5 * SCALE, num_inference_steps=3))
    steps = [step.step for step in guided.steps]
    assert steps == ([0, 0, 1, 2] if scheduler is PNDMScheduler else [0, 0, 1, 1, 2])


@pytest.mark.parametrize("name", ["sd15", "z_image", "wan", "flux"])
def test_images_of_a_batch_are_guided_as_alone(name: str) -> None:
    pipeline = build(name)
    per_prompt = {} if name == "wan" else {"num_images_per_prompt": 2}  # wan has another name for it
    count = 2 * per_prompt.get("num_images_per_prompt", 1)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(count)]
    with guide(pipeline) as guided:
        batch = make(pipeline, images=2, generator=seeds, **per_prompt)
    with guide(pipeline) as alone:
        generator = [torch.Generator().manual_seed(count - 1)]
        single = make(pipeline, prompt=PROMPTS[1:], negative_prompt=NEGATIVE[1:], generator=generator)
    # In a batch sums are rounded otherwise, and a pixel between two regions may fall to the other.
    same = (batch[-1] - single[0]).abs() <= 1e-4 * single.abs().max()
    assert same.float().mean() > 0.98
    assert np.mean(guided.regions[1][-1] == alone.regions[1][0]) > 0.98  # type: ignore[index]
    assert guided.region_names[count - 1] == alone.region_names[0]
    assert guided.rates[0].shape[0] == len(guided.effective_scales[0]) == len(guided.region_names) == count


def test_guided_away_from_zeros() -> None:
    pipeline = build("sdxl")
    assert pipeline.config.force_zeros_for_empty_prompt
    with guide(pipeline) as guided:
        assert make(pipeline, negative_prompt=None).isfinite().all()
    assert len(guided.steps) == 2


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_images_that_start_from_another(kind: Any) -> None:
    again = kind(**build("sd15").components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    image = Image.fromarray(np.arange(64 * 96 * 3, dtype=np.uint8).reshape(64, 96, 3))
    options = {"image": image, "mask_image": image.convert("L"), "strength": 0.5, "num_inference_steps": 4}
    with guide(again, rate=1.5):
        ours = make(again, **options)
    close(ours, make(again, 1.5 * SCALE, **options))
    with guide(again) as guided:
        assert not torch.equal(make(again, **options), ours)
    assert [step.step for step in guided.steps] == [0, 1]


def test_the_scale_that_a_callback_sets_is_followed(pipe: Any) -> None:
    def weaken(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipeline._guidance_scale = factor * 2.0
        return tensors

    factor = 1.0
    with guide(pipe, rate=1.5) as guided:
        ours = make(pipe, callback_on_step_end=weaken)
    factor = 1.5
    close(ours, make(pipe, 1.5 * SCALE, callback_on_step_end=weaken))
    assert [step.scale for step in guided.steps] == [SCALE, 2.0]


def test_a_trace_beside_a_guide_sees_what_it_sees_alone(pipe: Any) -> None:
    stock = make(pipe)
    with trace(pipe) as alone:
        make(pipe)
    with guide(pipe) as guided:
        image = make(pipe)
    with trace(pipe) as outer, guide(pipe, rate=1.0):
        assert torch.equal(make(pipe), stock)
    with guide(pipe, rate=1.0), trace(pipe) as inner:
        assert torch.equal(make(pipe), stock)
    for tr in (outer, inner):
        assert torch.equal(tr[0].attention.total, alone[0].attention.total)
        assert tr.steps == alone.steps
    with trace(pipe) as outer, guide(pipe) as again:
        assert torch.equal(make(pipe), image)
    assert again.steps[1].effective_scales == guided.steps[1].effective_scales
    assert len(outer) == 1
    # Each is over when its own block is.
    with trace(pipe) as outer:
        with guide(pipe, rate=2.0) as again:
            make(pipe)
        assert torch.equal(make(pipe), stock)
    assert (len(outer), len(again.steps)) == (2, 2)
    assert torch.equal(make(pipe), stock)


def test_attention_is_read_at_some_steps_and_rates_are_taken_at_all(pipe: Any) -> None:
    with guide(pipe, every=2) as guided:
        make(pipe, num_inference_steps=4)
    first, same, later, _ = guided.regions
    assert first is not None
    assert later is not None
    assert np.array_equal(first, same)
    assert not np.array_equal(first, later)
    assert not np.array_equal(guided.rates[0], guided.rates[1])
    with guide(pipe, steps=range(2, 4)) as guided:
        make(pipe, num_inference_steps=4)
    assert [step.step for step in guided.steps] == [2, 3]
    with pytest.warns(UserWarning, match="nothing was guided"), guide(pipe, steps=[9]):
        assert torch.equal(make(pipe), make(pipe))


def test_a_constant_rate_and_a_layout_read_no_attention(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goca.diffusion.backbone.Backbone.attention_hook", None)
    for settings in ({"rate": 2.0}, {"recipe": None}, {"masks": np.eye(4, dtype=int)[[0, 1, 2, 3]]}):
        with guide(pipe, **settings) as guided:  # type: ignore[arg-type]
            make(pipe, height=64, width=64)
        assert len(guided.steps) == 2


def test_a_layout_has_one_rate_for_each_label(pipe: Any) -> None:
    left = np.zeros((32, 48), dtype=np.uint8)
    left[:, 12:] = 7
    with guide(pipe, masks=[left, left[:, ::-1]], smooth=False, clamp=None, limit=None) as guided:
        make(pipe, images=2)
    for rates, regions in zip(guided.rates, guided.regions, strict=True):
        assert regions is not None
        assert np.array_equal(regions[0], left[::2, ::2])
        assert np.array_equal(regions[1], regions[0][:, ::-1])
        for image in (0, 1):
            in_front, behind = (np.unique(rates[image][regions[image] == label]) for label in (7, 0))
            assert in_front.tolist() == [1.0]  # all foreground
            assert len(behind) == 1
            assert behind[0] > 0


def test_clamps_and_smoothing_are_switches(pipe: Any) -> None:
    def rates(**settings: Any) -> Any:
        with guide(pipe, None, **settings) as guided:
            make(pipe)
        return guided.rates[0][0]

    free = rates(clamp=None, limit=None, smooth=False)
    assert free.max() > 1.5
    bounded = rates(clamp=(0.9, 1.5), limit=None, smooth=False)
    np.testing.assert_allclose(bounded, free.clip(0.9, 1.5), rtol=1e-3)
    np.testing.assert_allclose(rates(clamp=None, limit=SCALE, smooth=False), free.clip(max=1.0), rtol=1e-3)
    smooth = maths.smoothed(torch.from_numpy(bounded.astype(np.float32)))
    np.testing.assert_allclose(rates(clamp=(0.9, 1.5), limit=None), smooth, rtol=2e-3)


def test_recipes_make_other_regions_and_an_empty_prompt_none(pipe: Any) -> None:
    regions = []
    for recipe in (GOCA, GOCA_BALANCED, "vanilla", "daam"):
        with guide(pipe, recipe) as guided:
            make(pipe)
        assert guided.regions[0] is not None
        regions.append(guided.regions[0])
    assert not np.array_equal(regions[0], regions[2])
    with guide(pipe) as guided:
        make(pipe, prompt=["", "a cat"], images=2)
    assert (guided.rates[0][0] == 1).all()
    assert not (guided.rates[0][1] == 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.0}, "rate 0.0 is not a positive number"),
        ({"rate": float("nan")}, "rate nan is not"),
        ({"rate": 2.0, "masks": np.eye(2, dtype=int)}, "rate and masks both"),
        ({"masks": np.eye(2)}, r"masks of shape \(2, 2\) and type float64 are not label maps"),
        ({"masks": np.arange(4)}, r"masks of shape \(4,\)"),
        ({"masks": -np.eye(2, dtype=int)}, "labels from -1 to 0"),
        ({"masks": []}, "masks is an empty list"),
        ({"masks": Image.new("RGB", (8, 8))}, r"masks of shape \(8, 8, 3\)"),
        ({"clamp": (3.0, 1.0)}, r"clamp \(3.0, 1.0\) is not \(least, most\) rate"),
        ({"limit": -1.0}, "limit -1.0 is not a positive number"),
        ({"steps": []}, "are not sampling steps"),
        ({"every": 0}, "every 0"),
        ({"recipe": "goca-open"}, 'recipe "goca-open" measures evidence'),
        ({"recipe": Recipe(keys="side")}, 'recipe "custom" needs classes beside'),
        ({"recipe": "concept-attention"}, 'recipe "concept-attention" weighs nouns'),
        ({"recipe": "nonsense"}, "no recipe"),
    ],
)
def test_a_mistake_is_refused_before_anything_runs(pipe: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GocaError, match=message):
        guide(pipe, **settings)


def test_a_guide_inside_another_is_refused(pipe: Any) -> None:
    with guide(pipe, rate=2.0), pytest.raises(GocaError, match="leave one of the two out"), guide(pipe):
        pass
    stock = make(pipe)
    with guide(pipe, rate=1.0):
        assert torch.equal(make(pipe), stock)


def test_a_call_without_guidance_is_refused(pipe: Any) -> None:
    stock = make(pipe)
    with pytest.raises(GocaError, match="give it a guidance_scale above 1, and a model"), guide(pipe):
        make(pipe, scale=1.0)
    masks = np.eye(4, dtype=int)
    with pytest.raises(GocaError, match="4 x 4 has another aspect"), guide(pipe, masks=masks):
        make(pipe)
    with pytest.raises(GocaError, match="3 masks were given for 1 images"), guide(pipe, masks=[masks] * 3):
        make(pipe, width=64)
    assert torch.equal(make(pipe), stock)
    flux = build("flux")
    with pytest.raises(GocaError, match="a true_cfg_scale above 1 and a negative_prompt"), guide(flux):
        make(flux, negative_prompt=None)
    distilled = build("flux2_klein")
    distilled.register_to_config(is_distilled=True)
    with pytest.raises(GocaError, match="a model that is not distilled"), guide(distilled):
        make(distilled)
    with pytest.raises(GocaError, match="has no classifier-free guidance"):
        guide(build("flux2"))


def test_templates_and_padding_do_not_compete() -> None:
    specials = {"llm": SpecialTokens(frozenset({1}), frozenset({2}), frozenset({0})), "t5": SpecialTokens()}
    # Padding, start, a template of 4 characters, then "a cat" with a lone gap, the template's end and an end token.
    offsets = ((0, 0), (0, 0), (0, 4), (4, 5), (5, 6), (6, 9), (9, 12), (12, 12))
    flags = (True, True, True, False, True, False, True, True)
    text = Tokens("    a cat   ", offsets, flags, 10, (0, 1, 9, 5, 6, 7, 9, 2), "llm")
    other = Tokens("a cat", ((0, 1), (0, 1), (2, 5)), (True, False, False), 40, (6, 7, 8), "t5")
    columns = Columns.of([text, other], specials)
    assert columns == Columns((11, 13, 14, 15, 40, 41, 42), (13, 15, 41, 42), 11, 17)
    # Cut off, a start token cannot be attended to.
    cut = Columns.of([Tokens(text.text, offsets, flags, -3, text.ids, "llm")], specials)
    assert cut == Columns((0, 1, 2), (0, 2), None, 4)


def test_effective_scales_and_rates_by_hand() -> None:
    u, c = torch.zeros(3, 1, 2), torch.tensor([[[3.0, 0.0]], [[4.0, 0.0]], [[0.0, 10.0]]])
    energy = maths.energy(c - u)
    assert energy.tolist() == [[5.0, 10.0]]
    assert maths.effective_scale(torch.tensor([[2.0, 1.0]]), energy, 3.0) == pytest.approx((6 * 25 + 3 * 100) / 125)
    regions = torch.tensor([[[True, False]], [[True, True]], [[False, False]]])
    foreground = torch.tensor([[False, True]])
    assert maths.region_rates(energy, regions, foreground).tolist() == pytest.approx([2.0, 10 / 7.5, 0.0])
    both = maths.rate_of_regions(energy, regions, foreground)
    assert both[0].tolist() == pytest.approx([2 + 10 / 7.5, 10 / 7.5])  # a pixel of two regions has both their rates
    assert not maths.rate_of_regions(energy, regions, torch.zeros_like(foreground)).any()
    assert maths.rate_of_energy(energy)[0].tolist() == pytest.approx([1.5, 0.75])
    # Only where scale is above 18.75 does the order of the two bounds matter.
    assert maths.clamped(torch.tensor([[0.1, 9.0]]), (0.8, 3.0), 15.0, 30.0).tolist() == [[0.5, 0.5]]


def test_layouts_may_be_of_any_kind_of_array(pipe: Any) -> None:
    labels = np.repeat([0, 1], 8)[:, None].repeat(16, 1)
    rates = []
    for masks in (labels, labels > 0, torch.from_numpy(labels > 0), Image.fromarray(labels.astype(np.uint8))):
        with guide(pipe, masks=masks) as guided:
            make(pipe, height=64, width=64)
        rates.append(guided.rates)
    for other in rates[1:]:
        np.testing.assert_array_equal(rates[0], other)
    with pytest.raises(GocaError, match="float32 are not label maps"):
        guide(pipe, masks=torch.rand(4, 4, requires_grad=True))


@pytest.mark.parametrize("things", [0, 1])
def test_a_layout_without_a_foreground_guides_plainly(pipe: Any, things: int) -> None:
    """As it is without things, and where they are smaller than a cell."""
    masks = np.zeros((512, 512), int)
    masks[1 : 1 + things, 1] = 1
    with guide(pipe, masks=masks, clamp=None) as guided:
        ours = make(pipe, height=64, width=64)
    assert torch.equal(ours, make(pipe, height=64, width=64))
    assert [np.unique(rates).tolist() for rates in guided.rates] == [[1], [1]]


def test_what_the_denoiser_refuses_is_told_as_without_guidance(pipe: Any) -> None:
    """A callback that ends guidance, and leaves both prompts' embeddings in the batch."""

    def end_guidance(pipeline: Any, step: int, timestep: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        pipeline._guidance_scale = 0.0
        return inputs

    with pytest.raises(RuntimeError) as stock:
        make(pipe, callback_on_step_end=end_guidance)
    with pytest.raises(RuntimeError) as ours, guide(pipe):
        make(pipe, callback_on_step_end=end_guidance)
    assert str(ours.value) == str(stock.value)
