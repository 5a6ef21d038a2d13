"""Every family: what the tap tells is what ran, words are where they are said to be, and images become masks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.cosmos import pipeline_cosmos2_text2image
from PIL import Image
from torch import Tensor

from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.attention_modules import AttentionModule, attention_modules
from goca.diffusion.backbone import Backbone
from goca.diffusion.conditioning import EncodedPrompt
from goca.diffusion.loading import load
from goca.errors import GocaError
from goca.maths.attention import probabilities
from goca.maths.heads import head_weights, output_share
from goca.request import SegmentationRequest
from goca.segmenter import Segmenter
from goca.testing.tiny import BUILDERS
from goca.text.nouns import Noun
from goca.text.token_spans import find_noun_tokens

CAPTION = "cat, traffic light, grass"
NOUNS = tuple(Noun(name, (name,)) for name in ("cat", "traffic light", "grass"))
SIZE = (64, 96)
TIMESTEP = 100
# Where the denoiser is told no timestep, but the share of noise, or that of the image.
TOLD_THE_SHARE = ("flux", "flux_schnell", "flux2", "flux2_klein", "qwen_image", "chroma", "auraflow", "cosmos2")
TOLD_WHAT_IS_LEFT = ("lumina2", "z_image")
ROUNDING = 2e-2  # of scores: maps of random weights are almost flat, and min-max enlarges what differs
WITH_TRANSFORMER = [name for name in BUILDERS if name not in ("sd15", "sd2", "sdxl")]


class Asked:
    """One family's denoiser, asked once about one image: everything that the tap saw."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pipeline = BUILDERS[name]()
        self.backbone = Backbone(self.pipeline)
        self.session = self.backbone.session()
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        self.latents = self.backbone.latents([image], SIZE)
        self.outputs: dict[Any, Any] = {}
        handles = [
            site.module.register_forward_hook(lambda m, args, output: self.outputs.__setitem__(m, output))
            for site in attention_modules(self.backbone.denoiser)
        ]
        self.output, self.calls = self.ask()
        for handle in handles:
            handle.remove()

    def ask(self) -> tuple[Tensor, list[AttentionCall]]:
        calls: list[AttentionCall] = []
        output = self.session.forward(self.latents, [CAPTION], TIMESTEP, 0, lambda _, call: calls.append(call))
        return output, calls

    def moved(self, prompt: EncodedPrompt, other: EncodedPrompt) -> list[int]:
        """The text columns of the first attention that differ between two prompts, those that differ most first."""
        keys = []
        for one in (prompt, other):
            _, calls = self.ask({CAPTION: one})
            reads = next(call for call in calls if call.text is not None)
            keys.append(reads.k[:, reads.text])
        far = (keys[0] - keys[1]).abs().amax((0, 2))
        return [int(place) for place in far.argsort(descending=True) if far[place] > 1e-6]


@pytest.fixture(scope="module", params=BUILDERS)
def asked(request: pytest.FixtureRequest) -> Asked:
    return Asked(request.param)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return all(map(same, one, other))


def test_the_output_is_bit_identical_without_the_tap(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_module, "AttentionHook", lambda *_, **named: nullcontext())
    plain, seen = asked.ask()
    assert seen == []
    assert same(plain, asked.output)


def test_the_denoiser_is_told_the_noise_in_its_own_way(asked: Asked) -> None:
    with restoring(asked.backbone.pipeline) as pipeline:
        args, kwargs = asked.backbone.first_call(pipeline, [CAPTION], SIZE, TIMESTEP)
    named = {name: value for name, value in kwargs.items() if name in ("timestep", "timesteps", "t")}
    told = next(iter(named.values()), None) if named else args[1]
    expected = TIMESTEP / 1000 if asked.name in TOLD_THE_SHARE else TIMESTEP
    expected = 1 - TIMESTEP / 1000 if asked.name in TOLD_WHAT_IS_LEFT else expected
    assert float(torch.as_tensor(told).flatten()[0]) == pytest.approx(expected)


