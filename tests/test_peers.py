"""Other authors' methods as values: DiffSegmenter and ConceptAttention, against loops over what the hook saw."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode
from yardsticks import Grid, bilinear_matrix

from goca import CONCEPT_ATTENTION, DIFFSEGMENTER, RECIPES, GocaError, Recipe, Segmenter
from goca.aggregation import AttentionAggregator
from goca.cli import arguments
from goca.diffusion.attention_call import AttentionCall
from goca.maths import concepts, heads, layers
from goca.maths.background import Background, constant
from goca.maths.concepts import concept_shares
from goca.maths.fusion import PerResolutionMean, WeightedMean
from goca.testing.tiny import JOINT_BUILDERS, UNET_BUILDERS
from goca.text.nouns import Noun
from goca.text.token_spans import find_noun_tokens

TOKENS = 5
WEIGHTS = (0.1, 0.1, 0.5, 0.3)
NOUNS = tuple(Noun(name, (name,)) for name in ("cat", "traffic light", "grass"))
Make = Callable[..., Image.Image]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def equal(ours: Tensor, other: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours.double(), other.double(), rtol=1e-4, atol=atol)


def stretched(maps: Tensor) -> Tensor:
    """Each token's map from 0 to 1, tokens last."""
    low, high = maps.min(0).values, maps.max(0).values
    return (maps - low) / (high - low)


# ---- layers gathered in other ways


def test_a_running_mean_is_no_share_of_the_tokens() -> None:
    mean = WeightedMean((1, 2))
    mean.add(1.0, torch.tensor([[0.5, -3.0], [0.5, 1.0]]), (1, 2))
    mean.add(3.0, torch.tensor([[0.25, 1.0]]), (1, 1))
    # (0.5 + 3 x 0.25) / 4; (-3 + 3) / 4 and (1 + 3) / 4: neither clamped nor normalised.
    equal(mean.value(), torch.tensor([[[0.3125, 0.3125]], [[0.0, 1.0]]]))


def test_grids_are_weighed_by_hand() -> None:
    means = PerResolutionMean((1, 8), WEIGHTS)
    means.add(1.0, torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 8.0]]).T, (1, 8))
    means.add(1.0, torch.tensor([[2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]]).T, (1, 8))
    # The mean of the two, (1, ..., 1, 5), is (0, ..., 0, 1) from 0 to 1. One cell for eight, 2.8 times coarser a side,
    # goes to the weight of 2 halvings; it is constant, and so 0.
    means.add(1.0, torch.tensor([[3.0]]), (1, 1))
    equal(means.value(), torch.tensor([[[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1 / 0.6]]]))
    assert means.effective_weight((1, 8)) == pytest.approx(0.05)
    assert means.effective_weight((1, 1)) == pytest.approx(0.5)


@pytest.mark.parametrize("common", [(13, 11), (5, 7)], ids=str)
def test_grids_are_weighed_as_the_loop_does(common: Grid) -> None:
    grids = {(13, 11): {(13, 11): 0.1, (7, 5): 0.1, (3, 2): 0.5}, (5, 7): {(13, 11): 0.1, (5, 7): 0.1, (2, 2): 0.5}}
    layers = [(grid, numbers(grid[0] * grid[1], TOKENS, seed=seed)) for seed, grid in enumerate([*grids[common]] * 2)]
    ours = PerResolutionMean(common, WEIGHTS)
    for grid, maps in layers:
        ours.add(1.0, maps, grid)
    expected = torch.zeros(common[0] * common[1], TOKENS, dtype=torch.float64)
    for grid, weight in grids[common].items():
        mean = torch.stack([maps for own, maps in layers if own == grid]).double().mean(0)
        expected += weight * stretched(bilinear_matrix(grid, common) @ mean)
    equal(ours.value(), (expected / sum(grids[common].values())).T.reshape(TOKENS, *common))


@pytest.mark.parametrize(
    ("side", "weight"), [(128, 0.1), (64, 0.1), (32, 0.1), (24, 0.1), (22, 0.5), (16, 0.5), (8, 0.3), (4, 0.3)]
)
def test_the_weights_are_those_of_the_original_at_512_px(side: int, weight: float) -> None:
    means = layers.by_resolution.fusion((64, 64))
    means.add(1.0, torch.ones(side * side, 1), (side, side))
    assert means.effective_weight((side, side)) == weight


def test_not_a_number_is_not_hidden() -> None:
    means = PerResolutionMean((2, 3), WEIGHTS)
    means.add(1.0, torch.full((6, 1), torch.nan), (2, 3))
    assert means.value().isnan().all()


# ---- what the hook tells of the text


