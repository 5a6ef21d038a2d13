"""Head weights, layer weights and the global map, against loops over the method's equations and by hand."""

import math

import pytest
import torch
from maths_steps import global_map, layer_weight
from torch import Tensor
from yardsticks import (
    Allocations,
    Grid,
    attention,
    bilinear_matrix,
    head_mean,
    nearest_matrix,
    resized_affinity,
)

from goca.maths import attention as attention_module
from goca.maths import heads as head_rules
from goca.maths import layers as layer_rules
from goca.maths.attention import affinity_blocks, probabilities
from goca.maths.fusion import WeightedSum
from goca.maths.heads import head_map, head_weights
from goca.maths.layers import LayerRule, LayerWeigher, Reference

PIXELS, HEADS, DIM, MODEL, TOKENS = 35, 3, 5, 13, 17
SCALE = 0.4
REFERENCE: Grid = (5, 7)
# The reference's own grid; coarser; one axis finer and one coarser; finer by a whole number; by a fraction.
GRIDS: list[Grid] = [(5, 7), (2, 3), (3, 11), (10, 14), (11, 13)]

RULES = ["mean_heads", "output_share", "output_share_clamped", "varying_share", "l2_norm", "cosine"]
LAYER_RULES = ["agreement", "balanced_agreement", "iou_like", "inverse_distance"]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def equal(ours: Tensor, slow: Tensor, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours.double(), slow.double(), rtol=rtol, atol=atol)


# ---- attention