def test_every_block_that_reads_the_text_is_seen_once(asked: Asked) -> None:
    reads = [call.block for call in asked.calls if call.text is not None]
    assert sorted(reads) == sorted(asked.backbone.blocks)
    for call in asked.calls:
        height, width = call.grid
        assert call.q.shape[1] == height * width
        if call.image is not None:
            assert len(range(call.k.shape[1])[call.image]) == height * width


def test_a_record_rebuilds_its_module_s_output(asked: Asked) -> None:
    plain: set[str] = set()
    rebuilt: set[str] = set()
    for call in asked.calls:
        if call.kind == "self" and asked.backbone.family.linear_self_attention:
            continue  # nothing in the model computes this one
        attention = probabilities(call.q, call.k, call.scale, call.mask)
        torch.testing.assert_close(attention @ call.v, call.output, rtol=1e-4, atol=1e-5)
        for site in attention_modules(asked.backbone.denoiser):
            linear = output_projection(site)
            if site.block != call.block or call.projection is None or linear.in_features != channels(call):
                continue
            plain.add(call.block)
            made = torch.einsum("hpd,hdm->pm", call.output, call.projection)
            whole = asked.outputs[site.module]
            given = [part[0] for part in (whole if isinstance(whole, tuple) else (whole,))]
            pixels = [rows for part in given for rows in ends(part, len(made))]
            bias = 0 if linear.bias is None else linear.bias
            if any(torch.allclose(made + bias, rows, rtol=1e-3, atol=1e-5) for rows in pixels):
                rebuilt.add(call.block)
    assert rebuilt == plain
    # A single-stream block may project together with its MLP: see below.
    apart = asked.name in ("auraflow", "hidream")
    assert plain == {block for block in asked.backbone.blocks if apart or not block.startswith("single")}


def channels(call: AttentionCall) -> int:
    return call.q.shape[0] * call.q.shape[2]


def output_projection(site: AttentionModule) -> Any:
    """The linear layer behind an attention: the module's, or the one of a block that has it fused with its MLP."""
    linear = getattr(site.module, "to_out", None)
    if linear is None:
        return site.owner.proj_out
    return linear[0] if isinstance(linear, torch.nn.ModuleList) else linear


def test_a_single_stream_block_projects_attention_before_its_mlp(asked: Asked) -> None:
    fused = {site.block: output_projection(site) for site in attention_modules(asked.backbone.denoiser)}
    for call in asked.calls:
        linear = fused[call.block]
        if call.projection is not None and linear.in_features > channels(call):
            attended = call.output.transpose(0, 1).flatten(1)
            silent = torch.zeros(len(attended), linear.in_features - attended.shape[1])
            made = torch.einsum("hpd,hdm->pm", call.output, call.projection)
            bias = 0 if linear.bias is None else linear.bias
            wanted = linear(torch.cat([attended, silent], 1))
            torch.testing.assert_close(made + bias, wanted, rtol=1e-4, atol=1e-5)


def ends(rows: Tensor, count: int) -> list[Tensor]:
    """The first and the last `count` rows: the pixels are one of the two."""
    return [rows[:count], rows[-count:]] if len(rows) >= count else []


def test_head_weights_sum_to_one(asked: Asked) -> None:
    for call in asked.calls:
        if call.projection is not None:
            weights = head_weights(output_share, call.output.transpose(0, 1), call.projection)
            torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)), rtol=1e-3, atol=1e-3)


