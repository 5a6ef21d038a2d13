"""Guidance by regions as a guider of modular pipelines: the identities of constant rates, and `guide` on stock ones."""

import inspect
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from test_guidance import SCALE, build, close
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack

from goca import GocaError, Recipe, SemanticAwareGuidance, guide
from goca.diffusion.families import family_of

BLOCKS = {
    "sd3": "StableDiffusion3AutoBlocks",
    "sdxl": "StableDiffusionXLAutoBlocks",
    "z_image": "ZImageAutoBlocks",
    "flux2_klein": "Flux2KleinBaseAutoBlocks",
    "qwen_image": "QwenImageAutoBlocks",
}


def modular(stock: Any, blocks: Any) -> Any:
    pipe = blocks.init_pipeline()
    parts = {name: part for name, part in stock.components.items() if part is not None}
    pipe.update_components(**{name: part for name, part in parts.items() if name in pipe.component_names})
    return pipe


@pytest.fixture(scope="module", params=BLOCKS)
def pipes(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A modular pipeline, and the stock one of the same parts."""
    stock = build(request.param)
    return modular(stock, getattr(diffusers, BLOCKS[request.param])()), stock


@pytest.fixture(scope="module")
def pipe() -> Any:
    return modular(build("sdxl"), diffusers.StableDiffusionXLAutoBlocks())


def arguments(**options: Any) -> dict[str, Any]:
    return {
        "prompt": "a cat on grass",
        "negative_prompt": "",
        "height": 64,
        "width": 96,
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(0),
        **options,
    }


def make(pipe: Any, guider: Any, **options: Any) -> Tensor:
    """Latents after two steps."""
    pipe.update_components(guider=guider)
    known = {key: value for key, value in arguments(**options).items() if key in pipe.blocks.input_names}
    return torch.as_tensor(pipe(**known, output="latents"))


def plain(scale: float = SCALE, **options: Any) -> Any:
    return ClassifierFreeGuidance(guidance_scale=scale, **options)


def guided(**options: Any) -> Any:
    return SemanticAwareGuidance(**{"guidance_scale": SCALE, **options})


def assert_nothing_is_left(denoiser: Any) -> None:
    assert not _get_current_function_mode_stack()
    assert "forward" not in vars(denoiser)
    for module in denoiser.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_a_modular_pipeline_is_guided_as_a_stock_one(pipes: tuple[Any, Any]) -> None:
    pipe, stock = pipes
    before = make(pipe, plain())
    assert torch.equal(make(pipe, guided(rate=1.0)), before)
    close(make(pipe, guided(rate=1.5)), make(pipe, plain(1.5 * SCALE)))
    guider = guided()
    image = make(pipe, guider)
    assert image.isfinite().all()
    assert not torch.equal(image, before)
    assert [step.step for step in guider.steps] == [0, 1]
    assert_nothing_is_left(getattr(pipe, "unet", None) or pipe.transformer)
    with guide(stock) as theirs:
        their_image = make_stock(stock)
    # A stock pipeline may guide in one batch: it rounds otherwise, and pixels between two regions fall to the other.
    ours, first = guider.steps[0], theirs.steps[0]
    assert ours.scale == first.scale == SCALE
    assert guider.region_names == theirs.region_names
    assert ours.regions is not None
    assert np.mean(ours.regions == first.regions) > 0.98
    assert np.mean(np.isclose(ours.rates, first.rates, atol=0.02)) > 0.97
    assert ours.effective_scales == pytest.approx(first.effective_scales, rel=1e-3)
    if their_image.shape == image.shape:  # others are not packed alike
        close(before, make_stock(stock))
        assert (image - their_image).abs().mean() < 0.05 * (image - before).abs().mean()


def make_stock(stock: Any) -> Tensor:
    """The same, of a stock pipeline."""
    family = family_of(stock)
    assert family is not None
    parameters = inspect.signature(stock.__call__).parameters
    scale = "true_cfg_scale" if "true_cfg_scale" in parameters else "guidance_scale"
    known = {key: value for key, value in arguments().items() if key in parameters}
    return torch.as_tensor(stock(**known, **{scale: SCALE - family.guidance_offset}, output_type="latent")[0])


def test_images_of_a_batch_have_their_own_prompts(pipe: Any) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    negative = ["", "a cat"]
    options = {"prompt": ["a cat on grass", "a dog"], "negative_prompt": negative, "num_images_per_prompt": 2}
    guider = guided(every=2, steps=[0, 1], smooth=False)
    assert len(make(pipe, guider, generator=generators, **options)) == 4
    words = [set(guider.region_names[image].values()) for image in range(4)]
    assert "cat" in words[0] == words[1]
    assert "cat" not in words[2] == words[3]
    assert np.array_equal(*guider.regions)
    assert not np.array_equal(*guider.rates)
    # Of another call nothing is left, and the same settings make the same image.
    again = guider.new()
    image = make(pipe, guider)
    assert torch.equal(make(pipe, again), image)
    assert not torch.equal(make(pipe, guided()), image)
    assert guider.rates[0].shape == (1, 32, 48)
    assert not torch.equal(make(pipe, guider.new(guidance_scale=8.0)), image)


def test_what_plain_guidance_has_besides_acts_on_the_guided_prediction(pipe: Any) -> None:
    for options in ({"use_original_formulation": True}, {"start": 0.5}, {"guidance_rescale": 0.3}):
        before = make(pipe, plain(3.0, **options))
        assert torch.equal(make(pipe, guided(rate=1.0, guidance_scale=3.0, **options)), before)
        ours = make(pipe, guided(rate=1.5, guidance_scale=3.0, **options))
        original = "use_original_formulation" in options
        close(ours, make(pipe, plain(5.0 if original else 4.5, **options)))  # c + 5 (c - u) = u + 1.5 * 4 (c - u)
    layout = np.zeros((8, 12), dtype=np.uint8)
    layout[:, 6:] = 1
    guider = guided(masks=layout, smooth=False)
    make(pipe, guider)
    assert np.unique(guider.rates[0][guider.regions[0] == 1]).tolist() == [1.0]
    assert "masks" in repr(guided(recipe=Recipe(order=1)))


def test_everything_is_given_back_after_an_exception(pipe: Any) -> None:
    before = make(pipe, plain())

    def fail(*args: Any) -> None:
        raise RuntimeError("no")

    handle = pipe.unet.mid_block.register_forward_hook(fail)
    guider = guided()
    with pytest.raises(RuntimeError, match="no"):
        make(pipe, guider)
    handle.remove()
    assert_nothing_is_left(pipe.unet)
    assert torch.equal(make(pipe, plain()), before)
    assert torch.equal(make(pipe, guider), make(pipe, guided()))


def test_what_cannot_be_guided_is_refused(pipe: Any) -> None:
    for options, message in (
        ({"guidance_scale": 1.0}, "give a guidance_scale above 1"),
        ({"rate": 0.0}, "rate 0.0 is not a positive number"),
        ({"recipe": "goca-open"}, "measures evidence of classes"),
    ):
        with pytest.raises(GocaError, match=message):
            guided(**options)
    image = torch.zeros(1, 4, 8, 8)
    guider = guided()
    guider.set_state(0, 1, torch.tensor(1))
    with pytest.raises(GocaError, match="outside a call of a modular pipeline"):
        guider.prepare_models(pipe.unet)
    with pytest.raises(GocaError, match="3 masks were given for 1 images"):
        make(pipe, guided(masks=[np.eye(2, dtype=int)] * 3))
    assert_nothing_is_left(pipe.unet)
    assert torch.equal(guider.forward(image, image).pred, image)


def test_words_that_are_unknown_are_refused_and_constant_rates_are_not() -> None:
    stock = build("sd3")
    blocks = diffusers.StableDiffusion3AutoBlocks()
    whole = modular(stock, blocks)
    with pytest.raises(GocaError, match='the pipeline a negative_prompt, "" for none'):
        make(whole, guided(), negative_prompt=None)
    whole.update_components(guider=plain())
    names = [f"{negative}{pooled}prompt_embeds" for negative in ("", "negative_") for pooled in ("", "pooled_")]
    encoded = whole(**arguments(), output=names)
    blocks.sub_blocks.pop("text_encoder")
    part = modular(stock, blocks)
    with pytest.raises(GocaError, match="the words of the prompt are unknown"):
        make(part, guided(), **encoded)
    close(make(part, guided(rate=1.5), **encoded), make(part, plain(1.5 * SCALE), **encoded))


def test_prompts_that_a_block_overwrites_are_refused() -> None:
    pipe = modular(build("z_image"), diffusers.ZImageAutoBlocks())
    with pytest.raises(GocaError, match="call it separately for each"):
        make(pipe, guided(), prompt=["a cat", "a dog"], negative_prompt=["", ""])
