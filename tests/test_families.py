"""Every family: what the attention hook hands on is what ran, words are in their columns, and images become masks."""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.cosmos import pipeline_cosmos2_text2image
from PIL import Image
from recording import CAPTION, TIMESTEP, RecordedPass, check

from goca.diffusion.backbone import Backbone
from goca.diffusion.conditioning import EncodedPrompt
from goca.diffusion.families import FAMILIES, family_of
from goca.diffusion.families.spec import BlockRule
from goca.diffusion.loading import load
from goca.errors import GocaError
from goca.maths.attention import probabilities
from goca.recipe import GOCA
from goca.request import SegmentationRequest
from goca.segmenter import Segmenter
from goca.testing.tiny import BUILDERS
from goca.text.nouns import Noun
from goca.text.token_spans import find_noun_tokens

NOUNS = tuple(Noun(name, (name,)) for name in ("cat", "traffic light", "grass"))
# Where the denoiser is told no timestep, but sigma, or 1 - sigma.
TOLD_SIGMA = (
    *("flux", "flux_schnell", "flux2", "flux2_klein", "qwen_image", "chroma", "auraflow", "cosmos2"),
    *("ovis", "longcat", "krea2"),
)
TOLD_WHAT_IS_LEFT = ("lumina2", "z_image")
ROUNDING = 2e-2  # of scores: maps of random weights are almost flat, and min-max enlarges what differs
WITH_TRANSFORMER = [name for name in BUILDERS if name not in ("sd15", "sd2", "sdxl")]
LIMITED = ("sd3", "sd35", "auraflow", "cosmos2", "z_image")
"""Those whose position embeddings end."""