def test_a_text_embedding_is_where_its_column_is_said_to_be(asked: Asked) -> None:
    prompt = asked.session.prompt(CAPTION)
    texts = asked.backbone.texts(prompt)
    found = find_noun_tokens(CAPTION, texts, NOUNS, (), named=False)
    column = found.classes[1][0]
    start = 8 if asked.name == "auraflow" else 0  # registers, which are in no embedding
    if asked.name.startswith("hunyuan"):
        assert found.classes[1][-1] >= 77  # the second text has the word as well
        embedding = nudged(prompt, 1, found.classes[1][-1] - 77)
        assert asked.moved(prompt, embedding) == [found.classes[1][-1]]
    if asked.name == "hidream":
        # Llama's last layer has the word in one column, the block's own layer in another; T5 has it first.
        last, own = (next(place for place in found.classes[1] if place >= first) for first in (128, 256))
        assert sorted(asked.moved(prompt, nudged(prompt, 0, last - 128, part=2))) == [last, own]
    moved = asked.moved(prompt, nudged(prompt, 0, column - start))
    if asked.backbone.family.name in ("lumina2", "z-image"):
        # NounTokens look at each other before they meet the pixels: the one that was nudged moves most.
        assert moved[0] == column
    else:
        assert moved == [column]


def nudged(prompt: EncodedPrompt, answer: int, place: int, part: int = 0) -> EncodedPrompt:
    """The prompt with one token's embedding changed."""
    parts = prompt.encoded[answer]
    whole = parts[part] if isinstance(parts, tuple) else parts
    listed = isinstance(whole, list)
    changed = (whole[0] if listed else whole).clone()
    changed[..., place, :] += 3
    first = [changed] if listed else changed
    encoded = list(prompt.encoded)
    encoded[answer] = (*parts[:part], first, *parts[part + 1 :]) if isinstance(parts, tuple) else first
    return replace(prompt, encoded=tuple(encoded))


def test_words_are_found_through_the_pipeline_s_own_tokenizers(asked: Asked) -> None:
    texts = asked.backbone.texts(asked.session.prompt(CAPTION))
    found = words(CAPTION, texts, NOUNS, (), named=False)
    for noun, columns in zip(NOUNS, found.classes, strict=True):
        said = ""
        for tokens in texts:
            places = [column - tokens.start for column in columns if 0 <= column - tokens.start < len(tokens.offsets)]
            spans = [tokens.offsets[place] for place in places if not tokens.special[place]]
            said += "".join(tokens.text[a:b] for a, b in dict.fromkeys(spans)).lower()
        assert noun.name.replace(" ", "") in said.replace(" ", "")
    assert not set(found.classes[0]) & set(found.classes[1])
    assert set(found.content) <= set(found.prompt)


def test_masked_tokens_take_no_attention(asked: Asked) -> None:
    masked = [call for call in asked.calls if call.mask is not None and call.kind == "cross"]
    for call in masked:
        silent = call.mask.amax((0, 1)) < -1000
        assert silent.any()
        attention = probabilities(call.q, call.k, call.scale, call.mask)
        assert float(attention[..., silent].max()) == 0.0
    assert bool(masked) == asked.name.startswith(("pixart", "sana"))


@pytest.mark.parametrize("name", WITH_TRANSFORMER)
def test_a_batch_of_two_non_square_images(name: str, image: Callable[..., Image.Image]) -> None:
    segmenter = Segmenter.from_pipeline(BUILDERS[name](), size=64)
    images = [image(160, 96, 0), image(160, 96, 1)]
    both = segmenter(images, classes=["cat", "traffic light"], background_classes=["sky"])
    for one, result in zip(images, both, strict=True):
        assert result.labels.shape == (96, 160)
        assert np.isfinite(result.scores.grid).all()
        alone = segmenter(one, classes=["cat", "traffic light"], background_classes=["sky"])
        np.testing.assert_allclose(alone.scores.grid, result.scores.grid, atol=ROUNDING)