class Raw(TorchFunctionMode):
    """What every attention gave, as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.outputs.append(output)
        return output


def aggregated(
    pipeline: Any, recipe: Recipe, image: Image.Image, grid: Grid = (13, 11)
) -> tuple[AttentionAggregator, list[AttentionCall], list[Tensor]]:
    """The aggregator of one pass, what the hook reported, and what every attention returned."""
    segmenter = Segmenter.from_pipeline(pipeline, recipe=recipe, size=64)
    session = segmenter.backbone.session()
    caption = "cat, traffic light, grass"
    found = find_noun_tokens(
        caption, session.backbone.texts(session.prompt(caption)), NOUNS[:2], NOUNS[2:], named=False
    )
    aggregator, calls = AttentionAggregator(segmenter.plan, found, grid), []

    def sink(_: int, call: AttentionCall) -> None:
        calls.append(call)
        aggregator.add(call)

    latents = session.backbone.latents([image], (64, 64))
    with torch.no_grad(), Raw() as raw:
        session.forward(latents, [caption], 100, 0, sink)
    return aggregator, calls, raw.outputs


@pytest.mark.parametrize(("name", "text_first"), [("flux", True), ("sd3", False)])
def test_the_texts_output_is_the_rest_of_what_joint_attention_gave(name: str, text_first: bool, image: Make) -> None:
    _, calls, outputs = aggregated(JOINT_BUILDERS[name](), CONCEPT_ATTENTION, image())
    joint = [call for call in calls if call.kind == "joint"]
    whole = [(call.text_output, call.output) if text_first else (call.output, call.text_output) for call in joint]
    seen = [output[0] for output in outputs if output.shape[0] == 1]
    for parts in whole:
        assert any(torch.equal(torch.cat(parts, 1), one) for one in seen if one.shape == torch.cat(parts, 1).shape)
    assert len(joint) == len({call.block for call in joint}) > 1


def test_other_attention_gives_the_text_nothing(sd15: Any, image: Make) -> None:
    _, calls, _ = aggregated(sd15, DIFFSEGMENTER, image())
    assert {call.kind for call in calls} == {"self", "cross"}
    assert all(call.text_output is None for call in calls)


# ---- DiffSegmenter


def test_diffsegmenter_is_a_value() -> None:
    assert (DIFFSEGMENTER.heads, DIFFSEGMENTER.layers) == (heads.mean_heads, layers.by_resolution)
    assert (DIFFSEGMENTER.cross, DIFFSEGMENTER.rescale, DIFFSEGMENTER.order) == ((), (), 1)
    assert DIFFSEGMENTER.background == Background(constant, 0.5)
    assert DIFFSEGMENTER.maps == concepts.attention


def test_diffsegmenter_is_the_loop_over_what_the_tap_saw(sd15: Any, image: Make) -> None:
    common = (67, 61)
    aggregator, calls, _ = aggregated(sd15, DIFFSEGMENTER, image(), common)
    grids: dict[Grid, list[Tensor]] = {}
    for call in calls:
        if call.kind == "cross":
            logits = call.q.double() @ call.k.double().transpose(1, 2) * call.scale
            grids.setdefault(call.grid, []).append(logits.softmax(-1).mean(0))
    # 64 cells a side by their number; 32, 16 and 8 are 2, 4 and 8 times coarser.
    weights = {(32, 32): 0.1, (16, 16): 0.5, (8, 8): 0.3}
    assert grids.keys() == weights.keys()
    expected = sum(
        weights[grid] * stretched(bilinear_matrix(grid, common) @ torch.stack(maps).mean(0))
        for grid, maps in grids.items()
    ) / sum(weights.values())
    equal(aggregator.global_map(), expected.T.reshape(-1, *common), atol=1e-3)  # almost flat maps, stretched
    told = aggregator.layer_weights()
    cross = [call for call in calls if call.kind == "cross"]
    assert set(told) == {call.block for call in cross}
    for call in cross:
        share = weights[call.grid] / len(grids[call.grid]) / sum(weights.values())
        assert told[call.block] == pytest.approx(share)


@pytest.mark.parametrize("name", UNET_BUILDERS)
def test_diffsegmenter_on_every_kind_of_unet(name: str, image: Make) -> None:
    segmenter = Segmenter.from_pipeline(UNET_BUILDERS[name](), recipe=DIFFSEGMENTER, size=64)
    result = segmenter(image(), classes=["cat", "grass"])
    assert result.plan.recipe == "diffsegmenter"
    assert (result.scores.grid.min((1, 2)), result.scores.grid.max((1, 2))) == (pytest.approx(0), pytest.approx(1))


# ---- ConceptAttention


def test_concept_shares_by_hand() -> None:
    # Two heads of one channel; the noun of columns 0 and 2 has the mean output (1, 2), the other one (0, -1).
    pixels = torch.tensor([[[1.0], [0.0]], [[2.0], [0.0]]])
    text = torch.tensor([[[0.0], [9.0], [2.0], [0.0]], [[4.0], [9.0], [0.0], [-1.0]]])
    found = concept_shares(pixels, text, ((0, 2), (3,)))
    # <pixel 0, nouns> = 1 + 4 and -2; pixel 1 is like neither.
    share = float(1 / (1 + np.exp(-7)))
    equal(found, torch.tensor([[share, 0.0, share, 1 - share], [0.5, 0.0, 0.5, 0.5]]))


def slow_concepts(call: AttentionCall, nouns: tuple[tuple[int, ...], ...]) -> Tensor:
    """(pixel, noun), float64: all heads' channels in one vector."""
    pixels, text = (part.double().permute(1, 0, 2).flatten(1) for part in (call.output, call.text_output))
    likeness = torch.stack([pixels @ torch.stack([text[c] for c in columns]).mean(0) for columns in nouns], 1)
    powers = (likeness - likeness.max(1, keepdim=True).values).exp()
    return powers / powers.sum(1, keepdim=True)