@pytest.fixture(scope="module", params=BUILDERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def recorded(name: str) -> RecordedPass:
    return RecordedPass(BUILDERS[name]())


def test_every_builder_is_of_the_family_that_names_it() -> None:
    assert sorted(name for family in FAMILIES for name in family.tiny) == sorted(BUILDERS)
    for family in FAMILIES:
        assert family.tiny
        assert {family_of(BUILDERS[name]()).name for name in family.tiny} == {family.name}


def test_what_is_handed_on_is_what_ran(name: str, recorded: RecordedPass) -> None:
    check(recorded)
    if name == "krea2":
        assert recorded.mixed == set(recorded.backbone.blocks)  # a gate
    else:
        fused = {block for block in recorded.backbone.blocks if block.startswith("single")}
        assert recorded.mixed == (set() if name in ("auraflow", "hidream") else fused)
    for call in recorded.calls:
        pixels = call.grid[0] * call.grid[1]
        assert call.q.shape[1] == pixels
        if call.image is not None:
            assert len(range(call.k.shape[1])[call.image]) == pixels
        if call.kind == "self" and recorded.backbone.family.linear_self_attention:
            continue  # nothing in the model computes this one
        attention = probabilities(call.q, call.k, call.scale, call.mask)
        torch.testing.assert_close(attention @ call.v, call.output, rtol=1e-4, atol=1e-5)


def test_a_grid_of_tokens_is_that_of_the_finest_attention_that_ran(name: str, recorded: RecordedPass) -> None:
    grids = [call.grid for call in recorded.calls if call.text is not None]
    plan = Segmenter(recorded.backbone, replace(GOCA, grid="tokens")).plan
    height, width = recorded.latents.shape[-2:]
    assert plan.common_grid((height, width)) == max(grids, key=math.prod)


def test_the_denoiser_is_told_the_noise_in_its_own_way(name: str, recorded: RecordedPass) -> None:
    args, kwargs = recorded.arguments
    named = [value for key, value in kwargs.items() if key in ("timestep", "timesteps", "t")]
    timestep = named[0] if named else args[1]
    expected = TIMESTEP / 1000 if name in TOLD_SIGMA else TIMESTEP
    expected = 1 - TIMESTEP / 1000 if name in TOLD_WHAT_IS_LEFT else expected
    assert float(torch.as_tensor(timestep).flatten()[0]) == pytest.approx(expected)


def test_a_text_embedding_is_where_its_column_is_said_to_be(name: str, recorded: RecordedPass) -> None:
    prompt = recorded.session.prompt(CAPTION)
    column, *_ = columns = find_noun_tokens(CAPTION, recorded.backbone.texts(prompt), NOUNS, (), named=False).classes[1]
    start = 8 if name == "auraflow" else 0  # registers, which are in no embedding
    if name == "hunyuan_dit":
        assert columns[-1] >= 77  # the second text has the word as well
        assert recorded.moved(nudged(prompt, 1, columns[-1] - 77)) == [columns[-1]]
    if name == "hidream":
        # Llama's last layer has the word in one column, the block's own layer in another; T5 has it first.
        last, second = (next(column for column in columns if column >= first) for first in (128, 256))
        assert sorted(recorded.moved(nudged(prompt, 0, last - 128, part=2))) == [last, second]
    moved = recorded.moved(nudged(prompt, 0, column - start))
    if name in ("lumina2", "z_image", "krea2"):
        # Words look at each other before they meet the pixels: the one that was nudged moves most.
        assert moved[0] == column
    else:
        assert moved == [column]


def nudged(prompt: EncodedPrompt, answer: int, index: int, part: int = 0) -> EncodedPrompt:
    """The prompt with one token's embedding changed."""
    parts = prompt.encoded[answer]
    embeddings = parts[part] if isinstance(parts, tuple) else parts
    listed = isinstance(embeddings, list)
    changed = (embeddings[0] if listed else embeddings).clone()
    # The tokens are the second axis from the end; Krea 2 has its layers there.
    axis = -3 if changed.ndim == 4 and changed.shape[0] == 1 else -2
    changed.select(axis, index).add_(3)
    first = [changed] if listed else changed
    encoded = list(prompt.encoded)
    encoded[answer] = (*parts[:part], first, *parts[part + 1 :]) if isinstance(parts, tuple) else first
    return replace(prompt, encoded=tuple(encoded))


def test_words_are_found_through_the_pipeline_s_own_tokenizers(recorded: RecordedPass) -> None:
    texts = recorded.backbone.texts(recorded.session.prompt(CAPTION))
    spans = find_noun_tokens(CAPTION, texts, NOUNS, (), named=False)
    for noun, columns in zip(NOUNS, spans.classes, strict=True):
        read = ""
        for tokens in texts:
            indices = [column - tokens.start for column in columns if 0 <= column - tokens.start < len(tokens.offsets)]
            offsets = [tokens.offsets[index] for index in indices if not tokens.special[index]]
            read += "".join(tokens.text[a:b] for a, b in dict.fromkeys(offsets)).lower()
        assert noun.name.replace(" ", "") in read.replace(" ", "")
    assert not set(spans.classes[0]) & set(spans.classes[1])
    assert set(spans.content) <= set(spans.prompt)


def test_masked_tokens_take_no_attention(name: str, recorded: RecordedPass) -> None:
    masked = [call for call in recorded.calls if call.mask is not None and call.kind == "cross"]
    for call in masked:
        silent = call.mask.amax((0, 1)) < -1000
        assert silent.any()
        attention = probabilities(call.q, call.k, call.scale, call.mask)
        assert float(attention[..., silent].max()) == 0.0
    assert bool(masked) == name.startswith(("pixart", "sana"))


@pytest.mark.parametrize("name", WITH_TRANSFORMER)
def test_a_batch_of_two_non_square_images_with_lists_of_different_lengths(
    name: str, image: Callable[..., Image.Image]
) -> None:
    lists = (["cat", "grass"], ["traffic light", "potted plant", "dining table", "person", "wall", "sky", "dog"])
    requests = [SegmentationRequest(image(160, 96, seed), classes) for seed, classes in enumerate(lists)]
    pipeline = BUILDERS[name]()
    both, alone = (
        [result for _, result in Segmenter.from_pipeline(pipeline, GOCA, size=64, batch=batch).stream(requests)]
        for batch in (2, 1)
    )
    for together, single in zip(both, alone, strict=True):
        assert together.labels.shape == (96, 160)
        assert np.isfinite(together.scores.grid).all()
        np.testing.assert_allclose(together.scores.grid, single.scores.grid, atol=ROUNDING)


# The tiny LongCat has no text processor, and so cannot be saved.
@pytest.mark.parametrize("name", [name for name in WITH_TRANSFORMER if name != "longcat"])
def test_saved_to_a_folder_and_loaded(
    name: str, image: Callable[..., Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = BUILDERS[name]()
    if name == "cosmos2":
        # NVIDIA's guard is a download; what stands in for it comes with the tiny pipeline.
        monkeypatch.setattr(pipeline_cosmos2_text2image, "CosmosSafetyChecker", type(pipeline.safety_checker))
    expected = Segmenter.from_pipeline(pipeline, GOCA, size=64)(image(), classes=["cat", "grass"])
    pipeline.save_pretrained(tmp_path)
    loaded = Segmenter.from_pipeline(load(tmp_path, None, None, None, None), GOCA, size=64)
    result = loaded(image(), classes=["cat", "grass"])
    np.testing.assert_allclose(result.scores.grid, expected.scores.grid, atol=ROUNDING)


def test_what_a_pipeline_sets_on_its_tokenizer_counts_and_is_given_back() -> None:
    pipeline = BUILDERS["sana"]()
    pipeline.tokenizer.padding_side = "left"
    recorded = RecordedPass(pipeline)
    (tokens,) = recorded.backbone.texts(recorded.session.prompt(CAPTION))
    # Sana pads on the right, whatever its tokenizer came with.
    assert tokens.special[-1]
    assert not all(tokens.special[: len(tokens.special) // 2])
    assert pipeline.tokenizer.padding_side == "left"


def test_the_families_whose_positions_end(name: str, recorded: RecordedPass) -> None:
    assert (recorded.backbone.max_side is not None) == (name in LIMITED)


@pytest.mark.parametrize("name", LIMITED)
@pytest.mark.parametrize("size", [(250, 64), (64, 250), (97, 97)])
def test_no_image_is_shown_beyond_the_model_s_positions(
    name: str, size: tuple[int, int], image: Callable[..., Image.Image]
) -> None:
    segmenter = Segmenter.from_pipeline(BUILDERS[name](), GOCA, size=128)
    longest = segmenter.backbone.max_side
    shown: list[tuple[int, int]] = []
    latents = segmenter.backbone.latents
    segmenter.backbone.latents = lambda images, size, batch: shown.append(size) or latents(images, size, batch)  # type: ignore
    result = segmenter(image(*size), classes=["cat", "grass"])
    assert max(shown[0]) <= longest
    assert any("position embedding allows" in note for note in result.plan.notes) == (
        shown[0][0] * shown[0][1] < 0.8 * 128**2
    )


@pytest.mark.parametrize("shape", [(90, 70), (56, 56), (33, 257)])
def test_cogview4_is_shown_sizes_that_it_takes(shape: tuple[int, int], image: Callable[..., Image.Image]) -> None:
    result = Segmenter.from_pipeline(BUILDERS["cogview4"](), GOCA, size=64)(image(*shape), classes=["cat", "grass"])
    assert result.labels.shape == shape[::-1]


def test_what_pads_its_text_to_a_fixed_length_keeps_no_more_tokens() -> None:
    longcat = BUILDERS["longcat"]()
    (text,) = Backbone(longcat).family.texts
    assert text.max_tokens == longcat.tokenizer_max_length
    assert "max_sequence_length" not in inspect.signature(longcat.__call__).parameters


def test_a_text_encoder_that_is_not_there_has_no_room_for_classes(image: Callable[..., Image.Image]) -> None:
    pipeline = BUILDERS["sd3"]()
    pipeline.text_encoder_3 = None
    classes = [f"thing {number}" for number in range(20)]
    result = Segmenter.from_pipeline(pipeline, GOCA, size=64)(image(), classes=classes)
    assert any("spread over" in note for note in result.plan.notes)


def test_two_denoisers_are_refused_with_what_to_do() -> None:
    pipeline = BUILDERS["wan"]()
    both = {**pipeline.components, "transformer_2": BUILDERS["wan"]().transformer, "boundary_ratio": 0.875}
    with pytest.raises(GocaError, match=r"two denoisers.* only the second, WanPipeline"):
        Segmenter.from_pipeline(type(pipeline)(**both))


def test_a_denoiser_that_no_family_lists_is_refused_without_a_pass() -> None:
    pipeline = BUILDERS["flux"]()
    pipeline.transformer.__class__ = type("UnknownTransformer2DModel", (type(pipeline.transformer),), {})
    pipeline.transformer.forward = None
    with pytest.raises(GocaError, match=r"FluxPipeline is not supported: .* probe it"):
        Segmenter.from_pipeline(pipeline)


def test_a_rule_for_blocks_comes_with_the_heads_of_the_settings_that_it_scales() -> None:
    of_rule: dict[BlockRule, set[str]] = {}
    for family in FAMILIES:
        heads = (family.block_rule.heads, *(settings.heads for settings in family.checkpoints))
        of_rule.setdefault(family.block_rule, set()).update(heads)
    assert {tuple(heads) for heads in of_rule.values()} == {("output-share",), ("mean",)}