@pytest.mark.parametrize("name", WITH_TRANSFORMER)
def test_saved_to_a_folder_and_loaded(
    name: str, image: Callable[..., Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = BUILDERS[name]()
    if name == "cosmos2":
        # NVIDIA's guard is a download; what stands in for it comes with the tiny pipeline.
        monkeypatch.setattr(pipeline_cosmos2_text2image, "CosmosSafetyChecker", type(pipeline.safety_checker))
    expected = Segmenter.from_pipeline(pipeline, size=64)(image(), classes=["cat", "grass"])
    pipeline.save_pretrained(tmp_path)
    loaded = Segmenter.from_pipeline(load(tmp_path, None, None, None, None), size=64)
    found = loaded(image(), classes=["cat", "grass"])
    np.testing.assert_allclose(found.scores.grid, expected.scores.grid, atol=ROUNDING)


def test_what_a_pipeline_sets_on_its_tokenizer_counts_and_is_given_back() -> None:
    pipeline = BUILDERS["sana"]()
    pipeline.tokenizer.padding_side = "left"
    backbone = Backbone(pipeline)
    (tokens,) = backbone.texts(backbone.session().prompt(CAPTION))
    # Sana pads on the right, whatever its tokenizer came with.
    assert tokens.special[-1]
    assert not all(tokens.special[: len(tokens.special) // 2])
    assert pipeline.tokenizer.padding_side == "left"


@pytest.mark.parametrize("name", [name for name in WITH_TRANSFORMER if Backbone(BUILDERS[name]()).max_side is not None])
@pytest.mark.parametrize("size", [(250, 64), (64, 250), (97, 97)])
def test_no_image_is_shown_beyond_the_model_s_positions(
    name: str, size: tuple[int, int], image: Callable[..., Image.Image]
) -> None:
    pipeline = BUILDERS[name]()
    segmenter = Segmenter.from_pipeline(pipeline, size=128)
    longest = segmenter.backbone.max_side
    assert longest is not None
    shown: list[tuple[int, int]] = []
    latents = segmenter.backbone.latents
    segmenter.backbone.latents = lambda images, size: shown.append(size) or latents(images, size)  # type: ignore
    result = segmenter(image(*size), classes=["cat", "grass"])
    assert max(shown[0]) <= longest
    assert any("no positions for more" in note for note in result.plan.notes) == (
        shown[0][0] * shown[0][1] < 0.8 * 128**2
    )


@pytest.mark.parametrize("name", WITH_TRANSFORMER)
def test_questions_of_different_lengths_share_a_batch(name: str, image: Callable[..., Image.Image]) -> None:
    lists = (["cat", "grass"], ["traffic light", "potted plant", "dining table", "person", "wall", "sky", "dog"])
    questions = [SegmentationRequest(image(160, 96, seed), classes) for seed, classes in enumerate(lists)]
    pipeline = BUILDERS[name]()
    both, alone = (
        [result for _, result in Segmenter.from_pipeline(pipeline, size=64, batch=batch).stream(questions)]
        for batch in (2, 1)
    )
    for one, other in zip(both, alone, strict=True):
        np.testing.assert_allclose(one.scores.grid, other.scores.grid, atol=ROUNDING)


@pytest.mark.parametrize("shape", [(90, 70), (56, 56), (33, 257)])
def test_cogview4_is_shown_sizes_that_it_takes(shape: tuple[int, int], image: Callable[..., Image.Image]) -> None:
    result = Segmenter.from_pipeline(BUILDERS["cogview4"](), size=64)(image(*shape), classes=["cat", "grass"])
    assert result.labels.shape == shape[::-1]


def test_a_text_encoder_that_is_not_there_has_no_room_for_classes(image: Callable[..., Image.Image]) -> None:
    pipeline = BUILDERS["sd3"]()
    pipeline.text_encoder_3 = None
    classes = [f"thing {number}" for number in range(20)]
    result = Segmenter.from_pipeline(pipeline, size=64)(image(), classes=classes)
    assert any("spread over" in note for note in result.plan.notes)


def test_two_denoisers_are_refused_with_what_to_do() -> None:
    pipeline = BUILDERS["wan"]()
    both = {**pipeline.components, "transformer_2": BUILDERS["wan"]().transformer, "boundary_ratio": 0.875}
    with pytest.raises(GocaError, match=r"two denoisers.* the second alone, WanPipeline"):
        Segmenter.from_pipeline(type(pipeline)(**both))