def test_probabilities_by_hand() -> None:
    q, k = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[0.0], [math.log(3)]]])
    equal(probabilities(q, k, 1.0), torch.tensor([[[1 / 4, 3 / 4], [1 / 10, 9 / 10]]]))
    # Masked before the softmax: what is left sums to 1.
    mask = torch.tensor([[[0.0, -math.inf]]])
    equal(probabilities(q, k, 1.0, mask), torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_probabilities_are_the_loop_in_float32(dtype: torch.dtype) -> None:
    q, k = numbers(HEADS, PIXELS, DIM).to(dtype), numbers(HEADS, TOKENS, DIM, seed=1).to(dtype)
    ours = probabilities(q, k, SCALE)
    assert ours.dtype == torch.float32
    equal(ours, attention(q, k, SCALE), atol=1e-6)


def test_affinity_blocks_are_the_loop_whatever_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = numbers(HEADS, PIXELS, DIM), numbers(HEADS, PIXELS, DIM, seed=1)
    slow = head_mean(q, k, SCALE)
    rows = torch.tensor([34, 0, *range(3, 33, 2)])
    whole = [list(affinity_blocks(q, k, SCALE, wanted)) for wanted in (None, rows)]
    monkeypatch.setitem(attention_module.BLOCK_ELEMENTS, "cpu", 1)
    pieces = [list(affinity_blocks(q, k, SCALE, wanted)) for wanted in (None, rows)]
    assert all(len(blocks) > 1 for blocks in pieces)
    for blocks in (whole, pieces):
        for got, wanted in zip(blocks, (slow, slow[rows]), strict=True):
            assert [place for block, _ in got for place in range(len(wanted))[block]] == list(range(len(wanted)))
            equal(torch.cat([part for _, part in got]), wanted, atol=1e-6)


# ---- heads


def slow_head_weights(rule: str, parts: Tensor, weight: Tensor) -> Tensor:
    """The equations, one pixel at a time, with every z_h W_h written out."""
    written = torch.einsum("phd,hdm->phm", parts.double(), weight.double()).tolist()
    lengths_of_head, of_mean = [], []
    for head in range(parts.shape[1]):
        of_pixels = [pixel[head] for pixel in written]
        mean = [sum(column) / len(of_pixels) for column in zip(*of_pixels, strict=True)]
        lengths_of_head.append(sum(m * m for one in of_pixels for m in one) / len(of_pixels))
        of_mean.append(sum(m * m for m in mean))
    varying = [1 - shared / every for shared, every in zip(of_mean, lengths_of_head, strict=True)]
    rows = []
    for pixel in parts.double():
        made = [
            [sum(z[d] * w[d][m] for d in range(len(z))) for m in range(len(w[0]))]
            for z, w in zip(pixel.tolist(), weight.double().tolist(), strict=True)
        ]
        output = [sum(column) for column in zip(*made, strict=True)]
        square = sum(o * o for o in output)
        lengths = [math.sqrt(sum(m * m for m in one)) for one in made]
        dots = [sum(m * o for m, o in zip(one, output, strict=True)) for one in made]
        raw = {
            "mean_heads": [1.0] * len(made),
            "output_share": [dot / square for dot in dots],
            "output_share_clamped": [max(0.0, dot / square) for dot in dots],
            "varying_share": [max(0.0, dot / square) * part for dot, part in zip(dots, varying, strict=True)],
            "l2_norm": lengths,
            "cosine": [dot / (length * math.sqrt(square)) for dot, length in zip(dots, lengths, strict=True)],
        }[rule]
        rows.append([one / sum(raw) for one in raw])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("rule", RULES)
def test_head_weights_are_the_loop(rule: str) -> None:
    parts, weight = numbers(PIXELS, HEADS, DIM), numbers(HEADS, DIM, MODEL, seed=1)
    ours = head_weights(getattr(head_rules, rule), parts, weight)
    # Shares of both signs may sum to almost nothing, and then all weights are huge: compare proportions.
    slow = slow_head_weights(rule, parts, weight)
    equal(ours / ours.abs().amax(-1, keepdim=True), slow / slow.abs().amax(-1, keepdim=True), atol=1e-4)
    equal(ours.sum(-1), torch.ones(PIXELS), atol=1e-4)


@pytest.mark.parametrize(
    ("rule", "by_hand"),
    [
        ("mean_heads", [1 / 3, 1 / 3, 1 / 3]),
        ("output_share", [1, -1 / 2, 1 / 2]),
        ("output_share_clamped", [2 / 3, 0, 1 / 3]),
        ("l2_norm", [1 / 2, 1 / 4, 1 / 4]),
        ("cosine", [1, -1, 1]),
        ("varying_share", [1 / 3, 1 / 3, 1 / 3]),  # of one pixel nothing varies
    ],
)
def test_head_weights_by_hand(rule: str, by_hand: list[float]) -> None:
    # The heads write (2, 0), (-1, 0) and (0, 1); the output is (1, 1).
    parts = torch.tensor([[[2.0], [-1.0], [1.0]]])
    weight = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    equal(head_weights(getattr(head_rules, rule), parts, weight), torch.tensor([by_hand]))


def test_what_a_head_gives_every_pixel_alike_is_no_share_of_what_varies() -> None:
    # The first head gives (6, 0) everywhere, the second (0, 1), (0, 3) and, at the last pixel, nothing.
    parts = torch.tensor([[[6.0], [1.0]], [[6.0], [3.0]], [[6.0], [0.0]]])
    weight = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    equal(head_weights(head_rules.varying_share, parts, weight), torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.5, 0.5]]))
    # The first gives (1, 0) and (3, 0), of whose mean square, 5, 4 are the mean's; the second (0, 2) and (0, -2).
    parts = torch.tensor([[[1.0], [2.0]], [[3.0], [-2.0]]])
    weighed = torch.tensor([[1 / 5 * 1 / 5, 4 / 5], [9 / 13 * 1 / 5, 4 / 13]])
    ours = head_weights(head_rules.varying_share, parts, weight)
    equal(ours, weighed / weighed.sum(-1, keepdim=True))


@pytest.mark.parametrize("rule", RULES)
def test_silent_heads_weigh_equally(rule: str) -> None:
    parts = torch.zeros(2, HEADS, DIM)
    parts[1] = numbers(HEADS, DIM)
    ours = head_weights(getattr(head_rules, rule), parts, numbers(HEADS, DIM, MODEL, seed=1))
    equal(ours[0], torch.full((HEADS,), 1 / HEADS))
    assert ours.isfinite().all()


