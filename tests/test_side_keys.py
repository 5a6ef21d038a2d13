"""Classes as keys beside the caption: any number of them in one pass, and none of them seen by the image."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from yardsticks import Allocations, bilinear_matrix

from goca import CONCEPT_ATTENTION, GOCA, GOCA_BALANCED, GocaError, Recipe, Segmenter, trace
from goca.aggregation import AttentionAggregator, with_side_keys
from goca.diffusion import backbone
from goca.diffusion.attention_call import AttentionCall
from goca.diffusion.backbone import Backbone, BackboneSession
from goca.maths.attention import side_map
from goca.maths.heads import head_weights
from goca.maths.rescale import TokenMass
from goca.request import SegmentationRequest, prompts_of, request_nouns
from goca.testing.tiny import BUILDERS, JOINT_BUILDERS
from goca.text.nouns import Noun
from goca.text.token_spans import NounTokens, find_noun_tokens

Make = Callable[..., Image.Image]
CROSS = [name for name in BUILDERS if name not in JOINT_BUILDERS]
SIDE = replace(GOCA, keys="side")
CLASSES = {"cat": ["kitten"], "traffic light": []}
WORDS = ("cat", "kitten", "traffic light", "grass")
GRID = (7, 11)


def built(name: str) -> Any:
    if name == "kolors" and importlib.util.find_spec("sentencepiece") is None:
        pytest.skip("the tokenizer of Kolors needs sentencepiece")
    return BUILDERS[name]()


@torch.no_grad()
def calls_of(session: BackboneSession, image: Image.Image, caption: str, timestep: int = 100) -> list[AttentionCall]:
    """The attention of a pass over an image of 64 x 96 px."""
    calls: list[AttentionCall] = []
    latents = session.backbone.latents([image], (64, 96))
    session.forward(latents, [caption], timestep, 0, lambda _, call: calls.append(call))
    return calls


def keys_in(session: BackboneSession, image: Image.Image, word: str) -> dict[str, tuple[Tensor, Tensor]]:
    """{block: a word's (keys, values)} in a pass over an image whose caption the word is."""
    texts = session.backbone.texts(session.prompt(word))
    (columns,) = find_noun_tokens(word, texts, [Noun(word, (word,))], (), named=False).classes
    calls = calls_of(session, image, word, timestep=400)
    return {call.block: (call.k[:, list(columns)], call.v[:, list(columns)]) for call in calls if call.kind == "cross"}


def attended(pipeline: Any, image: Image.Image, request: SegmentationRequest, recipe: Recipe = SIDE) -> TokenMass:
    aggregator, _, _ = aggregated(pipeline, image, request, recipe)
    return aggregator.token_mass()


def aggregated(
    pipeline: Any, image: Image.Image, request: SegmentationRequest, recipe: Recipe = SIDE
) -> tuple[AttentionAggregator, NounTokens, list[AttentionCall]]:
    segmenter = Segmenter.from_pipeline(pipeline, recipe=recipe, size=64)
    session = segmenter.backbone.session()
    with torch.no_grad():
        nouns = request_nouns(request, segmenter.plan, segmenter.backbone)
        (tokens,), _, _ = prompts_of(request, nouns, segmenter.plan, session)
    aggregator = AttentionAggregator(segmenter.plan, tokens, GRID)
    calls = calls_of(session, image, tokens.caption)
    for call in calls:
        aggregator.add(call)
    return aggregator, tokens, calls


@contextmanager
def passes(pipeline: Any) -> Iterator[list[int]]:
    """The latent cells of every pass of a UNet, row by row."""
    cells: list[int] = []

    def count(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        cells.extend([args[0].shape[-2] * args[0].shape[-1]] * len(args[0]))

    handle = pipeline.unet.conv_in.register_forward_hook(count)
    yield cells
    handle.remove()


# ---- the keys


@pytest.mark.parametrize("name", CROSS)
def test_keys_of_a_word_depend_on_no_image(name: str, image: Make) -> None:
    session = Backbone(built(name)).session()
    for word, keys in zip(WORDS, session.keys(WORDS), strict=True):
        expected = keys_in(session, image(), word)
        assert keys.keys() == expected.keys() == set(session.backbone.blocks)
        for block, part in keys.items():
            for computed, ran in zip(part, expected[block], strict=True):
                torch.testing.assert_close(computed, ran, rtol=1e-5, atol=1e-6)


def test_a_word_without_a_key_is_refused(sd15: Any) -> None:
    session = Backbone(sd15).session()
    with pytest.raises(GocaError, match='"the" consists of stop words'):
        session.keys(["cat", "the"])
    with pytest.raises(GocaError, match="cut off by the tokenizer's limit"):
        session.keys(["cat " * 77])


def test_the_oldest_keys_go_and_come_again(sd15: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone, "MAX_KEYS", 2)
    session = Backbone(sd15).session()
    first = session.keys(WORDS)
    with passes(sd15) as cells:
        session.keys(WORDS[2:])
        assert not cells
        second = session.keys(WORDS[:2])
    assert len(cells) == 2
    for before, after in zip(first[:2], second, strict=True):
        assert all(torch.allclose(keys, after[block][0]) for block, (keys, _) in before.items())


# ---- the map


@pytest.mark.parametrize("name", CROSS)
@pytest.mark.parametrize("caption", [None, "a boat"])
def test_the_map_is_one_softmax_over_the_caption_and_every_word(name: str, caption: str | None, image: Make) -> None:
    pipeline = built(name)
    request = SegmentationRequest("", CLASSES, ["grass"], caption=caption)
    aggregator, tokens, calls = aggregated(pipeline, image(), request)
    assert tokens.caption == (caption or "")
    session = Backbone(pipeline).session()
    words = {word: keys_in(session, image(), word) for word in WORDS}
    counts = [
        sum(words[word][calls[0].block][0].shape[1] for word in noun) for noun in (WORDS[:2], WORDS[2:3], WORDS[3:])
    ]
    maps = {}
    for call in calls:
        if call.kind == "cross" and (not aggregator.plan.cross or call.block in aggregator.plan.cross):
            assert call.projection is not None
            pairs = [(call.k, call.v), *(words[word][call.block] for word in WORDS)]
            keys, values = (torch.cat(parts, 1) for parts in zip(*pairs, strict=True))
            logits = torch.einsum("hpd,hkd->hpk", call.q.double(), keys.double()) * call.scale
            if call.mask is not None:
                logits[..., : call.k.shape[1]] += call.mask
            powers = (logits - logits.amax(-1, keepdim=True)).exp()
            attention = powers / powers.sum(-1, keepdim=True)
            outputs = torch.einsum("hpk,hkd->phd", attention, values.double())
            weights = head_weights(aggregator.plan.heads, outputs.float(), call.projection)
            mixed = torch.einsum("ph,hpk->pk", weights.double(), attention)
            nouns = mixed[:, call.k.shape[1] :].split(counts, 1)
            means = torch.stack([noun.mean(1) for noun in nouns], 1)
            columns = torch.cat([1 - means.sum(1, keepdim=True), means], 1)
            maps[call.block] = bilinear_matrix(call.grid, GRID) @ columns
    mass = aggregator.token_mass()  # only then every layer has its weight
    weight_of = aggregator.layer_weights()
    assert weight_of.keys() == maps.keys()
    total = sum(weight_of[block] * columns for block, columns in maps.items()).clamp(min=0)  # type: ignore[union-attr]
    expected = (total / total.sum(1, keepdim=True))[:, 1:].T.reshape(3, *GRID)
    torch.testing.assert_close(mass.raw.double(), expected, rtol=1e-5, atol=1e-6)
    content = sum(count * noun for count, noun in zip(counts, expected, strict=True))
    torch.testing.assert_close(mass.content.double(), content, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_memory_is_that_of_the_nouns_and_not_of_their_tokens(masked: bool, sd15: Any, image: Make) -> None:
    call = next(call for call in calls_of(Backbone(sd15).session(), image(), "") if call.kind == "cross")
    heads, pixels, counts, dim = 8, 1024, [2, 4] * 500, 4
    q, k, *noun_keys = (torch.randn(heads, count, dim) for count in (pixels, 77, *counts))
    mask = torch.zeros(1, 1, 77) if masked else None
    call = replace(call, q=q, k=k, v=k, output=q, query=None, mask=mask, projection=None, grid=(32, 32))
    weights = torch.full((pixels, heads), 1 / heads)
    with Allocations() as allocations:
        wider = with_side_keys(call, [{call.block: (keys, keys)} for keys in noun_keys])
        columns = side_map(wider.q, wider.k, counts, wider.scale, weights, wider.mask)
    assert columns.shape == (pixels, 1 + len(counts))
    assert allocations.largest <= columns.numel()


def test_absent_classes_leave_the_image_alone(sd15: Any, image: Make) -> None:
    few, many = (
        SegmentationRequest("", classes, ()) for classes in (["cat", "grass"], ["cat", "grass", "car", "boat"])
    )
    for recipe, same in ((SIDE, True), (GOCA, False)):
        seen = [aggregated(sd15, image(), request, recipe)[0] for request in (few, many)]
        for aggregator in seen:
            aggregator.token_mass()
        assert (seen[0].layer_weights() == seen[1].layer_weights()) == same


def test_half_precision(image: Make) -> None:
    request = SegmentationRequest("", CLASSES, ["grass"])
    whole, half = (
        attended(BUILDERS["sd15"]().to(dtype), image(), request) for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.raw.dtype == torch.float32
    torch.testing.assert_close(half.raw, whole.raw, rtol=5e-2, atol=1e-4)


# ---- the segmenter


def test_the_order_of_classes_does_not_matter(bundled: Segmenter, image: Make) -> None:
    options = {"flip": True, "window": True, "timestep": (100, 300), "batch": 3}
    segmenter = Segmenter.from_pipeline(bundled.backbone.pipeline, replace(GOCA_BALANCED, keys="side"), **options)
    first = segmenter(image(96, 64), ["cat", "dog", "house"], ["sky"])
    second = segmenter(image(96, 64), ["house", "cat", "dog"], ["sky"])
    assert len(segmenter.prepare(SegmentationRequest(image(96, 64), ["cat"]), segmenter.backbone.session()).tiles) > 1  # type: ignore[union-attr]
    assert abs(first.scores.grid - second.scores.grid[[1, 2, 0]]).max() < 1e-4


def test_images_of_a_batch_may_have_other_classes(bundled: Segmenter, image: Make) -> None:
    segmenter = Segmenter.from_pipeline(bundled.backbone.pipeline, replace(GOCA_BALANCED, keys="side"))
    requests = [
        SegmentationRequest(image(seed=seed), classes)
        for seed, classes in enumerate((["cat", "sky"], ["dog", "road", "house"], ["boat", "cat"]))
    ]
    together = [result for _, result in segmenter.stream(requests)]
    for request, result in zip(requests, together, strict=True):
        alone = segmenter(request.image, request.classes)
        assert not isinstance(result, GocaError)
        assert result.plan.captions == ("",)
        assert result.plan.to_json()["keys"] == "side"
        assert abs(alone.scores.grid - result.scores.grid).max() < 1e-4


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_any_number_of_classes_takes_one_pass(count: int, sd15: Any, image: Make) -> None:
    classes = [f"thing {number}" for number in range(count)]
    segmenter = Segmenter.from_pipeline(sd15, SIDE, size=64)
    session = segmenter.backbone.session()
    requests = [SegmentationRequest(image(64, 64, seed), classes, ()) for seed in range(2)]
    with passes(sd15) as cells:
        ((_, first),) = segmenter.stream(requests[:1], session)
        keys = [size for size in cells if size != max(cells)]
        assert len(cells) - len(keys) == 1
        assert len(keys) == count
        ((_, second),) = segmenter.stream(requests[1:], session)
    assert len(cells) == count + 2  # the keys are there already
    for result in (first, second):
        assert not isinstance(result, GocaError)
        assert result.scores.grid.shape[0] == count
        assert result.plan.captions == ("",)


def test_a_caption_conditions_the_image_and_need_not_name_the_classes(bundled: Segmenter, image: Make) -> None:
    segmenter = Segmenter.from_pipeline(bundled.backbone.pipeline, SIDE)
    empty = segmenter(image(), ["cat", "grass"])
    written = segmenter(image(), ["cat", "grass"], caption="boat, water")
    assert (empty.plan.captions, written.plan.captions) == (("",), ("boat, water",))
    assert abs(empty.scores.grid - written.scores.grid).max() > 1e-3


def test_one_class_alone_gets_company(bundled: Segmenter, image: Make) -> None:
    result = Segmenter.from_pipeline(bundled.backbone.pipeline, SIDE)(image(), ["cat"])
    assert any("background classes added" in note for note in result.plan.notes)
    assert result.scores.background is not None


# ---- recipes, plans and traces


def test_joint_attention_falls_back_to_the_caption(image: Make) -> None:
    pipeline = JOINT_BUILDERS["flux"]()
    results = [
        Segmenter.from_pipeline(pipeline, recipe, size=64)(image(), ["cat", "grass"], ()) for recipe in (SIDE, GOCA)
    ]
    assert [result.plan.keys for result in results] == ["caption", "caption"]
    assert [result.plan.captions for result in results] == [("cat, grass",)] * 2
    assert (results[0].scores.grid == results[1].scores.grid).all()
    assert [any("need cross-attention" in note for note in result.plan.notes) for result in results] == [True, False]
    concepts = Segmenter.from_pipeline(pipeline, replace(CONCEPT_ATTENTION, keys="side"), size=64)
    assert concepts.plan.keys == "caption"


def test_a_trace_has_the_words_of_its_prompt(sd15: Any) -> None:
    with trace(sd15, recipe=SIDE) as traced:
        sd15("cat on grass", num_inference_steps=1, height=64, width=64)
    plan = traced.segment(["cat", "grass"]).plan
    assert plan.keys == "caption"
    assert not any("need cross-attention" in note for note in plan.notes)


def test_a_rule_for_keys_that_there_is_not() -> None:
    with pytest.raises(GocaError, match='keys \'beside\' is neither "caption" nor "side"'):
        Recipe(keys="beside")
