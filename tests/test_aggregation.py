"""An aggregator of one pass: which feature layers are compared by, which layers count, and what is refused."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from maths_steps import layer_weight
from recording import CAPTION, SIZE, RecordedPass
from torch import Tensor

from goca import GOCA, VANILLA, GocaError, Recipe, Segmenter
from goca.aggregation import LAYERS_AT_ONCE, AttentionAggregator, ImageAttention
from goca.diffusion.attention_call import AttentionCall
from goca.maths import Grid
from goca.maths.layers import Reference
from goca.maths.refit import components
from goca.maths.windows import Windows
from goca.testing.tiny import BUILDERS
from goca.text.nouns import Noun
from goca.text.token_spans import find_noun_tokens

GRID = (5, 7)


@cache
def pipeline_of(name: str) -> Any:
    return BUILDERS[name]()


@cache
def recorded_of(name: str) -> RecordedPass:
    return RecordedPass(pipeline_of(name))


def aggregator_of(name: str, recipe: Recipe = GOCA, grid: Grid = GRID) -> AttentionAggregator:
    segmenter = Segmenter.from_pipeline(pipeline_of(name), recipe=recipe, size=SIZE[0])
    backbone = segmenter.backbone
    nouns = [Noun(noun, (noun,)) for noun in CAPTION.split(", ")]
    found = find_noun_tokens(CAPTION, backbone.texts(backbone.session().prompt(CAPTION)), nouns, (), named=False)
    return AttentionAggregator(segmenter.plan, found, grid)


def fed(aggregator: AttentionAggregator, calls: list[AttentionCall]) -> AttentionAggregator:
    for call in calls:
        aggregator.add(call)
    return aggregator


# Both turn their queries and put them through a norm, after `to_q`.
@pytest.mark.parametrize("name", ["hunyuan_dit", "wan"])
def test_the_query_of_a_call_is_what_its_module_projected(name: str) -> None:
    pipeline = BUILDERS[name]()
    projected: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda module, args, output: projected.append(output[0]))
        for path, module in pipeline.transformer.named_modules()
        if path.endswith("to_q")
    ]
    seen = RecordedPass(pipeline)
    for handle in handles:
        handle.remove()
    turned = 0
    for call in seen.calls:
        assert call.query is not None
        assert any(call.query.shape == rows.shape and torch.equal(call.query, rows) for rows in projected)
        turned += not torch.allclose(call.query, call.q.transpose(0, 1).flatten(1), rtol=1e-2, atol=1e-2)
    assert turned > len(seen.calls) / 2


@pytest.mark.parametrize("channels", [None, 1], ids=["all", "first"])
@pytest.mark.parametrize("name", ["sd15", "hunyuan_dit", "wan"])
def test_layers_are_compared_with_the_raw_queries_of_the_reference(name: str, channels: int | None) -> None:
    calls = list(recorded_of(name).calls)
    recipe = GOCA if channels is None else replace(GOCA, reference_channels="first")
    aggregator = fed(aggregator_of(name, recipe), calls)
    aggregator.global_map()
    (reference,) = (call for call in calls if call.block == aggregator.plan.reference and call.kind == "cross")
    assert reference.query is not None
    against = Reference(reference.query[:, :channels], reference.grid)
    rule = aggregator.plan.layers
    raw = {
        call.block: layer_weight(rule, against, call.q, call.k, call.scale, call.grid)
        for call in calls
        if call.kind == "self"
    }
    counted = {block: weight for block, weight in raw.items() if block in aggregator.layer_weights()}
    total = sum(counted.values())
    assert len(counted) > 1
    assert aggregator.layer_weights() == pytest.approx({b: w / total for b, w in counted.items()}, rel=1e-5)


def test_a_layer_that_has_no_self_attention_to_compare_weighs_nothing() -> None:
    calls = list(recorded_of("sd15").calls)
    aggregator = aggregator_of("sd15", replace(GOCA, cross=(), refine=(), order=0))
    crossing = [call for call in calls if call.kind == "cross"]
    only = next(call for call in crossing if call.block != aggregator.plan.reference)
    without_self = [call for call in calls if (call.block, call.kind) != (only.block, "self")]
    without_any = [call for call in calls if call.block != only.block]
    seen = fed(aggregator, without_self)
    expected = fed(aggregator_of("sd15", replace(GOCA, cross=(), refine=(), order=0)), without_any)
    torch.testing.assert_close(seen.global_map(), expected.global_map())
    weights = seen.layer_weights()
    assert weights[only.block] == 0
    assert sum(weights.values()) == pytest.approx(1)
    # It is not so small a part that its weight would not matter.
    whole = fed(aggregator_of("sd15", replace(GOCA, cross=(), refine=(), order=0)), calls).global_map()
    assert not torch.allclose(whole, expected.global_map(), rtol=1e-3)


def test_with_a_cell_for_each_token_the_layers_are_averaged_as_they_are() -> None:
    recipe = replace(VANILLA, grid="tokens")
    height, width = recorded_of("pixart_sigma").latents.shape[-2:]
    calls = [call for call in recorded_of("pixart_sigma").calls if call.kind == "cross"]
    grid = aggregator_of("pixart_sigma", recipe).plan.common_grid((height, width))
    assert {call.grid for call in calls} == {grid}
    assert grid[0] != grid[1]
    maps = fed(aggregator_of("pixart_sigma", recipe, grid), calls).global_map()
    heads, pixels, _ = calls[0].q.shape
    for pixel in range(pixels):
        expected = torch.zeros(calls[0].k.shape[1])
        for call in calls:
            for head in range(heads):
                mask = 0.0 if call.mask is None else call.mask.expand(heads, pixels, -1)[head, pixel]
                logits = torch.stack([(call.q[head, pixel] * key).sum() * call.scale for key in call.k[head]]) + mask
                expected += torch.softmax(logits, 0) / heads / len(calls)
        torch.testing.assert_close(maps[:, pixel // grid[1], pixel % grid[1]], expected, rtol=1e-4, atol=1e-6)


def test_layers_that_all_lack_self_attention_weigh_the_same_where_no_layer_is_weighed() -> None:
    calls = [call for call in recorded_of("sd15").calls if call.kind == "cross"]
    recipe = replace(GOCA, heads="mean", layers="mean", cross=(), refine=(), order=0)
    seen = fed(aggregator_of("sd15", recipe), calls)
    seen.global_map()
    assert seen.layer_weights() == {call.block: pytest.approx(1 / len(calls)) for call in calls}


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_a_block_that_reads_the_text_twice_is_refused(name: str) -> None:
    aggregator = aggregator_of(name)
    first, *rest = (call for call in recorded_of(name).calls if call.text is not None)
    aggregator.add(first)
    with pytest.raises(GocaError, match=rf"{first.block} reads the text twice"):
        fed(aggregator, [*rest, first])


@pytest.mark.parametrize("name", ["sd15", "hunyuan_dit", "flux"])
@pytest.mark.parametrize("at_once", [2, 8])
def test_layers_of_one_shape_may_be_computed_at_once(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = fed(aggregator_of(name), list(recorded_of(name).calls))
    expected = one_by_one.global_map()
    monkeypatch.setitem(LAYERS_AT_ONCE, "cpu", at_once)
    together = fed(aggregator_of(name), list(recorded_of(name).calls))
    torch.testing.assert_close(together.global_map(), expected)
    assert together.layer_weights() == pytest.approx(one_by_one.layer_weights())
    assert list(together.heads) == list(one_by_one.heads)
    for block, heads in one_by_one.heads.items():
        torch.testing.assert_close(together.heads[block], heads)


# The blocks of SD3 and Flux have one attention each, others attend to pixels and to text.
@pytest.mark.parametrize("name", ["sd15", "pixart_sigma", "flux"])
def test_scores_are_refitted_to_the_outputs_of_the_blocks_that_refine(name: str) -> None:
    calls = list(recorded_of(name).calls)
    aggregator = fed(aggregator_of(name, replace(GOCA, refit="gaussians")), calls)
    features = ImageAttention(Windows.whole(GRID), aggregator.tokens, (aggregator,)).features()
    assert features is not None
    refining = [call for block in aggregator.plan.refine for call in calls if call.block == block]
    finest = max(call.grid[0] * call.grid[1] for call in refining)
    outputs = [call.output.transpose(0, 1).flatten(1) for call in refining if call.output.shape[1] == finest]
    assert len(outputs) >= (1 if name == "flux" else 2)
    assert features.components.shape[0] == finest == features.grid[0] * features.grid[1]
    assert torch.equal(features.components, components(outputs))
    plain = fed(aggregator_of(name), calls)
    assert ImageAttention(Windows.whole(GRID), plain.tokens, (plain,)).features() is None