@pytest.mark.parametrize("rule", ["output_share", "output_share_clamped", "cosine"])
def test_heads_that_cancel_weigh_equally(rule: str) -> None:
    parts, weight = torch.tensor([[[2.0], [-1.0], [-1.0]]]), torch.ones(HEADS, 1, 2)
    equal(head_weights(getattr(head_rules, rule), parts, weight), torch.full((1, HEADS), 1 / HEADS))


def test_one_silent_head_among_others_has_cosine_0() -> None:
    parts = torch.tensor([[[3.0], [0.0], [3.0]]])
    weight = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
    equal(head_weights(head_rules.cosine, parts, weight), torch.tensor([[0.5, 0.0, 0.5]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_half_precision_accumulates_in_float32(rule: str, dtype: torch.dtype) -> None:
    # 100 x 100 x 35 is infinite in float16, and 1e-4 is out of bfloat16's sight.
    parts = (100 * numbers(PIXELS, HEADS, DIM)).to(dtype)
    weight = (10 * numbers(HEADS, DIM, MODEL, seed=1)).to(dtype)
    ours = head_weights(getattr(head_rules, rule), parts, weight)
    assert ours.dtype == torch.float32
    slow = slow_head_weights(rule, parts, weight)
    equal(ours / ours.abs().amax(-1, keepdim=True), slow / slow.abs().amax(-1, keepdim=True), atol=1e-4)


def test_head_map_is_the_loop_and_keeps_negative_weights() -> None:
    weights, probability = numbers(PIXELS, HEADS), numbers(HEADS, PIXELS, TOKENS, seed=1).softmax(-1)
    slow = [
        [sum(w * p for w, p in zip(heads, column, strict=True)) for column in zip(*rows, strict=True)]
        for heads, rows in zip(weights.tolist(), probability.transpose(0, 1).tolist(), strict=True)
    ]
    equal(head_map(weights, probability), torch.tensor(slow))
    two = torch.tensor([[[0.25, 0.75]], [[0.5, 0.5]]])
    equal(head_map(torch.tensor([[2.0, -1.0]]), two), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("rule", RULES)
def test_head_rules_never_hold_pixel_by_head_by_model(rule: str) -> None:
    pixels, heads, dim, model = 211, 7, 5, 37
    parts, weight = numbers(pixels, heads, dim), numbers(heads, dim, model, seed=1)
    with Allocations() as seen:
        head_weights(getattr(head_rules, rule), parts, weight)
    assert seen.largest <= pixels * max(heads * dim, model)


# ---- layers


def layer(grid: Grid, seed: int = 2) -> tuple[Tensor, Tensor]:
    pixels = grid[0] * grid[1]
    return numbers(HEADS, pixels, DIM, seed=seed), numbers(HEADS, pixels, DIM, seed=seed + 1)


def slow_affinities(feature: Tensor, grid: Grid, seed: int = 2) -> tuple[Tensor, Tensor]:
    """(R, S'), both on the reference grid."""
    r = attention(feature[None], feature[None], feature.shape[-1] ** -0.5)[0]
    return r, resized_affinity(head_mean(*layer(grid, seed), SCALE), grid, REFERENCE)


def slow_layer_weight(rule: str, r: Tensor, s: Tensor) -> float:
    """The equations, one pair of pixels at a time."""
    if rule == "balanced_agreement":
        s = torch.stack([row / sum(row.tolist()) for row in s])
    pairs = [list(zip(one, other, strict=True)) for one, other in zip(r.tolist(), s.tolist(), strict=True)]
    flat = [pair for row in pairs for pair in row]
    if rule == "iou_like":
        return sum(map(min, flat)) / (sum(map(max, flat)) + 1e-4)
    if rule == "inverse_distance":
        return 1 / sum(math.sqrt(sum((a - b) ** 2 for a, b in row)) for row in pairs)
    return sum(a * b for a, b in flat)


def picked_rows(grid: Grid) -> list[int]:
    return sorted(set(nearest_matrix(grid, REFERENCE).argmax(1).tolist()))


@pytest.fixture(scope="module")
def feature() -> Tensor:
    return numbers(PIXELS, MODEL)


@pytest.fixture
def reference(feature: Tensor) -> Reference:
    return Reference(feature, REFERENCE)


def test_reference_affinity_is_the_loop(feature: Tensor, reference: Reference) -> None:
    equal(reference.rows(slice(None)), slow_affinities(feature, REFERENCE)[0], atol=1e-6)


def test_one_channel_of_a_reference_is_the_loop(feature: Tensor) -> None:
    channel = feature[:, 0].tolist()
    expected = [[math.exp(one * other) for other in channel] for one in channel]
    affinity = Reference(layer_rules.first_channel(feature), REFERENCE).rows(slice(None))
    equal(affinity, torch.tensor([[value / sum(row) for value in row] for row in expected]), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_reference_of_half_precision_is_float32(feature: Tensor, dtype: torch.dtype) -> None:
    half = feature.to(dtype)
    affinity = Reference(half, REFERENCE).rows(slice(None))
    assert affinity.dtype == torch.float32
    equal(affinity, attention(half[None], half[None], MODEL**-0.5)[0], atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("rule", LAYER_RULES)
def test_layer_weights_are_the_loop(feature: Tensor, reference: Reference, rule: str, grid: Grid) -> None:
    ours = layer_weight(getattr(layer_rules, rule), reference, *layer(grid), SCALE, grid)
    assert ours == pytest.approx(slow_layer_weight(rule, *slow_affinities(feature, grid)), rel=1e-4)


@pytest.mark.parametrize(
    ("rule", "by_hand"),
    [
        ("mean_layers", 1),
        # R is 1/24 everywhere. Each of 24 rows of S' holds 24 times 1/6 and sums to 4: 2 x coarser, squared.
        ("agreement", 24 * 24 / 24 / 6),
        ("balanced_agreement", 24 * 24 / 24 / 24),
        ("iou_like", 24 / (24 * 4 + 1e-4)),
        ("inverse_distance", 1 / (24 * math.sqrt(24) * (1 / 6 - 1 / 24))),
    ],
)
def test_layer_weights_of_even_attention_by_hand(rule: str, by_hand: float) -> None:
    even = torch.zeros(HEADS, 6, DIM)
    reference = Reference(torch.zeros(24, MODEL), (4, 6))
    ours = layer_weight(getattr(layer_rules, rule), reference, even, even, SCALE, (2, 3))
    assert ours == pytest.approx(by_hand, rel=1e-5)


def test_published_agreement_favours_coarse_grids_as_the_method_says() -> None:
    # Even attention on grids 2 x finer to 4 x coarser than an 8 x 12 reference: rows sum to 1/4, 1, 4, 16.
    reference = Reference(torch.zeros(96, MODEL), (8, 12))
    for grid, row_sum in {(16, 24): 1 / 4, (8, 12): 1, (4, 6): 4, (2, 3): 16}.items():
        even = torch.zeros(1, grid[0] * grid[1], 1)
        weights = [
            layer_weight(rule, reference, even, even, 1.0, grid)
            for rule in (layer_rules.agreement, layer_rules.balanced_agreement)
        ]
        assert weights == pytest.approx([row_sum, 1], rel=1e-5)


def test_equal_layers_need_no_affinity(reference: Reference) -> None:
    nothing = torch.full((HEADS, 33, DIM), torch.nan)
    with Allocations() as seen:
        weight = layer_weight(layer_rules.mean_layers, reference, nothing, nothing, SCALE, (3, 11))
    assert weight == 1
    assert seen.largest < 33 * 33


def test_a_layer_that_is_the_reference_weighs_a_million_and_no_more() -> None:
    even = torch.zeros(HEADS, 24, DIM)
    reference = Reference(torch.zeros(24, MODEL), (4, 6))
    ours = layer_weight(layer_rules.inverse_distance, reference, even, even, SCALE, (4, 6))
    assert ours == pytest.approx(1e6)


def test_negative_weights_become_0(reference: Reference) -> None:
    against = LayerRule(lambda r, s: -(r * s).sum()[None], bilinear=True)
    assert layer_weight(against, reference, *layer((3, 11)), SCALE, (3, 11)) == pytest.approx(0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_pulled_is_the_matrix_product(
    feature: Tensor, reference: Reference, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    r, _ = slow_affinities(feature, (5, 7))
    slow = nearest_matrix(grid, REFERENCE).T @ r @ bilinear_matrix(grid, REFERENCE)
    rows = picked_rows(grid)
    assert reference.picked(grid)[0].tolist() == rows
    equal(reference.pulled(grid, slice(0, len(rows))), slow[rows])
    # Where matrices are too large to keep, rows are computed when asked for.
    monkeypatch.setattr(layer_rules, "DENSE_PIXELS", 4)
    streamed = Reference(feature, REFERENCE)
    halves = [slice(0, len(rows) // 2), slice(len(rows) // 2, len(rows))]
    equal(torch.cat([streamed.pulled(grid, half) for half in halves]), slow[rows])


@pytest.mark.parametrize("rule", LAYER_RULES)
@pytest.mark.parametrize("grid", [(2, 3), (3, 11), (11, 13)], ids=str)
def test_order_and_size_of_blocks_do_not_matter(reference: Reference, rule: str, grid: Grid) -> None:
    chosen = getattr(layer_rules, rule)
    rows = torch.tensor(picked_rows(grid))
    ((_, affinity),) = affinity_blocks(*layer(grid), SCALE, rows)
    weights = []
    for size in (1, 4, len(rows)):
        blocks = [slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
        for order in (blocks, blocks[::-1]):
            weigher = LayerWeigher(chosen, reference, grid)
            assert weigher.rows.tolist() == rows.tolist()
            for block in order:
                weigher.add(block, affinity[block])
            weights.append(float(weigher.value()))
    assert weights == pytest.approx([weights[0]] * 6, rel=1e-5)
    assert weights[0] == pytest.approx(layer_weight(chosen, reference, *layer(grid), SCALE, grid), rel=1e-5)


@pytest.mark.parametrize("rule", LAYER_RULES)
def test_block_elements_do_not_matter(reference: Reference, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = getattr(layer_rules, rule)
    once = layer_weight(chosen, reference, *layer((11, 13)), SCALE, (11, 13))
    monkeypatch.setitem(attention_module.BLOCK_ELEMENTS, "cpu", 1)
    assert layer_weight(chosen, reference, *layer((11, 13)), SCALE, (11, 13)) == pytest.approx(once, rel=1e-5)


def test_many_pixels_take_the_shorter_way_to_the_same_shares() -> None:
    dims = 5
    parts, weight = numbers(HEADS * dims + 1, HEADS, dims), numbers(HEADS, dims, MODEL, seed=4)
    few = torch.cat([head_rules.output_share(part, weight) for part in parts.split(7)])
    torch.testing.assert_close(head_rules.output_share(parts, weight), few, rtol=1e-4, atol=1e-4)


def test_only_the_rows_that_nearest_picks_are_seen(reference: Reference) -> None:
    count = LayerRule(lambda r, s: torch.tensor([float(len(s))]), bilinear=True)
    assert layer_weight(count, reference, *layer((11, 13)), SCALE, (11, 13)) == PIXELS
    # 2 x 7 on 5 x 7: both rows and all columns; nothing else is there to see.
    assert layer_weight(count, reference, *layer((2, 7)), SCALE, (2, 7)) == 14


@pytest.mark.parametrize("rule", LAYER_RULES)
def test_a_finer_layer_never_holds_its_whole_affinity(
    reference: Reference, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention_module.BLOCK_ELEMENTS, "cpu", 1)
    grid, pixels = (11, 13), 143
    q, k = layer(grid)
    with Allocations() as seen:
        layer_weight(getattr(layer_rules, rule), reference, q, k, SCALE, grid)
    block, pulled = 16 * pixels, PIXELS * pixels  # one head's
    assert seen.largest <= (pulled if getattr(layer_rules, rule).bilinear else block) < pixels * pixels


def test_a_reference_keeps_one_matrix_and_no_head_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention_module.BLOCK_ELEMENTS, "cpu", 1)
    feature = numbers(143, MODEL)
    with Allocations() as seen:
        Reference(feature, (11, 13)).rows(slice(None))
    assert seen.largest <= 143 * 143
    assert seen.of_size(143 * 143) <= 1


def test_one_row_without_mass_does_not_silence_a_balanced_layer(reference: Reference) -> None:
    # Four times finer: bilinear resizing looks at pixels 1 and 2 of four, and row 0 looks at pixel 0 alone.
    grid = (20, 28)
    q, k = torch.zeros(1, 560, 560), torch.eye(560)[None]
    even = layer_weight(layer_rules.balanced_agreement, reference, q, k, 1.0, grid)
    assert even == pytest.approx(1, rel=1e-3)
    q[0, 0, 0] = 200
    sharp = layer_weight(layer_rules.balanced_agreement, reference, q, k, 1.0, grid)
    assert sharp == pytest.approx(even, rel=2 / PIXELS)


# ---- the global map


def slow_global_map(layers: list[tuple[float, Tensor, Grid]], grid: Grid) -> Tensor:
    summed = sum(weight * bilinear_matrix(own, grid) @ maps.double() for weight, maps, own in layers)
    rows = [[max(0.0, value) for value in row] for row in summed.tolist()]
    rows = [[value / sum(row) if sum(row) else 0.0 for value in row] for row in rows]
    return torch.tensor(rows, dtype=torch.float64).T.reshape(-1, *grid)


@pytest.mark.parametrize("grid", [(5, 7), (13, 11)], ids=str)
def test_global_map_is_the_loop(grid: Grid) -> None:
    layers = [
        (weight, numbers(own[0] * own[1], TOKENS, seed=seed) + 0.2, own)
        for seed, (weight, own) in enumerate([(0.7, (5, 7)), (0.0, (2, 3)), (2.3, (3, 11)), (0.1, (11, 13))])
    ]
    ours = global_map(iter(layers), grid)
    equal(ours, slow_global_map(layers, grid))
    equal(ours.sum(0), torch.ones(grid))
    # Only the proportions of the weights matter.
    equal(global_map([(3 * weight, maps, own) for weight, maps, own in layers], grid), ours)


def test_global_map_clamps_the_sum_and_not_its_terms() -> None:
    layers = [
        (1.0, torch.tensor([[3.0, -2.0], [1.0, -1.0]]), (1, 2)),
        (2.0, torch.tensor([[-1.0, 1.5], [0.0, -1.0]]), (1, 2)),
    ]
    # Pixel 0: (3 - 2, -2 + 3) = (1, 1); pixel 1: (1, -3), of which (1, 0) is left.
    equal(global_map(layers, (1, 2)), torch.tensor([[[0.5, 1.0]], [[0.5, 0.0]]]))


def test_a_pixel_without_mass_stays_empty() -> None:
    ours = global_map([(1.0, torch.tensor([[-1.0, 0.0], [1.0, 3.0]]), (1, 2))], (1, 2))
    equal(ours, torch.tensor([[[0.0, 0.25]], [[0.0, 0.75]]]))


def test_layers_that_all_weigh_nothing_weigh_the_same() -> None:
    first, second = (torch.tensor(rows) for rows in ([[3.0, 1.0]], [[1.0, 3.0]]))
    equal(global_map([(0.0, first, (1, 1)), (0.0, second, (1, 1))], (1, 1)), torch.tensor([[[0.5]], [[0.5]]]))
    # One that weighs something takes the place of all before it.
    layers = [(0.0, first, (1, 1)), (0.2, second, (1, 1)), (0.0, first, (1, 1))]
    equal(global_map(layers, (1, 1)), torch.tensor([[[0.25]], [[0.75]]]))


def test_a_running_map_leaves_its_layers_as_they_were() -> None:
    layer = torch.tensor([[3.0, 1.0]])
    total = WeightedSum((1, 1))
    for weight in (0.0, 1.0, 2.0):
        total.add(weight, layer, (1, 1))
    equal(total.value(), torch.tensor([[[0.75]], [[0.25]]]))
    equal(layer, torch.tensor([[3.0, 1.0]]))