@pytest.mark.parametrize("name", ["flux", "sd3", "z_image", "qwen_image", "hidream"])
def test_concept_attention_is_the_loop_over_what_the_tap_saw(name: str, image: Make) -> None:
    aggregator, calls, _ = aggregated(JOINT_BUILDERS[name](), CONCEPT_ATTENTION, image())
    joint = [call for call in calls if call.kind == "joint"]
    nouns = aggregator.tokens.nouns
    layers = [bilinear_matrix(call.grid, (13, 11)) @ slow_concepts(call, nouns) for call in joint]
    expected = torch.stack(layers).mean(0).T.reshape(len(nouns), 13, 11)
    found = aggregator.token_mass().raw
    equal(found, expected)
    equal(found.sum(0), torch.ones(13, 11))
    assert float((found - found.mean((1, 2), keepdim=True)).abs().max()) > 0
    assert aggregator.layer_weights() == {call.block: pytest.approx(1 / len(joint)) for call in joint}


def test_concept_attention_of_some_blocks(image: Make) -> None:
    pipeline = JOINT_BUILDERS["flux"]()
    blocks = Segmenter.from_pipeline(pipeline).backbone.blocks
    aggregator, calls, _ = aggregated(pipeline, replace(CONCEPT_ATTENTION, cross=blocks[1:2]), image())
    (only,) = (call for call in calls if call.block == blocks[1])
    expected = bilinear_matrix(only.grid, (13, 11)) @ slow_concepts(only, aggregator.tokens.nouns)
    equal(aggregator.token_mass().raw, expected.T.reshape(-1, 13, 11))


def test_another_method_may_take_the_same_maps(image: Make) -> None:
    """Agreement of layers and refinement, on maps of the output space: a value like any other."""
    recipe = replace(CONCEPT_ATTENTION, layers="agreement", refine="from_model", order=1, rescale=("blur", "minmax"))
    aggregator, calls, _ = aggregated(JOINT_BUILDERS["flux"](), recipe, image())
    weights = aggregator.layer_weights()
    assert len(set(weights.values())) > 1
    joint = {call.block: call for call in calls if call.kind == "joint"}
    layers = [
        weight * bilinear_matrix(joint[block].grid, (13, 11)) @ slow_concepts(joint[block], aggregator.tokens.nouns)
        for block, weight in weights.items()
    ]
    # A `WeightedSum` has the tokens of a pixel sum to 1: a noun of two tokens counts twice.
    summed = torch.stack(layers).sum(0)
    tokens = torch.tensor([len(columns) for columns in aggregator.tokens.nouns])
    expected = summed / (summed * tokens).sum(1, keepdim=True)
    equal(aggregator.token_mass().raw, expected.T.reshape(-1, 13, 11))
    assert aggregator.affinity.layers > 0


def test_concept_attention_labels_an_image(image: Make) -> None:
    segmenter = Segmenter.from_pipeline(JOINT_BUILDERS["flux"](), recipe="concept-attention", size=64)
    result = segmenter(image(), classes=["cat", "traffic light"], background_classes=["sky"])
    assert (result.plan.recipe, result.plan.to_json()["maps"]) == ("concept-attention", "output-space")
    np.testing.assert_allclose(result.scores.grid.sum(0) + result.scores.background, 1, atol=1e-5)
    assert result.labels.shape == (96, 160)


def test_concept_attention_is_refused_by_name_where_attention_is_not_joint(bundled: Segmenter, goca: Any) -> None:
    told = 'recipe "concept-attention" needs joint attention, which bundled lacks'
    with pytest.raises(GocaError, match=told):
        Segmenter.from_pretrained("bundled", recipe=CONCEPT_ATTENTION)
    assert told in goca("evaluate", "scenes", "--recipe", "concept-attention").mistake()


# ---- names


def test_the_command_line_knows_every_recipe() -> None:
    assert set(RECIPES) == set(arguments.RECIPES)


def test_maps_do_not_come_from_the_model() -> None:
    with pytest.raises(GocaError, match='no map rule "from_model": choose from attention, output-space'):
        replace(CONCEPT_ATTENTION, maps="from_model")
